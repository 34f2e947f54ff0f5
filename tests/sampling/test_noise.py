import jax
import numpy as np

from worldstereo_jax.sampling.noise import unit_noise


def test_the_numbers_are_those_of_jax_also_inside_jit():
    for seed, shape in ((0, (3, 5)), (7, (1, 2, 12, 20, 16))):
        key = jax.random.key(seed)
        expected = jax.random.normal(key, shape)
        np.testing.assert_allclose(unit_noise(key, shape), expected, rtol=1e-5, atol=1e-6)
        inside = jax.jit(lambda key, shape=shape: unit_noise(key, shape))(key)
        np.testing.assert_allclose(inside, expected, rtol=1e-5, atol=1e-6)
