"""`worldstereo memory locate`."""

import numpy as np
import pytest
from PIL import Image

from tests.geometry.test_absolute_pose import errors
from worldstereo_jax.cli.camera_paths import CameraChoice, path_through_memory
from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.memory_input import open_memory
from worldstereo_jax.cli.memory_locate import LEAST_INLIERS
from worldstereo_jax.data import images
from worldstereo_jax.geometry.camera_io import read_camera_json

pytestmark = pytest.mark.row("S10")


@pytest.fixture
def photo(true_scene, tmp_path):
    """The second frame, which the memory does not hold; in twice as many pixels."""
    frame = images.resize_image(true_scene["image"][1], (96, 128))
    images.write_image(tmp_path / "photo.png", frame)
    return tmp_path / "photo.png"


def test_a_photograph_is_located_told_and_drawn(finished, true_scene, photo, tmp_path, capsys):
    out = tmp_path / "camera.json"
    assert main(["memory", "locate", str(finished), str(photo), "--out", str(out)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == [str(out), str(tmp_path / "camera.png")]
    agree, matched = (int(said[2].split()[i]) for i in (1, 3))
    assert LEAST_INLIERS < agree <= matched
    w2c, intrinsics, size = read_camera_json(out)
    degrees, units = errors(w2c[1], true_scene["w2c"][1])
    assert degrees < 0.5
    assert units < 0.01 * np.median(true_scene["depth"][1])
    # From a stored view, with its lens, and through it: the path is taken as it stands.
    memory = open_memory(finished / "memory").memory
    held = np.asarray(memory.stereo.w2c)
    assert (w2c[0] == held).all((1, 2)).any()
    assert size == memory.stereo.images.shape[1:3]
    np.testing.assert_allclose(intrinsics[1], true_scene["intrinsics"][1], rtol=1e-5)
    path = path_through_memory(memory, CameraChoice(str(out)), 5)
    np.testing.assert_allclose(path.w2c[0], w2c[0], atol=1e-6)
    np.testing.assert_allclose(path.w2c[-1], w2c[1], atol=1e-5)
    with Image.open(tmp_path / "camera.png") as picture:
        assert picture.size[0] > 1000


def test_what_cannot_be_located_is_refused_in_a_sentence(
    finished, photo, picture, tmp_path, refused
):
    (tmp_path / "there.png").write_text("mine")
    there, out = ("--out", tmp_path / "there.json"), ("--out", tmp_path / "camera.json")
    for arguments, said in (
        ((finished, picture, *out), f"agree on a place, and at least {LEAST_INLIERS} are needed"),
        ((finished, photo, "--fov", 200, *out), "--fov must lie between 0 and 150, not 200"),
        ((finished, photo, "--fov", 2, *out), "too few to find anything by"),
        ((finished, photo, *there), "there.png is there already"),
        ((finished, photo, "--out", tmp_path / "camera.txt"), "must end in .json"),
        ((finished, tmp_path / "no.png", *out), "no.png does not exist"),
        ((finished, photo), "required: --out"),
    ):
        assert said in refused("memory", "locate", *arguments)
    assert not (tmp_path / "camera.json").exists()
    assert not (tmp_path / "camera.png").exists()
