"""A clip's conditions laid out for the transformer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.memory.masks import reference_block_mask
from worldstereo_jax.sampling.denoise import model_inputs, reference_places


@pytest.fixture(scope="module")
def batch(gathered):
    return jax.tree.map(lambda leaf: leaf[None], gathered[0])


@pytest.mark.slow
@pytest.mark.row("S20")
def test_the_order_of_tokens_changes_nothing_but_rounding(world, params, batch, denoised):
    """Ordered along a curve through the world, or as they lie in the image: the same output."""
    x = jax.random.normal(jax.random.key(3), batch.render_latent.shape)
    time = jnp.array([700.0])

    @jax.jit
    def in_raster_order(conditions):
        args, kwargs = model_inputs(world.denoiser.config, x, time, conditions)
        kwargs["token_order"] = kwargs["entries"] = kwargs["entry_mask"] = None
        kwargs["block_mask"] = reference_block_mask(
            conditions.reference_geometry, conditions.target_geometry
        )
        return world.denoiser.apply({"params": params.denoiser}, *args, **kwargs)

    np.testing.assert_allclose(denoised(x, time, batch), in_raster_order(batch), atol=2e-4)


def test_tokens_run_along_the_surface_they_lie_on(world, batch):
    """Consecutive tokens are nearer to each other in the world than in raster order."""
    x = jnp.zeros(batch.render_latent.shape)
    _, kwargs = jax.jit(lambda c: model_inputs(world.denoiser.config, x, jnp.ones(1), c))(batch)
    geometry = batch.target_geometry

    def mean_step(position, valid):
        step = np.linalg.norm(np.diff(np.asarray(position), axis=0), axis=-1)
        return step[np.asarray(valid[1:] & valid[:-1])].mean()

    order = kwargs["token_order"].target
    ordered = mean_step(order.apply(geometry.position)[0], order.apply(geometry.valid)[0])
    assert ordered < 0.6 * mean_step(geometry.position[0], geometry.valid[0])


def test_what_is_near_in_the_world_is_near_on_the_surface(world, batch):
    """References' tokens stand among the target's that show the same place, and apart from others.

    A target token without geometry stands where it is in its frame.
    """
    clip = jax.tree.map(lambda leaf: leaf[0], batch)
    hidden = jnp.zeros_like(clip.target_geometry.valid).at[5].set(True)
    place, target_place = (np.asarray(x) for x in jax.jit(reference_places)(clip))
    seen, wanted = clip.reference_geometry, clip.target_geometry
    tokens = np.asarray(seen.valid)
    away = np.linalg.norm(
        np.asarray(seen.position)[tokens, None] - np.asarray(wanted.position)[None], axis=-1
    )
    away[:, ~np.asarray(wanted.valid)] = np.inf
    nearest = away.argmin(1)
    close = away.min(1) < 0.02
    assert close.sum() > 10
    apart = np.linalg.norm(place[tokens] - target_place[nearest], axis=-1)
    assert apart[close].max() < 0.5
    assert np.linalg.norm(place[tokens] - target_place.mean(0), axis=-1).mean() > 1.0

    blind = dataclasses.replace(wanted, valid=wanted.valid & ~hidden)
    blind = dataclasses.replace(clip, target_geometry=blind)
    guessed = np.asarray(jax.jit(reference_places)(blind)[1])
    assert wanted.valid[5]
    np.testing.assert_allclose(guessed[5, 1:], target_place[5, 1:], atol=0.75)
    known = np.asarray(wanted.valid & ~hidden)
    np.testing.assert_array_equal(guessed[known], target_place[known])


def test_only_models_on_the_surface_are_given_places(world, batch):
    x = jnp.zeros(batch.render_latent.shape)
    for positions in ("beside", "surface"):
        config = world.denoiser.config.replace(reference_positions=positions)
        shapes = jax.eval_shape(lambda c, config=config: model_inputs(config, x, jnp.ones(1), c),
                                batch)  # fmt: skip
        assert (shapes.kwargs["references"].place is None) == (positions == "beside")
