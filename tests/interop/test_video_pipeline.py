"""Plain Wan 2.1 models from their folders against diffusers' own pipelines, from the same noise."""

import jax.numpy as jnp
import numpy as np
import PIL.Image
import pytest

from tests import toy_official as toy
from tests.models.official_modules import as_torch, assert_close, load_theirs, normal
from worldstereo_jax.interop.official_pipeline import load_official
from worldstereo_jax.interop.safetensors_io import SafetensorsFile
from worldstereo_jax.interop.video_pipeline import open_video, video_world
from worldstereo_jax.sampling.guided_loop import LoopChoices
from worldstereo_jax.sampling.official_world import Prompt
from worldstereo_jax.sampling.plain_video import make_video_sampler

STEPS, SCALE, FRAMES, HEIGHT, WIDTH = 3, 4.0, 9, 32, 48


def ours(folder, prompt, noise, image=None):
    files = open_video(folder)
    scheduler = files.scheduler
    choices = LoopChoices(scheduler.schedule(STEPS), scheduler.solver, "batched", SCALE)
    size = (HEIGHT, WIDTH)
    world = video_world(files, choices, frames=FRAMES, size=size, dtype="float32")
    params = load_official(files, dtype="float32", progress=False)
    sampler = make_video_sampler(world)
    return sampler.from_noise(params, prompt, noise, image)


@pytest.mark.slow
@pytest.mark.parametrize("image", [False, True], ids=["t2v", "i2v"])
def test_equals_the_pipeline_of_diffusers(image, tmp_path):
    diffusers = pytest.importorskip("diffusers", reason="the parity extra is not installed")
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    folder = toy.write_plain(tmp_path / "wan", image=image)
    # Such as the text encoder gives: 0 past the prompt's end.
    ends = np.arange(512)[None, :, None] < np.array([[[5]], [[3]]])
    states = np.where(ends, normal(0, 2, 512, 6), 0).astype(np.float32)
    noise = normal(1, 1, 3, HEIGHT // 8, WIDTH // 8, 16)

    def part(kind, name):
        model = kind.from_config(kind.load_config(folder / name))
        file = SafetensorsFile(folder / name / "diffusion_pytorch_model.safetensors")
        tensors = {tensor: file[tensor] for tensor in file}
        unused = [tensor for tensor in model.state_dict() if tensor.endswith("norm_added_q.weight")]
        return load_theirs(model, tensors, unused)

    parts = {
        "tokenizer": None,
        "text_encoder": None,
        "transformer": part(diffusers.WanTransformer3DModel, "transformer"),
        "vae": part(diffusers.AutoencoderKLWan, "vae"),
        "scheduler": diffusers.UniPCMultistepScheduler.from_pretrained(folder / "scheduler"),
    }
    given = {
        "prompt_embeds": as_torch(states[:1]), "negative_prompt_embeds": as_torch(states[1:]),
        "latents": as_torch(jnp.moveaxis(noise, -1, 1)), "height": HEIGHT, "width": WIDTH,
        "num_frames": FRAMES, "num_inference_steps": STEPS, "guidance_scale": SCALE,
        "output_type": "np",
    }  # fmt: skip
    first = None
    if image:
        # A byte that both round otherwise when they resize would be seen in the result.
        values = {**toy.IMAGE_PROCESSOR, "do_resize": False}
        toy.write_json(folder / "image_processor/preprocessor_config.json", values)
        pixels = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        first = jnp.asarray(pixels, jnp.float32) / 127.5 - 1
        theirs = diffusers.WanImageToVideoPipeline(
            **parts,
            image_encoder=transformers.CLIPVisionModel.from_pretrained(
                folder / "image_encoder"
            ).eval(),
            image_processor=transformers.CLIPImageProcessor.from_pretrained(
                folder / "image_processor"
            ),
        )
        given["image"] = PIL.Image.fromarray(pixels)
    else:
        theirs = diffusers.WanPipeline(**parts)
    theirs.set_progress_bar_config(disable=True)
    expected = theirs(**given).frames[0]
    prompt = Prompt(text=jnp.asarray(states[0]), negative=jnp.asarray(states[1]))
    found = ours(folder, prompt, noise, first)
    assert found.shape == (FRAMES, HEIGHT, WIDTH, 3)
    assert np.std(expected) > 0.05
    assert_close(found / 2 + 0.5, expected)
