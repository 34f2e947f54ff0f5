import numpy as np
import pytest

from worldstereo_jax.geometry.sparse_depth import unit_of_points

HEIGHT, WIDTH = 16, 32
# At depth 2 the image is as wide as 4 units, and as high as 2.
K = np.array([[16.0, 0, 16], [0, 16, 8], [0, 0, 1]], np.float32)
WALL = np.full((HEIGHT, WIDTH), 2, np.float32)


def test_points_give_estimated_depth_its_unit():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1.9, 1.9, 30), rng.uniform(-0.9, 0.9, 30)
    points = np.stack([x, y, np.full(30, 2.0)], -1) * 10
    # Hidden, stray and behind the camera.
    stray = np.array([[0, 0, 50.0], [3, 0, 90], *[[0, 0, -5]] * 40])
    pose = np.eye(4, dtype=np.float32)
    pose[:3, 3] = [4, 5, 6]
    world = np.concatenate([points, stray]) - pose[:3, 3]
    assert unit_of_points(WALL, world, pose, K) == pytest.approx(10)
    assert unit_of_points(WALL, world[:7], pose, K) is None
    part = WALL.copy()
    part[:, :16] = 0
    assert unit_of_points(part, world, pose, K) == pytest.approx(10)
