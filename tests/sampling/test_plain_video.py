"""Shapes and refusals of plain video models; `interop/test_video_pipeline.py` has their results."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from tests.compiling import program
from worldstereo_jax.config import PRESETS
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.clip_vision import CLIPVisionConfig
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.models.wan_vae_clips import init_vae_params
from worldstereo_jax.models.worldstereo import init_params
from worldstereo_jax.sampling.guided_loop import LoopChoices
from worldstereo_jax.sampling.official_world import OfficialParams, Prompt
from worldstereo_jax.sampling.plain_video import VideoWorld, make_video_denoiser, make_video_sampler
from worldstereo_jax.sampling.schedules import unipc_schedule

TEXT = VideoWorld(
    name="wan", frames=81, height=480, width=832,
    choices=LoopChoices(unipc_schedule(50)), denoiser=PRESETS["wan_t2v_1.3b"],
    vae=WanVAEConfig(latents_mean=(0.0,) * 16, latents_std=(1.0,) * 16), vae_tile=32,
)  # fmt: skip
IMAGE = dataclasses.replace(TEXT, denoiser=PRESETS["wan_14b"], image_encoder=CLIPVisionConfig())
KEY = jax.random.key(0)


def test_a_clip_of_full_size_is_traced():
    world = IMAGE
    sampler = make_video_sampler(world)
    prompt = Prompt(text=jnp.zeros((512, 4096)), negative=jnp.zeros((512, 4096)))

    def make(denoiser, vae, key):
        condition = sampler.encode(vae, jnp.zeros((480, 832, 3)))
        tokens = jnp.zeros((257, 1280))
        noise = jnp.zeros((1, *world.latent_shape))
        latent = sampler.denoise(denoiser, prompt, noise, condition, tokens)
        return latent, sampler.decode(vae, latent)

    denoiser = jax.eval_shape(lambda key: init_params(world.denoiser, key), KEY)
    vae = jax.eval_shape(lambda key: init_vae_params(world.vae, key), KEY)
    latent, video = jax.eval_shape(make, denoiser, vae, KEY)
    assert latent.shape == (1, 21, 60, 104, 16)
    assert video.shape == (81, 480, 832, 3)


def test_one_program_serves_every_schedule_and_scale_of_guidance():
    """Or a command with other numbers would compile the whole transformer again."""
    denoiser = jax.eval_shape(lambda key: init_params(TEXT.denoiser, key), KEY)
    text = jax.ShapeDtypeStruct((512, 4096), "float32")
    noise = jax.ShapeDtypeStruct((1, *TEXT.latent_shape), "float32")
    programs = set()
    for steps, shift, scale in ((50, 3.0, 5.0), (8, 7.0, 2.5)):
        choices = LoopChoices(unipc_schedule(steps, shift), guidance_scale=scale)
        denoise = make_video_denoiser(dataclasses.replace(TEXT, choices=choices))
        programs.add(program(denoise, "proceed", denoiser, Prompt(text, text), noise))
    assert len(programs) == 1


def test_an_image_is_wanted_by_the_models_that_take_one():
    prompt = Prompt(text=jnp.zeros((1, 6)), negative=jnp.zeros((1, 6)))
    nothing = OfficialParams(denoiser=None, vae=None)
    with pytest.raises(InputError, match="from an image and a prompt; no image was given"):
        make_video_sampler(IMAGE)(nothing, prompt, KEY)
    with pytest.raises(InputError, match="makes video from text alone"):
        make_video_sampler(TEXT)(nothing, prompt, KEY, jnp.zeros((480, 832, 3)))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"denoiser": PRESETS["wan_14b_camera"]}, "a WorldStereo model takes a camera path"),
        ({"denoiser": TEXT.denoiser.replace(in_channels=32)}, "takes 32 channels, expected 16"),
        ({"denoiser": PRESETS["wan_14b"]}, "the image encoder has None channels"),
        ({"frames": 80}, "clips of 80 frames"),
        ({"height": 488}, "488 x 832 pixels, expected multiples of 16"),
    ],
)
def test_what_does_not_fit_is_named(change, said):
    with pytest.raises(InputError, match=said):
        dataclasses.replace(TEXT, **change)
