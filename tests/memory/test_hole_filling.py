import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.memory.hole_filling import fill_holes


def test_known_pixels_stay_and_a_constant_stays_constant():
    hole = jnp.zeros((13, 21)).at[4:9, 6:15].set(1.0)
    image = jnp.where(hole[..., None] > 0, jnp.nan, 0.25) * jnp.ones((13, 21, 3))
    filled = jax.jit(fill_holes)(image, hole)
    np.testing.assert_allclose(filled, 0.25, atol=1e-6)
    ramp = jnp.linspace(-1, 1, 21)[None, :, None] * jnp.ones((13, 21, 1))
    filled = fill_holes(ramp, hole)
    np.testing.assert_array_equal(filled[hole == 0], ramp[hole == 0])
    assert float(jnp.abs(filled - ramp).max()) < 0.35


def test_a_hole_between_near_and_far_continues_the_far_surface():
    column = jnp.arange(32)[None, :] * jnp.ones((16, 1))
    hole = ((column >= 12) & (column < 20)).astype(jnp.float32)
    depth = jnp.where(column < 16, 1.0, 4.0) * (1 - hole)
    image = jnp.where(column < 16, 1.0, -1.0)[..., None]
    filled = fill_holes(image, hole, depth)[..., 0]
    assert float(filled[:, 13:20].max()) < -0.5
    even = fill_holes(image, hole)[..., 0]
    assert float(even[:, 12:14].mean()) > 0.2


def test_nothing_known_gives_zero_and_never_nan():
    image = jnp.full((7, 5, 2), jnp.nan)
    filled = fill_holes(image, jnp.ones((7, 5)), jnp.zeros((7, 5)))
    np.testing.assert_array_equal(filled, 0.0)
    single = fill_holes(jnp.ones((7, 5, 2)), jnp.ones((7, 5)).at[3, 2].set(0.0))
    np.testing.assert_allclose(single, 1.0, atol=1e-6)
