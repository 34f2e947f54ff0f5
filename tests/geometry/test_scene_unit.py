import numpy as np
import pytest

from worldstereo_jax.geometry.scene_unit import middle_depth, path_unit
from worldstereo_jax.geometry.trajectories import make_path


def test_a_path_s_unit_is_measured_in_the_view_that_looks_at_its_pivot():
    depth = np.stack([np.full((8, 8), 2.0), np.full((8, 8), 5.0)]).astype(np.float32)
    behind = np.diag([-1.0, 1.0, -1.0, 1.0]).astype(np.float32)
    w2c = np.stack([behind, np.eye(4, dtype=np.float32)])
    path = np.asarray(make_path("orbit", 9, pivot_depth=10.0))
    assert path_unit(depth, w2c, [path]) == pytest.approx(2.0, rel=1e-3)
    assert path_unit(depth[:1], w2c[:1], [path]) == 1.0
    assert path_unit(depth, w2c, [np.asarray(make_path("pan", 9))]) == 1.0
    # A view that stands at the pivot itself says nothing, and not NaN.
    at_pivot = np.eye(4, dtype=np.float32)[None]
    at_pivot[0, 2, 3] = -10.0
    three, depths = np.concatenate([w2c, at_pivot]), np.concatenate([depth, depth[:1]])
    assert path_unit(depths, three, [path]) == pytest.approx(2.0, rel=1e-3)


def test_the_middle_counts_unless_nothing_is_known_there():
    depth = np.full((8, 8), 9.0, np.float32)
    depth[2:6, 2:6] = 2.0
    depth[3, 3] = 0
    assert middle_depth(depth) == 2.0
    depth[2:6, 2:6] = 0
    assert middle_depth(depth) == 9.0
