import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers, project
from worldstereo_jax.geometry.rotations import look_at
from worldstereo_jax.geometry.trajectories import (
    PATHS,
    interpolate_cameras,
    make_path,
    path_names,
)

_AROUND_PIVOT = ("orbit", "spiral", "up", "left", "right", "loop")


def _keyframes() -> np.ndarray:
    eye = np.array([[1.0, 0, 0], [1.5, -0.3, 0.2], [2.4, 0.1, 0.1], [2.0, 0.4, 1.0]])
    target = np.array([[1.0, 0, 5], [1.0, 0.5, 5], [0.0, 0.2, 5], [2.0, -1.0, 5]])
    return np.asarray(look_at(eye, target))


def test_names_are_those_the_command_line_offers():
    assert set(PATHS) == {
        "orbit", "dolly", "pan", "spiral", "up", "left", "right", "loop", "spline",
    }  # fmt: skip
    assert set(path_names()) == set(PATHS) - {"spline"}


@pytest.mark.parametrize("name", path_names())
def test_presets_start_at_identity_are_rigid_and_gentle_at_both_ends(name):
    path = np.asarray(make_path(name, 41, pivot_depth=3.0))
    assert path.shape == (41, 4, 4)
    assert path.dtype == np.float32
    np.testing.assert_array_equal(path[0], np.eye(4))
    rotation = path[:, :3, :3]
    np.testing.assert_allclose(
        rotation @ np.swapaxes(rotation, 1, 2), np.broadcast_to(np.eye(3), (41, 3, 3)), atol=1e-5
    )
    np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
    step = np.abs(np.diff(path, axis=0)).max(axis=(1, 2))
    assert step.max() > 1e-3
    assert step[0] < 0.4 * step.max()
    assert step[-1] < 0.4 * step.max()


@pytest.mark.parametrize("name", _AROUND_PIVOT)
def test_paths_about_the_pivot_keep_it_in_the_centre(name):
    path = make_path(name, 9, pivot_depth=2.5)
    for w2c in path:
        pixel, depth = project(np.array([0.0, 0.0, 2.5]), w2c, np.eye(3))
        np.testing.assert_allclose(pixel, 0, atol=1e-5)
        assert depth > 0.5


def test_directions_are_what_their_names_say():
    centre = {name: np.asarray(camera_centers(make_path(name, 9))) for name in path_names()}
    assert centre["up"][-1, 1] < -0.1
    assert centre["left"][-1, 0] < -0.1
    assert centre["right"][-1, 0] > 0.1
    assert centre["dolly"][-1, 2] > 0.1
    np.testing.assert_allclose(centre["dolly"][:, :2], 0, atol=1e-7)
    np.testing.assert_allclose(centre["pan"], 0, atol=1e-7)
    assert np.asarray(make_path("pan", 9))[-1, 0, 2] < -0.1  # what was ahead is now to the left
    assert np.abs(centre["orbit"][:, 0]).max() > 0.1
    assert np.abs(centre["spiral"][:, 1]).max() > 0.1
    np.testing.assert_allclose(make_path("loop", 9)[-1], np.eye(4), atol=1e-6)


@pytest.mark.parametrize("name", path_names())
def test_distances_scale_with_the_pivot_and_zero_amplitude_stands_still(name):
    near, far = (np.asarray(make_path(name, 7, pivot_depth=d)) for d in (1.0, 4.0))
    np.testing.assert_allclose(near[:, :3, :3], far[:, :3, :3], atol=1e-5)
    np.testing.assert_allclose(near[:, :3, 3] * 4, far[:, :3, 3], atol=1e-5)
    still = make_path(name, 7, amplitude=0.0)
    np.testing.assert_allclose(still, np.broadcast_to(np.eye(4), (7, 4, 4)), atol=1e-6)


def test_amplitude_grows_the_move_and_its_sign_turns_it_round():
    right = camera_centers(make_path("right", 5))[-1]
    mirrored = camera_centers(make_path("right", 5, amplitude=-1.0))[-1]
    wide = camera_centers(make_path("right", 5, amplitude=2.0))[-1]
    np.testing.assert_allclose(mirrored[0], -right[0], atol=1e-6)
    assert wide[0] > 1.8 * right[0]


def test_interpolation_reaches_the_keyframes_and_is_smooth_between():
    keyframes = _keyframes()
    exact = interpolate_cameras(keyframes, np.arange(4.0))
    np.testing.assert_allclose(exact, keyframes, atol=1e-5)
    dense = np.asarray(interpolate_cameras(keyframes, np.linspace(0, 3, 301)))
    velocity = np.diff(dense, axis=0)
    jump = np.abs(np.diff(velocity, axis=0)).max(axis=(1, 2))
    assert jump.max() < 0.1 * np.abs(velocity).max()


def test_interpolation_takes_the_short_way_whatever_the_quaternion_signs():
    # Turning past half a turn flips the sign of the quaternion with w >= 0.
    angle = np.radians([170.0, 190.0])
    eye = np.zeros((2, 3))
    keyframes = np.asarray(look_at(eye, np.stack([np.sin(angle), 0 * angle, np.cos(angle)], -1)))
    middle = interpolate_cameras(keyframes, np.array([0.5]))[0]
    np.testing.assert_allclose(middle[2, :3], [0, 0, -1], atol=1e-5)


def test_spline_runs_from_first_to_last_keyframe_in_the_first_ones_frame():
    keyframes = _keyframes()
    path = np.asarray(make_path("spline", 31, keyframes=keyframes))
    np.testing.assert_array_equal(path[0], np.eye(4))
    np.testing.assert_allclose(path[-1], keyframes[-1] @ np.linalg.inv(keyframes[0]), atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"name": "orbitt", "frames": 9}, "'orbit'"),
        ({"name": "Dolly", "frames": 9}, "'dolly'"),
        ({"name": "xyz", "frames": 9}, "spiral"),
        ({"name": "orbit", "frames": 1}, "at least 2"),
        ({"name": "orbit", "frames": 9, "pivot_depth": 0.0}, "pivot depth"),
        ({"name": "orbit", "frames": 9, "amplitude": float("nan")}, "amplitude"),
        ({"name": "dolly", "frames": 9, "amplitude": 1e3}, None),
        ({"name": "dolly", "frames": 9, "amplitude": -1e30}, "from -1000 to 1000"),
        ({"name": "up", "frames": 9, "amplitude": 5.6}, "too large"),
        ({"name": "spline", "frames": 9}, "cameras to pass through"),
        ({"name": "spline", "frames": 9, "keyframes": np.eye(4)[None]}, "at least 2"),
        ({"name": "orbit", "frames": 9, "keyframes": _keyframes()}, "Only the path 'spline'"),
    ],
)
def test_unusable_arguments_end_in_one_sentence(arguments, words):
    if words is None:
        make_path(**arguments)
        return
    with pytest.raises(InputError) as raised:
        make_path(**arguments)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
