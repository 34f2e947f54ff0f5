"""Detail goes back exactly where the frame agrees with the memory's warp."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.sampling.detail import box_mean, calm_guesses, restore_detail


def _noise(seed: int, *shape: int) -> jax.Array:
    return 0.3 * jax.random.uniform(jax.random.key(seed), shape, minval=-1.0)


@pytest.mark.row("S21")
def test_an_agreeing_frame_becomes_the_warp_where_it_is_covered():
    warp, coded = _noise(0, 2, 24, 32, 3), _noise(1, 2, 24, 32, 3)
    hole = jnp.zeros((2, 24, 32)).at[:, :, 20:].set(1.0)
    result = np.asarray(restore_detail(coded, warp, coded, hole))
    np.testing.assert_allclose(result[:, :, :20], warp[:, :, :20], atol=1e-6)
    np.testing.assert_array_equal(result[:, :, 20:], np.asarray(coded)[:, :, 20:])


def test_a_frame_that_departs_from_the_warp_keeps_its_own_pixels():
    warp, coded = _noise(0, 1, 24, 32, 3), _noise(1, 1, 24, 32, 3)
    video = coded + 0.6
    result = restore_detail(video, warp, coded, jnp.zeros((1, 24, 32)))
    assert float(jnp.abs(result - video.clip(-1, 1)).mean()) < 0.02


def test_box_mean_is_the_mean_of_the_pixels_inside():
    image = np.asarray(_noise(2, 1, 9, 11))
    found = np.asarray(box_mean(jnp.asarray(image), 2))
    for row, column in ((0, 0), (4, 5), (8, 10), (1, 9)):
        window = image[0, max(row - 2, 0) : row + 3, max(column - 2, 0) : column + 3]
        np.testing.assert_allclose(found[0, row, column], window.mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.row("S17")
def test_guesses_keep_what_is_broad_and_lose_the_grid_of_tokens():
    warp, coded = _noise(0, 1, 96, 96, 3), _noise(1, 1, 96, 96, 3)
    tokens = jnp.indices((6, 6)).sum(0) % 2 * 0.4 - 0.2
    grid = jnp.kron(tokens, jnp.ones((16, 16)))[None, ..., None]
    unseen = jnp.ones((1, 96, 96)).at[:, :, :32].set(0.0)
    calm = np.asarray(calm_guesses(coded + 0.2 + grid, warp, coded, unseen))
    np.testing.assert_array_equal(calm[:, :, :32], (coded + 0.2 + grid).clip(-1, 1)[:, :, :32])
    inside = np.s_[:, 16:-16, 48:-16]
    left = calm[inside] - np.asarray(warp + 0.2)[inside]
    assert np.abs(left).max() < 0.1 * 0.4


def test_guesses_equal_to_the_coded_warp_become_the_warp():
    warp, coded = _noise(0, 2, 24, 32, 3), _noise(1, 2, 24, 32, 3)
    calm = calm_guesses(coded, warp, coded, jnp.ones((2, 24, 32)))
    np.testing.assert_allclose(calm, warp, atol=1e-6)
