"""Alternatives are told what their names say; without memory depth has the first frame's scale."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.evaluation.alternatives import (
    ALTERNATIVES,
    GLOBAL_ONLY,
    NO_MEMORY,
    AlternativeRollout,
    depth_without_memory,
    told,
)
from worldstereo_jax.evaluation.attention_patterns import HARD, PATTERNS
from worldstereo_jax.sampling.compiled import CompiledRollout
from worldstereo_jax.sampling.conditions import Guidance, anchor, example_conditions
from worldstereo_jax.sampling.denoise import model_inputs
from worldstereo_jax.sampling.loop import step_table
from worldstereo_jax.sampling.rollout import clip_schedule
from worldstereo_jax.sampling.solvers import euler


@pytest.fixture(scope="module")
def gathered(world):
    """Memories that say something of everything: random numbers of the right shapes."""
    rng = np.random.default_rng(0)

    def fill(leaf):
        if leaf.dtype == bool:
            return jnp.ones(leaf.shape, bool)
        if jnp.issubdtype(leaf.dtype, jnp.integer):
            return jnp.zeros(leaf.shape, leaf.dtype)
        return jnp.asarray(rng.uniform(0, 1, leaf.shape), leaf.dtype)

    conditions = jax.tree.map(fill, example_conditions(world))
    size = (world.rollout.frames, world.rollout.height, world.rollout.width)
    image, mask = jnp.zeros((*size, 3)), jnp.zeros(size)
    return conditions, Guidance(image, mask, image, mask, mask, mask)


@pytest.fixture(scope="module")
def model_is_told(world):
    """What of the memories reaches the model, from its own inputs."""

    @jax.jit
    def read(conditions):
        batch = jax.tree.map(lambda leaf: leaf[None], conditions)
        x = jnp.zeros(batch.render_latent.shape)
        kwargs = model_inputs(world.denoiser.config, x, jnp.ones(1), batch).kwargs
        return (
            kwargs["references"].valid.any(),
            (kwargs["warped"].log_weight > -jnp.inf).any(),
            kwargs["control"].enabled.all(),
            kwargs["entries"].valid.any(),
            anchor(batch)[0],
        )

    return read


@pytest.mark.row("S20")
@pytest.mark.parametrize("name", ALTERNATIVES)
def test_the_model_is_told_what_the_alternative_says(gathered, model_is_told, name):
    alternative = ALTERNATIVES[name]
    conditions, mixes = told(alternative, gathered[0])
    references, warps, points, entries, base = model_is_told(conditions)
    assert bool(references) == alternative.references
    assert bool(warps) == alternative.warps
    assert bool(points) == alternative.points
    assert bool(entries) == alternative.entries
    assert bool(mixes) == alternative.warps
    if alternative.warps:
        np.testing.assert_array_equal(base, gathered[0].warped_features[..., 0, :16])
    elif alternative.points:
        np.testing.assert_array_equal(base, gathered[0].render_latent)
    else:
        still = jnp.broadcast_to(gathered[0].first_latent[None], base.shape)
        np.testing.assert_array_equal(base, still)
    # A compiled program must take any of them.
    shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), conditions)
    assert shapes == jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), gathered[0])


def test_each_alternative_runs_its_patterns_program_and_only_no_memory_guesses_depth(
    world, params, gathered, cameras
):
    used = []

    def generate(name):
        return lambda *args: used.append(name) or jnp.zeros((4, 48, 64, 3))

    schedule = clip_schedule(world)
    table = step_table(schedule, euler(schedule))
    rollout = AlternativeRollout(
        rollout=CompiledRollout(world.rollout, None, table, *[print] * 4, lambda *args: "known"),
        generate={name: generate(name) for name in PATTERNS},
        memoryless_depth=lambda *args: "guessed",
    )
    depth = {}
    for name, alternative in ALTERNATIVES.items():
        clip = rollout.clip(alternative, params, gathered, cameras, jax.random.key(0))
        depth[name] = clip.depth
    assert used == [alternative.pattern for alternative in ALTERNATIVES.values()]
    assert [name for name, how in depth.items() if how == "guessed"] == [NO_MEMORY]
    assert ALTERNATIVES[GLOBAL_ONLY].pattern == HARD


def test_depth_without_memory_has_the_first_frames_scale(world, params, scene):
    """A network whose estimate of every frame is the same: all take the scale fitted to one."""
    first = scene["depth"][0]
    still = jnp.broadcast_to(scene["image"][:1], (4, *scene["image"].shape[1:]))
    found = jax.jit(lambda video: depth_without_memory(world, params, video, first))(still)
    np.testing.assert_allclose(found[0], first, rtol=1e-6)
    np.testing.assert_allclose(found[1], found[3], rtol=1e-5)
    # An untrained network knows nothing of the picture, but its level is the room's.
    ratio = float(jnp.median(found[1]) / jnp.median(first))
    assert 0.5 < ratio < 2
