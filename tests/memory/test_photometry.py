import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.memory import photometry
from worldstereo_jax.memory.photometry import TILES, remove_gain

frame_gain = jax.jit(photometry.frame_gain)
known_light = jax.jit(photometry.known_light)
view_gains = jax.jit(photometry.view_gains)

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


TINT = np.array([1.08, 0.94, 0.87], np.float32)


def pairs(seed=0, points=1500, noise=0.02):
    """Light of points, a third of it gloss from where one view stands, all over the picture."""
    rng = np.random.default_rng(seed)
    own = rng.uniform(0.1, 0.8, (points, 3))
    gloss = (rng.random(points) < 0.3)[:, None] * rng.uniform(0.1, 0.3, (points, 1))
    shown, kept = (own + rng.normal(0, noise, own.shape) for _ in range(2))
    return shown, gloss, kept, rng.integers(0, TILES * TILES, points)


def gain_of(shown, kept, tile):
    weight = jnp.ones(len(shown))
    colours = (jnp.asarray(2 * np.clip(x, 0, 1) - 1, jnp.float32) for x in (shown, kept))
    return np.asarray(frame_gain(*colours, weight, jnp.asarray(tile, jnp.int32)))


@pytest.mark.row("S35")
@pytest.mark.parametrize("seed", range(3))
def test_one_view_s_gain_is_found_despite_gloss_and_noise_of_both(seed):
    shown, gloss, kept, tile = pairs(seed)
    np.testing.assert_allclose(gain_of((shown + gloss) * TINT, kept, tile), TINT, rtol=0.02)
    noisy, _, kept, tile = pairs(seed, points=6000, noise=0.08)
    np.testing.assert_allclose(gain_of(noisy * TINT, kept, tile), TINT, rtol=0.02)


@pytest.mark.row("S35")
def test_a_gain_within_its_own_uncertainty_is_1():
    for seed in range(5):
        shown, _, kept, tile = pairs(seed)
        assert (gain_of(shown, kept, tile) == 1.0).all()
    # The same mean, once everywhere and once from a few parts of the picture that changed.
    np.testing.assert_allclose(gain_of(1.04 * shown, kept, tile), 1.04, atol=0.01)
    local = np.random.default_rng(0).normal(1.04, 0.15, TILES * TILES)
    assert (gain_of(shown * local[tile][:, None], kept, tile) == 1.0).all()
    # Nor can one corner of the picture speak for the rest.
    assert (gain_of(0.8 * shown, kept, tile % 4) == 1.0).all()
    assert (gain_of(shown[:0], kept[:0], tile[:0]) == 1.0).all()


@pytest.mark.row("S35")
@pytest.mark.row("S24")
def test_light_that_is_added_is_not_taken_for_exposure():
    shown, _, kept, tile = pairs()
    mean = shown.mean()
    np.testing.assert_allclose(gain_of(1.15 * shown, kept, tile), 1.15, rtol=0.02)
    assert (gain_of(shown + 0.15 * mean, kept, tile) == 1.0).all()


@pytest.mark.row("S35")
def test_white_stays_possible_in_known_light_and_a_gain_of_1_changes_no_bit():
    colors = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (500, 3)), jnp.float32)
    colors = colors.at[:10].set(1.0)
    gain = jnp.array([1.2, 1.0, 0.8])
    least, most = (np.asarray(x) for x in known_light(colors, gain))
    for bound in (least, most):
        np.testing.assert_array_equal(bound[:, 1], colors[:, 1])
    divided = np.minimum((np.asarray(colors) + 1) / np.asarray(gain), 2.0) - 1
    np.testing.assert_allclose(least, divided, atol=1e-6)
    np.testing.assert_allclose(most[:, 2], divided[:, 2], atol=1e-6)
    bright = np.asarray(colors[:, 0]) > 0.9
    np.testing.assert_allclose(most[~bright, 0], divided[~bright, 0], atol=1e-6)
    np.testing.assert_allclose(most[:10, 0], 1.0)
    order = np.argsort(np.asarray(colors[:, 0]))
    assert (np.diff(most[order, 0]) >= 0).all()
