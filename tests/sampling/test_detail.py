"""Detail goes back exactly where the frame agrees with the memory's warp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.interop.shipped import init_mixer
from worldstereo_jax.models.detail_mixer import DetailMixer, DetailMixerConfig
from worldstereo_jax.sampling.detail import agreement, box_mean, restore_detail

MIXER = DetailMixer(DetailMixerConfig(widths=(4, 4, 4), blocks=(0, 0, 0)))
UNTRAINED = init_mixer(MIXER, jax.random.key(0), 24, 32)
ON = jnp.ones((), bool)


def _noise(seed: int, *shape: int) -> jax.Array:
    return 0.3 * jax.random.uniform(jax.random.key(seed), shape, minval=-1.0)


def _restore(*layers: jax.Array, enabled: jax.Array = ON) -> np.ndarray:
    return np.asarray(restore_detail(MIXER, UNTRAINED, *layers, enabled))


@pytest.mark.row("S21")
def test_an_agreeing_frame_becomes_the_warp_where_it_is_covered():
    warp, coded = _noise(0, 2, 24, 32, 3), _noise(1, 2, 24, 32, 3)
    hole = jnp.zeros((2, 24, 32)).at[:, :, 20:].set(1.0)
    result = _restore(coded, warp, coded, hole)
    np.testing.assert_allclose(result[:, :, :20], warp[:, :, :20], atol=0.02)
    np.testing.assert_allclose(result[:, :, 20:], coded[:, :, 20:], atol=0.02)


def test_a_frame_that_departs_from_the_warp_keeps_its_own_pixels():
    warp, coded = _noise(0, 1, 24, 32, 3), _noise(1, 1, 24, 32, 3)
    video = coded + 0.6
    result = _restore(video, warp, coded, jnp.zeros((1, 24, 32)))
    assert float(jnp.abs(result - video.clip(-1, 1)).mean()) < 0.04


@pytest.mark.row("S21")
def test_without_the_stereo_memory_its_pixels_are_not_read():
    video, warp, coded = (_noise(seed, 1, 24, 32, 3) for seed in range(3))
    hole = jnp.zeros((1, 24, 32))
    off = jnp.zeros((), bool)
    result = _restore(video, warp, coded, hole, enabled=off)
    np.testing.assert_allclose(result, video, atol=1e-6)
    other = _restore(video, warp + 0.4, coded - 0.2, 1.0 - hole, enabled=off)
    np.testing.assert_array_equal(other, result)


def test_agreement_is_whole_for_equal_frames_and_nothing_at_holes():
    coded = _noise(0, 1, 24, 32, 3)
    hole = jnp.zeros((1, 24, 32)).at[:, :4].set(1.0)
    weight = np.asarray(agreement(coded, coded, hole))
    np.testing.assert_array_equal(weight, 1.0 - hole)
    # A difference of HALF_TRUST everywhere is worth one half.
    np.testing.assert_allclose(agreement(coded + 0.1, coded, 0 * hole), 0.5, atol=1e-3)


def test_box_mean_is_the_mean_of_the_pixels_inside():
    image = np.asarray(_noise(2, 1, 9, 11))
    found = np.asarray(box_mean(jnp.asarray(image), 2))
    for row, column in ((0, 0), (4, 5), (8, 10), (1, 9)):
        window = image[0, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        np.testing.assert_allclose(found[0, row, column], window.mean(), rtol=1e-4, atol=1e-6)
