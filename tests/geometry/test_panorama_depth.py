"""Views of one place whose depth is made to agree."""

import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.geometry.cameras import pixel_directions, pixel_grid
from worldstereo_jax.geometry.panorama_depth import agree_on_depth, share_a_centre
from worldstereo_jax.geometry.rotations import axis_angle_to_matrix

_SIZE = (36, 48)
_K = np.array([[30.0, 0, 24.0], [0, 30.0, 18.0], [0, 0, 1]], np.float32)


def _ring(views: int = 8) -> np.ndarray:
    """Cameras at the origin that look around, with the same way up."""
    w2c = np.tile(np.eye(4, dtype=np.float32), (views, 1, 1))
    for i in range(views):
        turn = np.array([0.0, 2 * np.pi * i / views, 0.0], np.float32)
        w2c[i, :3, :3] = np.asarray(axis_angle_to_matrix(turn)).T
    return w2c


def _box_depth(w2c: np.ndarray) -> np.ndarray:
    """Camera z of the walls of a room of 4 x 3 x 6 about the origin."""
    rays = np.asarray(pixel_directions(pixel_grid(*_SIZE), _K))
    world = np.einsum("vji,hwj->vhwi", w2c[:, :3, :3], rays)
    half = np.array([2.0, 1.5, 3.0])
    return (half / np.maximum(np.abs(world), 1e-9)).min(-1).astype(np.float32)


@pytest.fixture(scope="module")
def ring():
    w2c = _ring()
    return w2c, _box_depth(w2c), np.broadcast_to(_K, (len(w2c), 3, 3)).copy()


def _spread(depth, truth):
    """Deviation of the log error over all pixels: 0 when right up to one scale."""
    return np.std(np.log(np.asarray(depth) / truth))


def test_true_depth_stays(ring):
    w2c, truth, intrinsics = ring
    found = agree_on_depth(jnp.asarray(truth), w2c, intrinsics)
    # Bilinear reading of a distance that is curved and has creases.
    assert np.median(np.abs(np.asarray(found) / truth - 1)) < 5e-3
    assert np.abs(np.asarray(found) / truth - 1).max() < 0.06


def test_scales_of_the_views_are_found(ring):
    w2c, truth, intrinsics = ring
    scale = np.exp(0.4 * np.random.default_rng(0).normal(size=len(w2c))).astype(np.float32)
    estimate = truth * scale[:, None, None]
    found = agree_on_depth(jnp.asarray(estimate), w2c, intrinsics)
    assert _spread(estimate, truth) > 0.2
    assert _spread(found, truth) < 0.02
    # The mean of the log scales is kept.
    mean = np.exp(np.log(scale).mean())
    np.testing.assert_allclose(np.median(np.asarray(found) / truth), mean, rtol=0.02)


def test_views_agree_afterwards_where_they_overlap(ring):
    w2c, truth, intrinsics = ring
    rng = np.random.default_rng(1)
    tilt = rng.normal(size=(len(w2c), 2, 1, 1)).astype(np.float32)
    x, y = np.moveaxis(np.asarray(pixel_grid(*_SIZE)) / np.array([48, 36]) - 0.5, -1, 0)
    estimate = truth * np.exp(0.5 * (tilt[:, 0] * x + tilt[:, 1] * y)).astype(np.float32)
    found = np.asarray(agree_on_depth(jnp.asarray(estimate), w2c, intrinsics))
    # A neighbour is 45 degrees away and 77 are seen: the right edge of one is in the other.
    rays = np.asarray(pixel_directions(pixel_grid(*_SIZE), _K))
    length = np.linalg.norm(rays, axis=-1)

    def jump(depth):
        distance = np.log(depth * length)
        column = 24 + 30 * np.tan(np.radians(22.5))
        left, right = round(column - 0.5), round(48 - column - 0.5)
        # The same rays, half-way between the two views, at mid height.
        return max(abs(distance[i, 18, left] - distance[(i + 1) % 8, 18, right]) for i in range(8))

    assert jump(found) < 0.3 * jump(estimate)


def test_which_views_share_a_centre(ring):
    w2c, truth, _ = ring
    assert share_a_centre(w2c, truth)
    moved = w2c.copy()
    moved[3, :3, 3] += 0.1
    assert not share_a_centre(moved, truth)
    assert not share_a_centre(w2c, np.zeros_like(truth))


def test_one_view_is_its_own_panorama(ring):
    w2c, truth, intrinsics = ring
    found = agree_on_depth(jnp.asarray(truth[:1]), w2c[:1], intrinsics[:1])
    np.testing.assert_allclose(found, truth[:1], rtol=1e-4)
