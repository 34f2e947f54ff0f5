import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.sampling import guide_one_batch, guide_two_pass


def velocity(conditions, x, timestep, sigma):
    return x * sigma + conditions["text"].mean(axis=1, keepdims=True) * timestep + conditions["map"]


def setup():
    keys = jax.random.split(jax.random.key(1), 4)
    shared = jax.random.normal(keys[0], (2, 3))
    positive = {"text": jax.random.normal(keys[1], (2, 5)), "map": shared}
    negative = {"text": jax.random.normal(keys[2], (2, 5)), "map": shared}
    return (
        positive,
        negative,
        jax.random.normal(keys[3], (2, 3)),
        jnp.float32(0.7),
        jnp.float32(0.4),
    )


def test_both_forms_agree():
    positive, negative, *args = setup()
    one = guide_one_batch(velocity, positive, negative, 5.0)(*args)
    two = guide_two_pass(velocity, positive, negative, 5.0)(*args)
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)


def test_formula_and_neutral_scales():
    positive, negative, *args = setup()
    c, u = velocity(positive, *args), velocity(negative, *args)
    for scale in (0.0, 1.0, 5.0):
        found = guide_two_pass(velocity, positive, negative, scale)(*args)
        np.testing.assert_allclose(found, u + scale * (c - u), rtol=1e-5, atol=1e-6)
    assert np.abs(guide_two_pass(velocity, positive, negative, 5.0)(*args) - c).max() > 0.1
