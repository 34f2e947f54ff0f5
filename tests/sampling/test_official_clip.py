"""The official models' loop as the pipeline runs it, against recorded official loops."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import program
from worldstereo_jax.evaluation.golden_arrays import GoldenArrays, channels_last, relative_error
from worldstereo_jax.evaluation.golden_models import model_config, model_inputs
from worldstereo_jax.interop.official import params_from_official
from worldstereo_jax.interop.safetensors_io import SafetensorsFile
from worldstereo_jax.models.clip_vision import CLIPVisionConfig
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.sampling import dmd_schedule, unipc_schedule
from worldstereo_jax.sampling.official_clip import make_denoiser, sample_latent
from worldstereo_jax.sampling.official_conditions import OfficialConditions
from worldstereo_jax.sampling.official_world import OfficialChoices, OfficialWorld, Prompt
from worldstereo_jax.sampling.world import RolloutConfig


@pytest.fixture(scope="module")
def recorded(goldens_dir):
    """The recorded memory model: config, parameters, and its conditions without a batch axis."""
    weights = SafetensorsFile(goldens_dir / "memory_model.safetensors")
    arrays = GoldenArrays(goldens_dir / "memory_model_io.npz")
    config = model_config(weights, arrays)
    params = jax.tree.map(jnp.asarray, params_from_official(weights, config))
    return config, params, model_inputs(arrays)


def given(recorded, golden, **choices):
    """The recorded model as a world, and what its clip is made from."""
    config, params, inputs = recorded
    _, frames, rows, columns, _ = channels_last(golden["lat0"]).shape
    world = OfficialWorld(
        name="recorded",
        rollout=RolloutConfig(frames=frames, height=8 * rows, width=8 * columns, references=3),
        choices=OfficialChoices(**choices),
        denoiser=config,
        vae=WanVAEConfig(),
        image_encoder=CLIPVisionConfig(hidden_size=config.image_width),
    )
    control, references = inputs["control"], inputs["references"]
    conditions = OfficialConditions(
        condition=channels_last(golden["cond"])[0],
        render_latent=control.render_latent[0],
        render_mask=control.render_mask[0, ..., 0],
        plucker=control.plucker[0],
        camera=inputs["camera"][0],
        reference=references.latent[0],
        reference_index=references.index[0],
        reference_camera=references.camera[0],
        reference_valid=jnp.ones(3, bool),
        target_geometry=None,
        reference_geometry=None,
    )
    text = inputs["text"][0]
    prompt = Prompt(text=text, negative=jnp.asarray(golden.get("neg", inputs["text"]))[0])
    return world, (params, conditions, prompt, inputs["image_tokens"][0])


def run(recorded, golden, **choices):
    world, told = given(recorded, golden, **choices)
    sampler = jax.jit(functools.partial(sample_latent, world))
    found = sampler(*told, channels_last(golden["lat0"]))
    return relative_error(found, np.moveaxis(golden["out"], 1, -1))


@pytest.mark.parametrize("guidance", ["batched", "two-pass"])
def test_the_guided_loop_equals_official(recorded, goldens_dir, guidance):
    with np.load(goldens_dir / "sampling_unipc.npz") as golden:
        schedule = unipc_schedule(int(golden["steps"]), float(golden["shift"]))
        scale = float(golden["scale"])
        error = run(
            recorded, dict(golden), schedule=schedule, guidance=guidance, guidance_scale=scale
        )
    assert error < 1e-4


def test_the_distilled_loop_equals_official(recorded, goldens_dir):
    with np.load(goldens_dir / "sampling_dmd.npz") as golden:
        choices = {"schedule": dmd_schedule(4, 250, 1000, 5.0), "solver": "euler"}
        assert run(recorded, dict(golden), guidance="none", **choices) < 1e-4


def test_one_program_serves_every_schedule_and_scale_of_guidance(recorded, goldens_dir):
    """Or a command with other numbers would compile the whole transformer again."""
    programs = set()
    with np.load(goldens_dir / "sampling_unipc.npz") as golden:
        for steps, shift, scale in ((3, 3.0, 5.0), (8, 7.0, 2.5)):
            schedule = unipc_schedule(steps, shift)
            world, told = given(recorded, dict(golden), schedule=schedule, guidance_scale=scale)
            programs.add(program(make_denoiser(world), "proceed", *told, jax.random.key(0)))
    assert len(programs) == 1
