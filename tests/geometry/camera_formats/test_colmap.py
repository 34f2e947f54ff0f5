"""COLMAP's models: both kinds of tables, faulty ones, and, where it is installed, COLMAP itself."""

import dataclasses
import struct

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.posed_cameras import random_cameras
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import read_cameras, write_cameras
from worldstereo_jax.geometry.camera_formats.colmap_tables import PARAMETERS

CAMERAS = "# Camera list\n1 SIMPLE_PINHOLE 64 48 50 32 24\n7 OPENCV 64 48 50 51 31 25 0 0 0 0\n"
IMAGES = """# Image list
2 1 0 0 0 1 2 3 7 frame 10.png
1.5 2.5 -1 3 4 5
1 0 1 0 0 4 5 6 1 frame 9.png

"""
POINTS = "3 1 2 3 0 0 0 0.5 1 2\n4 -1 -2 -3 0 0 0 0.5\n"


def model(folder, cameras=CAMERAS, images=IMAGES, points=POINTS):
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("cameras", cameras), ("images", images), ("points3D", points)):
        if text is not None:
            (folder / f"{name}.txt").write_text(text)
    return folder


def binary(folder, cameras=None):
    """The same model in binary."""
    folder.mkdir(parents=True, exist_ok=True)
    lenses = cameras or [(1, 0, (50, 32, 24)), (7, 4, (50, 51, 31, 25, 0, 0, 0, 0))]
    table = struct.pack("<Q", len(lenses))
    for number, kind, values in lenses:
        table += struct.pack(f"<iiQQ{len(values)}d", number, kind, 64, 48, *values)
    (folder / "cameras.bin").write_bytes(table)
    table = struct.pack("<QI7dI", 2, 2, 1, 0, 0, 0, 1, 2, 3, 7) + b"frame 10.png\0"
    table += struct.pack("<Q2dq2dq", 2, 1.5, 2.5, -1, 3, 4, 5)
    table += struct.pack("<I7dI", 1, 0, 1, 0, 0, 4, 5, 6, 1) + b"frame 9.png\0"
    (folder / "images.bin").write_bytes(table + struct.pack("<Q", 0))
    table = struct.pack("<QQ3d3BdQ2i", 2, 3, 1, 2, 3, 0, 0, 0, 0.5, 1, 1, 2)
    table += struct.pack("<Q3d3BdQ", 4, -1, -2, -3, 0, 0, 0, 0.5, 0)
    (folder / "points3D.bin").write_bytes(table)
    return folder


@pytest.mark.parametrize("write", [model, binary])
@pytest.mark.parametrize("below", ["", "sparse", "sparse/0"])
def test_a_model_is_read_by_name_with_the_lens_of_each_image(tmp_path, write, below):
    write(tmp_path / below)
    found = read_cameras(tmp_path)
    assert found.names == ("frame 9.png", "frame 10.png")
    assert found.size == (48, 64)
    np.testing.assert_allclose(found.w2c[0, :3, :3], np.diag([1, -1, -1]), atol=1e-12)
    np.testing.assert_allclose(found.w2c[:, :3, 3], [[4, 5, 6], [1, 2, 3]])
    np.testing.assert_allclose(found.intrinsics[0], [[50, 0, 32], [0, 50, 24], [0, 0, 1]])
    np.testing.assert_allclose(found.intrinsics[1], [[50, 0, 31], [0, 51, 25], [0, 0, 1]])
    np.testing.assert_allclose(found.points, [[1, 2, 3], [-1, -2, -3]])
    assert not found.metric


def test_points_may_be_missing_and_binary_tables_come_first(tmp_path):
    assert read_cameras(model(tmp_path / "a", points=None)).points is None
    both = binary(model(tmp_path / "b", cameras="", images=""))
    assert len(read_cameras(both)) == 2


@pytest.mark.parametrize(
    ("table", "spoil", "by", "said"),
    [
        ("cameras", "SIMPLE_PINHOLE", "PINHOL", "line 2: there is no camera model 'PINHOL'"),
        ("cameras", "50 32 24", "50 32", "line 2: SIMPLE_PINHOLE has the 3 parameters f cx cy"),
        ("cameras", "64 48 50 32 24", "", "line 2 has 2 columns"),
        ("cameras", "25 0 0 0 0", "25 0 0.1 0 0", r"line 3: its lens \(OPENCV\) is no pinhole"),
        ("cameras", "OPENCV", "OPENCV_FISHEYE", "with COLMAP's image_undistorter"),
        ("cameras", "50 51", "50 inf", "line 3: 'inf' is no finite number"),
        ("cameras", "50 51", "50 0", "line 3: both focal lengths must be positive"),
        ("cameras", "7 OPENCV 64 48", "7 OPENCV 65 48", "differ in size"),
        ("cameras", "1 SIMPLE_PINHOLE 64", "1 SIMPLE_PINHOLE 0", "line 2: '0' is no whole number"),
        ("images", "6 1 frame", "6 5 frame", "line 4: there is no camera 5"),
        ("images", "0 1 0 0 4", "0 2 0 0 4", "line 4: the quaternion has length 2"),
        ("images", "4 5 6", "4 nan 6", "line 4: 'nan' is no finite number"),
        ("images", "4 5 6 1 frame 9.png", "4 5 6", "line 4 has 8 columns"),
        ("images", "3 4 5\n", "3 4\n", "line 3 must hold the features X Y POINT3D_ID of frame 10"),
        ("images", IMAGES, "", "its table of images is empty"),
        ("points", "3 1 2 3", "3 1 x 3", "line 1: 'x' is no finite number"),
        ("points", " 0 0 0 0.5\n", "\n", "line 2 has 4 columns"),
    ],
)
def test_each_fault_names_its_row(tmp_path, table, spoil, by, said):
    text = {"cameras": CAMERAS, "images": IMAGES, "points": POINTS}
    assert spoil in text[table]
    model(tmp_path, **{table: text[table].replace(spoil, by)})
    with pytest.raises(InputError, match=said) as raised:
        read_cameras(tmp_path, "colmap")
    assert str(tmp_path) in str(raised.value)


def test_a_lens_that_no_image_has_does_not_matter(tmp_path):
    model(tmp_path, cameras=CAMERAS + "9 FOV 10 10 5 5 5 5 0.5\n")
    assert len(read_cameras(tmp_path)) == 2


def test_several_models_must_be_told_apart(tmp_path):
    for name in ("0", "1"):
        model(tmp_path / "sparse" / name)
    with pytest.raises(InputError, match=r"several models \(0, 1\)"):
        read_cameras(tmp_path)
    assert len(read_cameras(tmp_path / "sparse/1")) == 2


@pytest.mark.parametrize("table", ["cameras", "images", "points3D"])
def test_binary_tables_cut_anywhere_or_too_long_are_refused(tmp_path, table):
    file = binary(tmp_path) / f"{table}.bin"
    content = file.read_bytes()
    for length in {0, 7, 9, len(content) // 2, len(content) - 1}:
        file.write_bytes(content[:length])
        with pytest.raises(InputError, match=f"{table}.bin is cut short"):
            read_cameras(tmp_path)
    file.write_bytes(content + b"12")
    with pytest.raises(InputError, match=f"{table}.bin is 2 bytes longer"):
        read_cameras(tmp_path)


@pytest.mark.parametrize(
    ("lens", "said"),
    [
        ((7, 99, (1.0,)), "camera 7 is of the unknown model 99"),
        ((7, 1, (50, 51, 31, float("nan"))), "camera 7 holds NaN"),
        ((7, 2, (50, 31, 25, 0.1)), r"camera 7: its lens \(SIMPLE_RADIAL\) is no pinhole"),
    ],
)
def test_faulty_lenses_of_binary_tables_are_named(tmp_path, lens, said):
    binary(tmp_path, [(1, 0, (50, 32, 24)), lens])
    with pytest.raises(InputError, match=said):
        read_cameras(tmp_path)


def test_images_of_one_lens_share_a_camera(tmp_path):
    given = random_cameras()
    other = given.intrinsics.copy()
    other[3, 0, 0] = 70
    given = dataclasses.replace(given, intrinsics=other, points=np.eye(3))
    write_cameras(tmp_path / "model", given, "colmap")
    assert len((tmp_path / "model/cameras.txt").read_text().splitlines()) == 2
    found = read_cameras(tmp_path / "model")
    np.testing.assert_allclose(found.intrinsics, other)
    np.testing.assert_allclose(found.points, np.eye(3))
    assert found.names == given.names


@pytest.fixture
def pycolmap():
    return pytest.importorskip("pycolmap", reason="pycolmap (the evaluate extra) is not installed")


def test_colmap_knows_the_same_camera_models(pycolmap):
    for number, (name, parameters) in enumerate(PARAMETERS.items()):
        known = pycolmap.CameraModelId(number)
        assert known.name == name
        camera = pycolmap.Camera.create_from_model_id(1, known, 50.0, 64, 48)
        assert camera.params_info.replace(",", " ").split() == parameters.split()


@pytest.mark.parametrize("kind", ["text", "binary"])
def test_a_model_that_colmap_made_and_wrote_is_read_alike(pycolmap, tmp_path, kind):
    options = pycolmap.SyntheticDatasetOptions()
    options.num_points3D = 30
    options.camera_model_id = pycolmap.CameraModelId.PINHOLE
    options.camera_params = [1280.0, 1290.0, 512.0, 384.0]
    made = pycolmap.synthesize_dataset(options)
    getattr(made, f"write_{kind}")(tmp_path)
    found = read_cameras(tmp_path)
    by_name = {image.name: image for image in made.images.values()}
    assert set(by_name) == set(found.names)
    for name, w2c, k in zip(found.names, found.w2c, found.intrinsics, strict=True):
        np.testing.assert_allclose(by_name[name].cam_from_world().matrix(), w2c[:3], atol=1e-9)
        np.testing.assert_allclose(by_name[name].camera.calibration_matrix(), k)
    # COLMAP counts a pixel's centre as +0.5, too: a point is seen where it was projected to.
    image = by_name[found.names[0]]
    seen = [p for p in image.points2D if p.has_point3D()]
    place = np.array([made.points3D[p.point3D_id].xyz for p in seen])
    local = place @ found.w2c[0, :3, :3].T + found.w2c[0, :3, 3]
    pixels = local @ found.intrinsics[0].T
    xy = np.array([p.xy for p in seen])
    np.testing.assert_allclose(pixels[:, :2] / pixels[:, 2:], xy, atol=1e-6)
    expected = np.array([p.xyz for p in made.points3D.values()])
    assert {tuple(p) for p in np.round(found.points, 6)} == {
        tuple(p) for p in np.round(expected, 6)
    }


def test_colmap_reads_what_is_written(pycolmap, tmp_path):
    given = random_cameras()
    write_cameras(tmp_path / "model", given, "colmap")
    found = pycolmap.Reconstruction(tmp_path / "model")
    by_name = {image.name: image for image in found.images.values()}
    for name, w2c in zip(given.names, given.w2c, strict=True):
        np.testing.assert_allclose(by_name[name].cam_from_world().matrix(), w2c[:3], atol=1e-9)
    turn = Rotation.from_matrix(given.w2c[0, :3, :3]).as_matrix()
    np.testing.assert_allclose(by_name[given.names[0]].cam_from_world().rotation.matrix(), turn)
