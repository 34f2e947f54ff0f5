"""A clip's conditions laid out for the transformer."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.memory.masks import reference_block_mask
from worldstereo_jax.sampling.denoise import model_inputs


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
