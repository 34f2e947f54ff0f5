import jax
import numpy as np

from worldstereo_jax.training import losses

# Each one program, not one of every operation.
charbonnier = jax.jit(losses.charbonnier, static_argnums=2)
gradient_loss = jax.jit(losses.gradient_loss)
log_depth_gradient_loss = jax.jit(losses.log_depth_gradient_loss)
log_depth_loss = jax.jit(losses.log_depth_loss, static_argnames="scale_weight")


def test_charbonnier_is_quadratic_then_absolute():
    zero = np.zeros((2, 3), np.float32)
    assert float(charbonnier(zero, zero)) == 0.0
    np.testing.assert_allclose(charbonnier(zero + 5.0, zero, 0.01), 5.0, rtol=3e-3)
    np.testing.assert_allclose(charbonnier(zero + 1e-3, zero, 0.1), 1e-6 / 0.2, rtol=1e-2)
    assert np.isfinite(jax.jit(jax.grad(lambda x: charbonnier(x, zero)))(zero)).all()


def test_gradient_loss_ignores_brightness_and_sees_edges():
    image = np.random.default_rng(0).uniform(size=(1, 8, 8, 3)).astype(np.float32)
    right, below = image.copy(), image.copy()
    right[:, :, 4:] += 0.3
    below[:, 4:] += 0.3
    np.testing.assert_allclose(gradient_loss(image + 0.3, image), 0.0, atol=1e-6)
    assert gradient_loss(below, image) > 1e-3
    assert gradient_loss(right, image) > 1e-3


def _depth(seed):
    return np.random.default_rng(seed).uniform(0.5, 8.0, (2, 16, 16)).astype(np.float32)


def test_depth_loss_parts():
    truth, valid = _depth(0), np.ones((2, 16, 16), bool)
    doubled = np.log(2.0 * truth)
    np.testing.assert_allclose(log_depth_loss(np.log(truth), truth, valid), 0.0, atol=1e-6)
    np.testing.assert_allclose(
        log_depth_loss(doubled, truth, valid, scale_weight=1.0), np.log(2.0), rtol=1e-4
    )
    np.testing.assert_allclose(
        log_depth_loss(doubled, truth, valid, scale_weight=0.0), 0.0, atol=1e-5
    )
    np.testing.assert_allclose(log_depth_gradient_loss(doubled, truth, valid), 0.0, atol=1e-5)
    assert log_depth_gradient_loss(np.log(_depth(1)), truth, valid) > 0.5


def test_invalid_depth_counts_nowhere():
    truth, guess = _depth(0), np.log(_depth(1))
    valid = np.arange(16)[None, None, :] < np.full((2, 16, 1), 8)
    spoilt, zero = np.float32(9.0), np.float32(0.0)
    for loss in (log_depth_loss, log_depth_gradient_loss):
        expected = loss(guess, truth, valid)
        spoiled = loss(np.where(valid, guess, spoilt), np.where(valid, truth, zero), valid)
        np.testing.assert_allclose(spoiled, expected, rtol=1e-6)
        nothing = np.zeros_like(valid)
        gradient = jax.jit(jax.grad(loss))(guess, np.zeros_like(truth), nothing)
        np.testing.assert_array_equal(gradient, 0.0)


def test_scale_invariance_is_per_image():
    truth, valid = _depth(0), np.ones((2, 16, 16), bool)
    guess = np.log(truth) + np.array([0.5, -0.7], np.float32)[:, None, None]
    np.testing.assert_allclose(
        log_depth_loss(guess, truth, valid, scale_weight=0.0), 0.0, atol=1e-5
    )
