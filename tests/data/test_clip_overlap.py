"""Overlap of views of a wall that can be worked out by hand."""

import numpy as np

from worldstereo_jax.data.clip_overlap import coarse_size, overlaps, shown_again

HEIGHT, WIDTH = 16, 32
# At depth 2 the image is as wide as 4 units, and as high as 2.
K = np.array([[16.0, 0, 16], [0, 16, 8], [0, 0, 1]], np.float32)
WALL = np.full((HEIGHT, WIDTH), 2, np.float32)


def shifted(*right: float) -> np.ndarray:
    """Cameras so far to the right of the first."""
    w2c = np.tile(np.eye(4, dtype=np.float32), (len(right), 1, 1))
    w2c[:, 0, 3] = -np.array(right)
    return w2c


def lenses(w2c: np.ndarray) -> np.ndarray:
    return np.stack([K] * len(w2c))


def test_a_wall_is_left_by_as_much_as_the_camera_moves():
    w2c = shifted(0, 1, 2, 3.5, 5)
    shares = shown_again(WALL, w2c, lenses(w2c))
    np.testing.assert_allclose(shares, [1, 0.75, 0.5, 0.125, 0])
    # In any world, and whatever the rows that are unknown.
    world = np.eye(4, dtype=np.float32)
    world[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    world[:3, 3] = [5, 6, 7]
    part = WALL.copy()
    part[:5] = 0
    np.testing.assert_allclose(shown_again(part, w2c @ world, lenses(w2c)), shares, atol=0.04)
    # A camera that has turned round shows nothing, and nothing known is nothing shown.
    back = shifted(0, 0)
    back[1, :3, :3] = np.diag([-1, 1, -1])
    np.testing.assert_array_equal(shown_again(WALL, back, lenses(back)), [1, 0])
    # Nor where what lies behind it would fall inside were its depth 1.
    back[1, :3, 3] = [4, 2, 0]
    np.testing.assert_array_equal(shown_again(WALL, back, lenses(back)), [1, 0])
    np.testing.assert_array_equal(shown_again(0 * WALL, back, lenses(back)), [0, 0])


def test_known_depth_hides_what_lies_behind_it():
    w2c = shifted(0, 0, 0)
    depth = np.stack([WALL, WALL, WALL])
    depth[1, :, :8] = 1.0
    depth[2, :, :8] = 0
    depth[1, :, 8:16] = 1.95
    np.testing.assert_allclose(shown_again(WALL, w2c, lenses(w2c), depth), [1, 0.75, 1])


def test_the_least_share_decides():
    assert overlaps(np.array([0.95, 0.5]))
    assert overlaps(np.array([0.3]))
    assert not overlaps(np.array([0.95, 0.2]))
    assert not overlaps(np.array([0.95, 0.97]))
    assert overlaps(np.array([0.97]), (0.9, 1.0))
    assert coarse_size(480, 832) == (32, 55)
    assert coarse_size(16, 32) == (16, 32)
