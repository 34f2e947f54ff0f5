"""The official models' networks in a distillation are those that clips are sampled with."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.official_modules import normal
from tests.models.small_model import random_params
from tests.toy_official import MODEL
from tests.training.test_official_objective import (
    FRAMES,
    HEIGHT,
    LATENT,
    VIEWS,
    WIDTH,
    make_clip,
    stack,
    with_geometry,
)
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.models.clip_vision import CLIPVisionConfig
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.official_clip import sample_latent
from worldstereo_jax.sampling.official_denoise import reading_pattern
from worldstereo_jax.sampling.official_world import OfficialChoices, OfficialWorld, Prompt
from worldstereo_jax.sampling.schedules import dmd_schedule
from worldstereo_jax.sampling.world import Cameras, RolloutConfig
from worldstereo_jax.training.distill import rollout
from worldstereo_jax.training.official_distill import (
    Told,
    distilled_parameters,
    official_networks,
    read_told,
)
from worldstereo_jax.training.official_fields import to_fields

SCHEDULE = dmd_schedule(4)
NEGATIVE, GUIDANCE = normal(77, 3, 6), 3.0


@pytest.fixture(scope="module")
def params():
    return random_params(MODEL)


@pytest.fixture(scope="module")
def networks():
    return official_networks(WorldStereo(MODEL), SCHEDULE, NEGATIVE, guidance=GUIDANCE)


def told_of(*clips) -> Told:
    batch = stack(*clips)
    return Told(batch, reading_pattern(batch.conditions))


def world_of(**choices) -> OfficialWorld:
    return OfficialWorld(
        name="toy",
        rollout=RolloutConfig(frames=FRAMES, height=HEIGHT, width=WIDTH, references=VIEWS),
        choices=OfficialChoices(SCHEDULE, solver="euler", guidance_scale=GUIDANCE, **choices),
        denoiser=MODEL,
        vae=WanVAEConfig(),
        image_encoder=CLIPVisionConfig(hidden_size=10),
    )


@pytest.mark.parametrize("guidance", ["none", "two-pass"])
def test_a_whole_rollout_is_the_clip_that_the_sampler_makes(params, networks, guidance):
    """Student without and teacher with guidance: as `worldstereo generate` samples either."""
    clip, noise = make_clip(0), normal(5, 1, *LATENT, 16)
    prompt = Prompt(text=clip.text, negative=NEGATIVE)
    wanted = jax.jit(
        lambda params: sample_latent(
            world_of(guidance=guidance), params, clip.conditions, prompt, clip.image, noise
        )
    )(params)
    if guidance != "none":
        networks = dataclasses.replace(networks, student=networks.teacher)
    x, x0 = jax.jit(lambda params: rollout(networks, params, told_of(clip), noise, jnp.array(4)))(
        params
    )
    assert np.abs(wanted - noise).max() > 0.1
    np.testing.assert_allclose(x, wanted, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(x0, wanted, rtol=1e-5, atol=1e-5)


def test_all_but_the_control_branch_trains():
    scanned = random_params(MODEL.replace(num_layers=2, scan_layers=True))
    chosen = flat_paths(distilled_parameters(scanned))
    frozen = {path for path, keep in chosen.items() if not keep}
    control = {path for path in chosen if "control/" in path or "residual/" in path}
    assert frozen == control
    assert {path.split("/")[0] for path in frozen} == {"control", "controlled"}


def test_what_is_told_of_prepared_clips():
    """Views are dropped, texts never; the pattern is that of the clips' geometry, built once."""
    clip = with_geometry(make_clip(0), 0)
    path = jnp.asarray(make_path("right", FRAMES, amplitude=0.5))
    k = jnp.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])
    cameras = Cameras(w2c=path, intrinsics=jnp.broadcast_to(k, (FRAMES, 3, 3)))
    batch = {name: x[None] for name, x in to_fields(clip, cameras).items()}
    sizes = {"height": HEIGHT, "width": WIDTH, "ray_x_offset": -0.5}

    @jax.jit
    def read(drop):
        wanted = reading_pattern(stack(clip).conditions)
        return read_told(batch, jax.random.key(0), drop_references=drop, **sizes), wanted

    (found, wanted), (dropped, _) = read(0.0), read(1.0)
    assert found.clip.conditions.reference_valid.any()
    assert not dropped.clip.conditions.reference_valid.any()
    for told in (found, dropped):
        np.testing.assert_array_equal(told.clip.text, batch["text"].astype(np.float32))
        assert told.clip.conditions.target_geometry is None
    for a, b in zip(*map(jax.tree.leaves, (found.pattern, wanted)), strict=True):
        np.testing.assert_array_equal(a, b)
