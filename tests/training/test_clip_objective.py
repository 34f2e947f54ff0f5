"""The loss of the small video model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.models.worldstereo import init_params
from worldstereo_jax.sampling.conditions import anchor
from worldstereo_jax.training.clip_objective import (
    DROP_BOTH,
    DROP_ENTRIES,
    DROP_STEREO,
    clip_loss,
    drop_memories,
)


@pytest.fixture(scope="module")
def batch(gathered):
    return jax.tree.map(lambda leaf: np.broadcast_to(leaf, (2, *leaf.shape)), gathered[0])


@pytest.fixture(scope="module")
def loss(world):
    """((loss, figures), gradients) of parameters, conditions, targets, key and weights."""

    def loss(params, batch, target, key, weights):
        return clip_loss(world.denoiser, params, batch, target, key, channel_weights=weights)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))


@pytest.mark.slow
def test_an_untrained_model_returns_the_anchor_and_its_loss(world, batch, loss):
    """The output starts at zero, so the loss is the anchor's own error, exactly."""
    fresh = init_params(world.denoiser.config, jax.random.key(0))
    target = batch.render_latent + 0.5
    weights = jnp.linspace(0.5, 1.5, 16)
    key = jax.random.key(3)
    (value, figures), _ = loss(fresh, batch, target, key, weights)
    dropped = drop_memories(batch, jax.random.split(key, 3)[0])
    error = (target - anchor(dropped)) ** 2 * weights[None, None, None, None]
    np.testing.assert_allclose(value, error.mean(), rtol=1e-4)
    np.testing.assert_allclose(figures["anchor_error"], value, rtol=1e-4)


@pytest.mark.slow
def test_gradients_are_finite_and_reach_where_memory_comes_in(params, batch, loss):
    target = batch.render_latent + 0.5
    _, gradient = loss(params.denoiser, batch, target, jax.random.key(1), jnp.ones(16))
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.isfinite(leaf).all(), jax.tree_util.keystr(path)
    # What each memory comes in by must learn from it.
    for part in ("control", "warped_entry", "patch_embedding", "camera_embedding", "head"):
        largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(gradient[part]))
        assert largest > 0, part


def test_memories_are_dropped_as_often_as_stated(batch):
    many = dataclasses.replace(
        batch,
        **{
            name: jnp.ones((20_000,), bool)
            for name in ("stereo_enabled", "global_enabled", "entries_enabled")
        },
    )
    dropped = drop_memories(many, jax.random.key(0))
    stereo, points = np.asarray(dropped.stereo_enabled), np.asarray(dropped.global_enabled)
    assert not (stereo & ~points).any()
    np.testing.assert_allclose((~points).mean(), DROP_BOTH, atol=0.01)
    np.testing.assert_allclose((~stereo & points).mean(), DROP_STEREO, atol=0.01)
    entries = np.asarray(dropped.entries_enabled)
    np.testing.assert_allclose((~entries).mean(), DROP_ENTRIES, atol=0.01)
    # On their own: whether the rest of the memory is there or not.
    np.testing.assert_allclose((~entries[stereo]).mean(), DROP_ENTRIES, atol=0.01)
