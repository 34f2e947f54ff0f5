import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.memory.photometry import remove_gain, view_gains

GAINS = np.array([[1.0, 1.0, 1.0], [0.6, 0.7, 0.65], [1.2, 1.0, 0.9]], np.float32)


def shots(seed=0, views=3, points=400):
    """What views with GAINS show of the same points: a tenth disturbed, a third not seen."""
    rng = np.random.default_rng(seed)
    light = rng.uniform(0.1, 0.7, (points, 3)).astype(np.float32)
    shown = light[None] * GAINS[:views, None] + rng.normal(0, 0.005, (views, points, 3))
    gloss = rng.random((views, points)) < 0.1
    shown[gloss] = rng.uniform(0, 1, (gloss.sum(), 3))
    seen = rng.random((views, points)) < 0.67
    return light, (2 * shown - 1).astype(np.float32), seen


@pytest.mark.row("S35")
def test_gain_and_white_balance_are_found_despite_gloss():
    _, colors, seen = shots()
    gain, _ = view_gains(jnp.asarray(colors), jnp.asarray(seen))
    expected = GAINS / np.exp(np.log(GAINS).mean(0))
    np.testing.assert_allclose(gain, expected, rtol=0.02)


@pytest.mark.row("S35")
def test_residuals_fall_to_the_noise_once_gains_are_removed():
    _, colors, seen = shots()
    gain, own = view_gains(jnp.asarray(colors), jnp.asarray(seen))
    before = np.abs(colors[1] - colors[2])[seen[1] & seen[2]]
    first, second = (remove_gain(jnp.asarray(colors[v]), gain[v]) for v in (1, 2))
    after = np.abs(np.asarray(first - second))[seen[1] & seen[2]]
    assert np.median(before) > 0.15
    assert np.median(after) < 0.03
    known = seen.sum(0) > 1
    assert np.median(np.abs(np.asarray(first)[seen[1] & known] - own[seen[1] & known])) < 0.03


@pytest.mark.row("S35")
def test_views_that_share_nothing_keep_their_light():
    _, colors, seen = shots()
    seen[2] = False
    gain, own = view_gains(jnp.asarray(colors), jnp.asarray(seen))
    assert gain[2].tolist() == [1.0, 1.0, 1.0]
    assert np.isfinite(np.asarray(own)).all()
    nothing, own = view_gains(jnp.asarray(colors), jnp.zeros_like(jnp.asarray(seen)))
    assert (np.asarray(nothing) == 1.0).all()
    assert (np.asarray(own) == 0.0).all()
