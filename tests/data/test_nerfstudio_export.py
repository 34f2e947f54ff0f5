"""A data set written and read back."""

import json

import numpy as np
import pytest

from worldstereo_jax.data.export import ExportPoints, ExportView
from worldstereo_jax.data.images import read_image
from worldstereo_jax.data.nerfstudio_export import export_nerfstudio
from worldstereo_jax.data.point_cloud_io import read_point_cloud
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import read_cameras
from worldstereo_jax.geometry.trajectories import make_path


def views(zoom=0.0):
    rng, path = np.random.default_rng(0), np.asarray(make_path("orbit", 3))
    lens = np.array([[50.0, 0, 31.5], [0, 52.0, 24.25], [0, 0, 1]])
    return [
        ExportView(
            f"clip-{i:04d}",
            rng.uniform(-1, 1, (48, 64, 3)),
            path[i],
            lens * [[1 + zoom * i], [1 + zoom * i], [1]],
        )
        for i in range(3)
    ]


@pytest.mark.parametrize("zoom", [0.0, 0.1])
def test_cameras_images_and_points_come_back(tmp_path, zoom):
    given, points = views(zoom), np.random.default_rng(1).normal(size=(4, 3)).astype(np.float32)
    out = export_nerfstudio(tmp_path / "data", given, ExportPoints(points, np.zeros((4, 3))))
    found = read_cameras(out / "transforms.json")
    assert found.size == (48, 64)
    np.testing.assert_allclose(found.w2c, [view.w2c for view in given], atol=1e-6)
    np.testing.assert_allclose(found.intrinsics, [view.intrinsics for view in given], rtol=1e-12)
    for name, view in zip(found.names, given, strict=True):
        np.testing.assert_allclose(read_image(out / name), view.image, atol=1 / 127)
    content = json.loads((out / "transforms.json").read_text())
    np.testing.assert_array_equal(read_point_cloud(out / content["ply_file_path"])[0], points)
    # Camera to world, OpenGL: the camera looks along its -z.
    first = np.array(content["frames"][1]["transform_matrix"])
    np.testing.assert_allclose(-first[:3, 2], np.asarray(given[1].w2c)[2, :3], atol=1e-6)


def test_without_points_none_are_named(tmp_path):
    out = export_nerfstudio(tmp_path / "data", views())
    assert "ply_file_path" not in json.loads((out / "transforms.json").read_text())
    assert not (out / "points.ply").exists()


def test_bad_input_is_named_and_leaves_nothing(tmp_path):
    first, second, _ = views()
    skewed = np.asarray(first.intrinsics) + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    small = ExportView("small", first.image[:40], first.w2c, first.intrinsics)
    bad = {
        "no views": ([],),
        "share the id": ([first, first],),
        "must be of one size": ([first, small],),
        "has skew": ([second, ExportView("b", first.image, first.w2c, skewed)],),
    }
    for message, arguments in bad.items():
        with pytest.raises(InputError, match=message):
            export_nerfstudio(tmp_path / "data", *arguments)
    assert not (tmp_path / "data").exists()
