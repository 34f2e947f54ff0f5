"""A model written and read back, by hand and, where it is installed, by COLMAP itself."""

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_jax.data.colmap_export import export_colmap
from worldstereo_jax.data.export import ExportPoints, ExportView
from worldstereo_jax.data.images import read_image
from worldstereo_jax.errors import InputError


def views():
    rng = np.random.default_rng(0)
    found = []
    for i in range(3):
        w2c = np.eye(4)
        w2c[:3, :3] = Rotation.random(rng=rng).as_matrix()
        w2c[:3, 3] = rng.normal(size=3)
        k = np.array([[50.0 + i, 0, 31.5], [0, 52.0, 24.25], [0, 0, 1]])
        found.append(ExportView(f"view0-traj1-{i:04d}", rng.uniform(-1, 1, (48, 64, 3)), w2c, k))
    return found


POINTS = np.random.default_rng(1).normal(size=(5, 3))
COLOURS = np.linspace(-1, 1, 15).reshape(5, 3)


def test_cameras_poses_and_points_come_back(tmp_path):
    given = views()
    out = export_colmap(tmp_path / "model", given, ExportPoints(POINTS, COLOURS))
    model = out / "sparse" / "0"
    cameras = (model / "cameras.txt").read_text().splitlines()
    images = (model / "images.txt").read_text().splitlines()
    assert len(images) == 2 * len(given)
    assert not any(images[1::2])
    for view, camera, image in zip(given, cameras, images[::2], strict=True):
        number, kind, width, height, *lens = camera.split()
        assert (kind, int(width), int(height)) == ("PINHOLE", 64, 48)
        k = np.asarray(view.intrinsics)
        np.testing.assert_allclose(np.array(lens, float), k[[0, 1, 0, 1], [0, 1, 2, 2]])
        values = image.split()
        assert (values[0], values[8], values[9]) == (number, number, f"{view.camera_id}.png")
        w, x, y, z = (float(value) for value in values[1:5])
        turn = Rotation.from_quat([x, y, z, w]).as_matrix()
        np.testing.assert_allclose(turn, view.w2c[:3, :3], atol=1e-12)
        np.testing.assert_allclose(np.array(values[5:8], float), view.w2c[:3, 3])
        picture = read_image(out / "images" / values[9])
        np.testing.assert_allclose(picture, view.image, atol=1 / 127)
    points = np.loadtxt(model / "points3D.txt")
    np.testing.assert_allclose(points[:, 1:4], POINTS, rtol=1e-6)
    np.testing.assert_allclose(points[:, 4:7], (COLOURS + 1) * 127.5, atol=0.5)


def test_colmap_reads_it(tmp_path):
    colmap = pytest.importorskip(
        "pycolmap", reason="pycolmap (the evaluate extra) is not installed"
    )
    given = views()
    out = export_colmap(tmp_path / "model", given, ExportPoints(POINTS, COLOURS))
    model = colmap.Reconstruction(out / "sparse" / "0")
    assert len(model.points3D) == 5
    by_name = {image.name: image for image in model.images.values()}
    for view in given:
        image = by_name[f"{view.camera_id}.png"]
        pose = image.cam_from_world()
        np.testing.assert_allclose(pose.matrix(), view.w2c[:3], atol=1e-9)
        np.testing.assert_allclose(image.camera.calibration_matrix(), view.intrinsics)


def test_bad_input_is_named_and_leaves_nothing(tmp_path):
    first, second, _ = views()
    skewed = np.asarray(first.intrinsics) + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    bad = {
        "no views": ([],),
        "share the id": ([first, first],),
        "cannot name a file": ([ExportView("a/b", first.image, first.w2c, first.intrinsics)],),
        "skew": ([second, ExportView("b", first.image, first.w2c, skewed)],),
    }
    for message, arguments in bad.items():
        with pytest.raises(InputError, match=message):
            export_colmap(tmp_path / "model", *arguments)
    assert not (tmp_path / "model").exists()
