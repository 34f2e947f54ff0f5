"""transforms.json and camera_path.json: axes, lenses of every kind, what was applied, faults."""

import json
import math

import numpy as np
import pytest

from tests.posed_cameras import SIZE, random_cameras
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import inverse, read_cameras, write_cameras

ENDED = [0.0, 0.0, 0.0, 1.0]


def content(**changes) -> dict:
    """Two frames whose cameras look along the world's -z (OpenGL's identity), 3 apart."""
    moved = np.eye(4)
    moved[0, 3] = 3
    fields = {
        "w": 64,
        "h": 48,
        "fl_x": 50.0,
        "fl_y": 51.0,
        "cx": 31.0,
        "cy": 25.0,
        "frames": [
            {"file_path": "images/10.png", "transform_matrix": moved.tolist()},
            {"file_path": "images/9.png", "transform_matrix": np.eye(4).tolist()},
        ],
    }
    return {name: value for name, value in (fields | changes).items() if value is not None}


def read(tmp_path, fields, **options):
    file = tmp_path / "transforms.json"
    file.write_text(json.dumps(fields))
    return read_cameras(file, **options)


def test_axes_are_turned_and_frames_come_by_name(tmp_path):
    found = read(tmp_path, content())
    assert found.names == ("images/9.png", "images/10.png")
    c2w = inverse(found.w2c)
    # OpenGL's camera looks along its -z, with y up.
    np.testing.assert_allclose(c2w[0, :3, 2], [0, 0, -1], atol=1e-12)
    np.testing.assert_allclose(c2w[0, :3, 1], [0, -1, 0], atol=1e-12)
    np.testing.assert_allclose(c2w[:, :3, 3], [[0, 0, 0], [3, 0, 0]], atol=1e-12)
    np.testing.assert_allclose(found.intrinsics[0], [[50, 0, 31], [0, 51, 25], [0, 0, 1]])
    assert found.size == SIZE


def test_lenses_by_frame_come_back(tmp_path):
    given = random_cameras()
    given.intrinsics[2, 0, 0] = 70
    write_cameras(tmp_path / "transforms.json", given, "nerfstudio")
    found = read_cameras(tmp_path / "transforms.json")
    np.testing.assert_allclose(found.intrinsics, given.intrinsics)
    assert found.names == given.names


def test_a_field_of_view_is_a_lens_too(tmp_path):
    bare = {"fl_x": None, "fl_y": None, "cx": None, "cy": None}
    right = {"camera_angle_x": math.pi / 2}
    found = read(tmp_path, content(**bare, **right))
    np.testing.assert_allclose(found.intrinsics[0], [[32, 0, 32], [0, 32, 24], [0, 0, 1]])
    both = read(tmp_path, content(**bare, **right, camera_angle_y=2 * math.atan(0.5)))
    np.testing.assert_allclose(both.intrinsics[0, 1, 1], 48)
    # As Blender's scenes come: the images tell their size.
    sizeless = content(**bare, **right, w=None, h=None)
    with pytest.raises(InputError, match="'w' and 'h' are missing, so the image's size"):
        read(tmp_path, sizeless)
    given = read(tmp_path, sizeless, size=(100, 200))
    np.testing.assert_allclose(given.intrinsics[0], [[100, 0, 100], [0, 100, 50], [0, 0, 1]])


def test_what_was_applied_to_the_world_is_undone(tmp_path):
    given = random_cameras()
    write_cameras(tmp_path / "transforms.json", given, "nerfstudio")
    fields = json.loads((tmp_path / "transforms.json").read_text())
    applied = np.array([[1.0, 0, 0, 0.5], [0, 0, 1, -2], [0, -1, 0, 3], ENDED])
    for frame in fields["frames"]:
        pose = applied @ np.array(frame["transform_matrix"])
        pose[:3, 3] *= 0.25
        frame["transform_matrix"] = pose.tolist()
    scaled = fields | {"applied_transform": applied[:3].tolist(), "applied_scale": 0.25}
    np.testing.assert_allclose(read(tmp_path, scaled).w2c, given.w2c, atol=1e-12)
    for wrong, said in (
        (np.diag([1.0, 1, -1, 1])[:3].tolist(), "must be a rotation, perhaps scaled"),
        (np.diag([1.0, 1, 2, 1])[:3].tolist(), "must be a rotation, perhaps scaled"),
        ([[1, 2], [3, 4]], "4 x 4"),
        ("none", "4 x 4"),
    ):
        with pytest.raises(InputError, match=f"'applied_transform' .*{said}"):
            read(tmp_path, fields | {"applied_transform": wrong})
    with pytest.raises(InputError, match="'applied_scale' must be positive"):
        read(tmp_path, fields | {"applied_scale": -1.0})


def _frame(**changes):
    frame = {"file_path": "9.png", "transform_matrix": np.eye(4).tolist()} | changes
    return [{name: value for name, value in frame.items() if value is not None}]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"frames": []}, "'frames' must be a list of frames, and not empty"),
        ({"frames": [1]}, r"'frames\[0\]' must be an object"),
        ({"frames": _frame(file_path=None)}, r"'frames\[0\].file_path' must be text"),
        ({"frames": _frame(transform_matrix=None)}, "'transform_matrix' must be a 4 x 4 matrix"),
        ({"frames": _frame(transform_matrix=[[1], [2, 3]])}, "must be a 4 x 4 matrix"),
        ({"frames": _frame(transform_matrix=np.full((4, 4), 1e999).tolist())}, "NaN or infinity"),
        ({"frames": _frame(transform_matrix=np.ones((4, 4)).tolist())}, "row 0 0 0 1"),
        ({"frames": _frame(transform_matrix=np.diag([2.0, 2, 2, 1]).tolist())}, "no rotation"),
        ({"frames": [*_frame(), *_frame(w=32)]}, "differ in size"),
        ({"k1": 0.1}, r"its lens \(PINHOLE, k1\) is no pinhole"),
        ({"camera_model": "OPENCV_FISHEYE"}, r"its lens \(OPENCV_FISHEYE\) is no pinhole"),
        ({"is_fisheye": True}, "no pinhole"),
        ({"fl_x": None}, "'fl_x' is missing, and 'camera_angle_x' too"),
        ({"fl_x": -1}, r"'frames\[1\]': both focal lengths must be positive"),
        ({"fl_x": "50"}, "'fl_x' must be a finite number"),
        ({"w": None}, "'w' must be a finite number"),
        ({"fl_x": None, "camera_angle_x": 4}, "'camera_angle_x' must be an angle"),
    ],
)
def test_each_fault_names_frame_and_field(tmp_path, changes, said):
    with pytest.raises(InputError, match=said) as raised:
        read(tmp_path, content(**changes))
    assert str(tmp_path / "transforms.json") in str(raised.value)


def test_zero_distortion_is_a_pinhole(tmp_path):
    assert len(read(tmp_path, content(camera_model="OPENCV", k1=0, k2=0.0, p1=0, p2=0))) == 2


def path_content(**changes) -> dict:
    pose = np.eye(4)
    pose[0, 3] = 2
    cameras = [
        {"camera_to_world": matrix.reshape(-1).tolist(), "fov": 90, "aspect": 1.5}
        for matrix in (np.eye(4), pose)
    ]
    fields = {"render_height": 40, "render_width": 60, "camera_path": cameras}
    return fields | {"camera_type": "perspective", "fps": 24} | changes


def test_a_path_of_the_viewer_has_a_vertical_field_of_view(tmp_path):
    found = read(tmp_path, path_content())
    np.testing.assert_allclose(found.intrinsics[1], [[20, 0, 30], [0, 20, 20], [0, 0, 1]])
    assert found.size == (40, 60)
    c2w = inverse(found.w2c)
    np.testing.assert_allclose(c2w[1, :3, 3], [2, 0, 0], atol=1e-12)
    np.testing.assert_allclose(c2w[1, :3, 2], [0, 0, -1], atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"camera_type": "equirectangular"}, "only 'perspective' is a pinhole"),
        ({"camera_path": []}, "must be a list of cameras"),
        ({"camera_path": [3]}, r"'camera_path\[0\]' must be an object"),
        ({"camera_path": [{"camera_to_world": [1.0] * 12}]}, "must be a list of 16 numbers"),
        ({"render_width": 0}, "'render_width' must be positive"),
        (
            {"camera_path": [{"camera_to_world": np.eye(4).reshape(-1).tolist(), "fov": 180}]},
            "'fov' must be below 180",
        ),
    ],
)
def test_each_fault_of_a_path_is_named(tmp_path, changes, said):
    with pytest.raises(InputError, match=said):
        read(tmp_path, path_content(**changes))
