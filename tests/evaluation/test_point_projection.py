"""The same numbers as the jax forms give."""

import numpy as np
from scipy.spatial.transform import Rotation

from worldstereo_jax.evaluation.point_projection import project_points, unproject_pixels
from worldstereo_jax.geometry.cameras import project, unproject


def test_both_ways_equal_jax_and_undo_each_other():
    rng = np.random.default_rng(0)
    points = rng.normal(size=(50, 3))
    w2c, k = np.eye(4), np.array([[40.0, 1.5, 32], [0, 42, 24], [0, 0, 1]])
    w2c[:3, :3] = Rotation.random(rng=rng).as_matrix()
    w2c[:3, 3] = [0.1, -0.2, 4]
    pixels, depth = project_points(points, w2c, k)
    expected = project(points.astype(np.float32), w2c, k)
    np.testing.assert_allclose(pixels, expected[0], rtol=1e-3)
    np.testing.assert_allclose(depth, expected[1], rtol=1e-4)
    back = unproject_pixels(pixels, depth, w2c, k)
    np.testing.assert_allclose(back, points, atol=1e-9)
    np.testing.assert_allclose(back, unproject(pixels, depth, w2c, k), atol=1e-4)
