"""Finding the point that a path turns about."""

import numpy as np
import pytest

from worldstereo_jax.geometry.camera_io import read_camera_json
from worldstereo_jax.geometry.cameras import invert_rigid
from worldstereo_jax.geometry.pivot import pivot_depth
from worldstereo_jax.geometry.rotations import axis_angle_to_matrix
from worldstereo_jax.geometry.trajectories import make_path


def moved(path, shift=(3.0, -1.0, 2.0)):
    """The same path elsewhere in another world."""
    world = np.eye(4, dtype=np.float32)
    world[:3, :3] = np.asarray(axis_angle_to_matrix(np.array([0.3, -0.5, 0.2], np.float32)))
    world[:3, 3] = shift
    return np.asarray(path) @ np.asarray(invert_rigid(world))


@pytest.mark.parametrize("name", ["orbit", "up", "left", "right", "loop", "spiral"])
@pytest.mark.parametrize("depth", [0.7, 4.0])
def test_the_presets_have_their_pivot_where_they_were_told(name, depth):
    path = moved(make_path(name, 9, pivot_depth=depth))
    assert pivot_depth(path) == pytest.approx(depth, rel=1e-3)


@pytest.mark.parametrize("name", ["dolly"])
def test_parallel_axes_have_none(name):
    assert pivot_depth(moved(make_path(name, 9))) is None


def test_a_turn_on_the_spot_has_none():
    assert pivot_depth(moved(make_path("pan", 9))) is None


def test_looking_away_from_where_the_axes_meet_has_none():
    path = np.array(make_path("right", 9, pivot_depth=2.0))
    path[:, 2, :] *= -1  # each camera turned about, handedness kept by turning x as well
    path[:, 0, :] *= -1
    assert pivot_depth(moved(path)) is None


@pytest.mark.parametrize(
    ("scene", "depth"),
    [
        ("single_view/photorealistic-indoor-dining_spaces-030", 1.5),
        ("single_view/stylized-outdoor-aquatic_landscape-069", 8.75),
        ("panorama/scene0/view0/traj0", 0.8),
        ("panorama/scene0/view0/traj2", 0.8),
    ],
)
def test_official_paths(shared_dir, scene, depth):
    w2c = read_camera_json(shared_dir / "data" / scene / "camera.json")[0]
    assert pivot_depth(w2c) == pytest.approx(depth, rel=2e-2)
