import numpy as np
import pytest
from plyfile import PlyData

from worldstereo_jax.data.point_cloud_io import read_point_cloud, write_point_cloud
from worldstereo_jax.errors import InputError


def _cloud(count: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    points = rng.normal(size=(count, 3)).astype(np.float32)
    colors = rng.integers(0, 256, (count, 3)).astype(np.float32) / np.float32(127.5) - 1
    return points, colors


def test_round_trip_is_exact(tmp_path):
    points, colors = _cloud()
    assert write_point_cloud(tmp_path / "points.ply", points, colors) == 50
    again, colors_again = read_point_cloud(tmp_path / "points.ply")
    np.testing.assert_array_equal(again, points)
    np.testing.assert_allclose(colors_again, colors, atol=1e-6)
    assert [p.name for p in tmp_path.iterdir()] == ["points.ply"]


def test_only_valid_points_are_written(tmp_path):
    points, colors = _cloud()
    valid = np.arange(50) % 3 == 0
    points[~valid] = np.nan
    assert write_point_cloud(tmp_path / "points.ply", points, colors, valid) == valid.sum()
    again, colors_again = read_point_cloud(tmp_path / "points.ply")
    np.testing.assert_array_equal(again, points[valid])
    np.testing.assert_allclose(colors_again, colors[valid], atol=1e-6)
    assert write_point_cloud(tmp_path / "none.ply", points, colors, np.zeros(50, bool)) == 0
    assert read_point_cloud(tmp_path / "none.ply")[0].shape == (0, 3)


def test_normals_are_written_where_given(tmp_path):
    points, colors = _cloud()
    valid = np.arange(50) % 2 == 0
    normals = points / np.linalg.norm(points, axis=-1, keepdims=True)
    write_point_cloud(tmp_path / "surface.ply", points, colors, valid, normals=normals)
    vertices = PlyData.read(tmp_path / "surface.ply")["vertex"]
    stored = np.stack([vertices[name] for name in ("nx", "ny", "nz")], -1)
    np.testing.assert_array_equal(stored, normals[valid])
    np.testing.assert_array_equal(read_point_cloud(tmp_path / "surface.ply")[0], points[valid])


def test_unusable_files_are_named(tmp_path):
    points, colors = _cloud()
    write_point_cloud(tmp_path / "whole.ply", points, colors)
    whole = (tmp_path / "whole.ply").read_bytes()
    (tmp_path / "cut.ply").write_bytes(whole[:-100])
    (tmp_path / "text.ply").write_text("no cloud")
    (tmp_path / "grey.ply").write_text(
        "ply\nformat ascii 1.0\nelement vertex 1\nproperty float x\nproperty float y\n"
        "property float z\nend_header\n1 2 3\n"
    )
    (tmp_path / "faces.ply").write_text(
        "ply\nformat ascii 1.0\nelement face 1\nproperty int a\nend_header\n1\n"
    )
    for name, words in (
        ("cut.ply", "cannot be read"),
        ("text.ply", "cannot be read"),
        ("grey.ply", "property 'red'"),
        ("faces.ply", "element 'vertex'"),
        ("missing.ply", "does not exist"),
    ):
        with pytest.raises(InputError, match=words) as raised:
            read_point_cloud(tmp_path / name)
        assert name in str(raised.value)
