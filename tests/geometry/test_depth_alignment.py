import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.geometry.depth_alignment import align_depth


def _maps(seed=0, scale=0.7, shift=0.15):
    """A true depth map and a prediction that is affine to it in inverse depth."""
    rng = np.random.default_rng(seed)
    truth = rng.uniform(1.0, 6.0, (24, 32)).astype(np.float32)
    predicted = 1.0 / ((1.0 / truth - shift) / scale)
    # Where the shift leaves nothing positive there is no prediction.
    return np.where(predicted > 0, predicted, 0.0).astype(np.float32), truth


def test_exact_affine_map_is_recovered():
    predicted, truth = _maps()
    valid = np.zeros(truth.shape, bool)
    valid[:12] = True
    fit = align_depth(jnp.asarray(predicted), jnp.asarray(truth), jnp.asarray(valid))
    np.testing.assert_allclose([fit.scale, fit.shift], [0.7, 0.15], rtol=1e-3)
    seen = predicted > 0
    np.testing.assert_allclose(fit.depth[seen], truth[seen], rtol=2e-3)
    np.testing.assert_array_equal(fit.depth[~seen], 0.0)


def test_a_fifth_of_wrong_pixels_does_not_move_the_fit():
    predicted, truth = _maps(1)
    rng = np.random.default_rng(2)
    wrong = rng.random(truth.shape) < 0.2
    reference = np.where(wrong, rng.uniform(0.3, 1.0, truth.shape), truth).astype(np.float32)
    fit = align_depth(jnp.asarray(predicted), jnp.asarray(reference), jnp.ones(truth.shape, bool))
    np.testing.assert_allclose([fit.scale, fit.shift], [0.7, 0.15], rtol=0.03)


def test_invalid_pixels_do_not_count():
    predicted, truth = _maps(3)
    valid = np.arange(32)[None, :] < np.full((24, 1), 16)
    reference = np.where(valid, truth, 77.0).astype(np.float32)
    one = align_depth(jnp.asarray(predicted), jnp.asarray(reference), jnp.asarray(valid))
    reference[~valid] = np.nan
    two = align_depth(jnp.asarray(predicted), jnp.asarray(reference), jnp.asarray(valid))
    np.testing.assert_array_equal(one.depth, two.depth)
    assert np.isfinite(np.asarray(two.depth)).all()


@pytest.mark.parametrize("known", [5, 400])
def test_few_or_contradicting_pixels_fit_the_scale_alone(known):
    predicted, truth = _maps(4, 1.0, 0.0)
    # 400 pixels that say the opposite of the prediction; 5 that agree up to scale.
    reference = 3.0 * truth if known == 5 else 1.0 / (1.2 - 1.0 / truth)
    valid = np.arange(truth.size).reshape(truth.shape) < known
    fit = align_depth(
        jnp.asarray(predicted), jnp.asarray(reference, jnp.float32), jnp.asarray(valid)
    )
    assert float(fit.shift) == 0.0
    assert float(fit.scale) > 0.0
    if known == 5:
        np.testing.assert_allclose(fit.depth, 3.0 * truth, rtol=1e-4)


def test_nothing_known_leaves_the_prediction():
    predicted, truth = _maps(5, 1.0, 0.0)
    nothing = jnp.zeros(truth.shape, bool)
    fit = align_depth(jnp.asarray(predicted), jnp.asarray(truth), nothing)
    np.testing.assert_allclose(fit.depth, predicted, rtol=1e-5)


def test_depth_stays_finite_and_positive_where_the_shift_is_negative():
    truth = np.linspace(1.0, 4.0, 24 * 32).reshape(24, 32).astype(np.float32)
    inverse = 1.0 / truth + 0.5
    predicted = (1.0 / inverse).astype(np.float32)
    predicted[0, 0] = 10.0  # farther than the shift allows
    valid = np.ones(truth.shape, bool)
    valid[0, 0] = False
    fit = align_depth(jnp.asarray(predicted), jnp.asarray(truth), jnp.asarray(valid))
    np.testing.assert_allclose(fit.shift, -0.5, rtol=1e-2)
    np.testing.assert_allclose(fit.depth[0, 0], 40.0, rtol=1e-2)
