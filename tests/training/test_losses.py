import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.training.losses import (
    charbonnier,
    gradient_loss,
    log_depth_gradient_loss,
    log_depth_loss,
)


def test_charbonnier_is_quadratic_then_absolute():
    zero = jnp.zeros((2, 3))
    assert float(charbonnier(zero, zero)) == 0.0
    np.testing.assert_allclose(charbonnier(zero + 5.0, zero, 0.01), 5.0, rtol=3e-3)
    np.testing.assert_allclose(charbonnier(zero + 1e-3, zero, 0.1), 1e-6 / 0.2, rtol=1e-2)
    assert np.isfinite(jax.grad(lambda x: charbonnier(x, zero))(zero)).all()


def test_gradient_loss_ignores_brightness_and_sees_edges():
    image = jax.random.uniform(jax.random.key(0), (1, 8, 8, 3))
    np.testing.assert_allclose(gradient_loss(image + 0.3, image), 0.0, atol=1e-6)
    assert gradient_loss(image.at[:, 4:].add(0.3), image) > 1e-3
    assert gradient_loss(image.at[:, :, 4:].add(0.3), image) > 1e-3


def _depth(seed):
    return jax.random.uniform(jax.random.key(seed), (2, 16, 16), minval=0.5, maxval=8.0)


def test_depth_loss_parts():
    truth, valid = _depth(0), jnp.ones((2, 16, 16), bool)
    doubled = jnp.log(2.0 * truth)
    np.testing.assert_allclose(log_depth_loss(jnp.log(truth), truth, valid), 0.0, atol=1e-6)
    np.testing.assert_allclose(
        log_depth_loss(doubled, truth, valid, scale_weight=1.0), np.log(2.0), rtol=1e-4
    )
    np.testing.assert_allclose(
        log_depth_loss(doubled, truth, valid, scale_weight=0.0), 0.0, atol=1e-5
    )
    np.testing.assert_allclose(log_depth_gradient_loss(doubled, truth, valid), 0.0, atol=1e-5)
    assert log_depth_gradient_loss(jnp.log(_depth(1)), truth, valid) > 0.5


def test_invalid_depth_counts_nowhere():
    truth, guess = _depth(0), jnp.log(_depth(1))
    valid = jnp.arange(16)[None, None, :] < jnp.full((2, 16, 1), 8)
    for loss in (log_depth_loss, log_depth_gradient_loss):
        expected = loss(guess, truth, valid)
        spoiled = loss(jnp.where(valid, guess, 9.0), jnp.where(valid, truth, 0.0), valid)
        np.testing.assert_allclose(spoiled, expected, rtol=1e-6)
        nothing = jnp.zeros_like(valid)
        gradient = jax.grad(loss)(guess, jnp.zeros_like(truth), nothing)
        np.testing.assert_array_equal(gradient, 0.0)


def test_scale_invariance_is_per_image():
    truth, valid = _depth(0), jnp.ones((2, 16, 16), bool)
    guess = jnp.log(truth) + jnp.asarray([0.5, -0.7])[:, None, None]
    np.testing.assert_allclose(
        log_depth_loss(guess, truth, valid, scale_weight=0.0), 0.0, atol=1e-5
    )
