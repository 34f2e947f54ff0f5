"""One set of cameras in every format: written, told apart, read back."""

import dataclasses
import json

import numpy as np
import pytest

from tests.posed_cameras import SIZE, random_cameras
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import (
    FORMATS,
    UNIT_SIZE,
    PosedCameras,
    detect_format,
    read_cameras,
    write_cameras,
)

WRITTEN = [name for name, known in FORMATS.items() if known.write is not None]


def without(cameras: PosedCameras, **changes) -> PosedCameras:
    return dataclasses.replace(cameras, **changes)


def test_one_scene_in_all_formats_gives_the_same_cameras(tmp_path):
    given = random_cameras()
    for name in WRITTEN:
        write_cameras(tmp_path / name, given, name)
        assert detect_format(tmp_path / name) == name
        for told in (None, name):
            found = read_cameras(tmp_path / name, told, size=SIZE)
            assert len(found) == len(given)
            np.testing.assert_allclose(found.w2c, given.w2c, atol=1e-6, err_msg=name)
            if found.intrinsics is not None:
                np.testing.assert_allclose(found.intrinsics, given.intrinsics, atol=1e-6)
                assert found.size == SIZE
            if found.times is not None:
                np.testing.assert_allclose(found.times, given.times, atol=1e-6)
            assert found.metric == (name in ("tum", "kitti"))
    # Only trajectories come without a lens, and only two formats with times.
    lensless = {n for n in WRITTEN if read_cameras(tmp_path / n).intrinsics is None}
    assert lensless == {"tum", "kitti"}
    timed = {n for n in WRITTEN if read_cameras(tmp_path / n).times is not None}
    assert timed == {"tum", "realestate10k"}


def test_what_a_format_needs_and_cameras_lack_is_named(tmp_path):
    given = random_cameras()
    out = tmp_path / "out"
    for name in WRITTEN:
        needs = FORMATS[name].needs
        bare = without(given, intrinsics=None, size=None)
        untimed = without(given, times=None)
        if "intrinsics" in needs:
            for lacking, word in (
                (bare, "needs intrinsics"),
                (without(given, size=None), "needs the size of the images"),
            ):
                with pytest.raises(InputError, match=f"{name} {word}"):
                    write_cameras(out, lacking, name)
        if "times" in needs:
            with pytest.raises(InputError, match=f"{name} needs times"):
                write_cameras(out, untimed, name)
    skewed = given.intrinsics + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    with pytest.raises(InputError, match="skew, which the format colmap"):
        write_cameras(out, without(given, intrinsics=skewed), "colmap")
    with pytest.raises(InputError, match="size of the images"):
        write_cameras(out, without(given, size=UNIT_SIZE), "nerfstudio")
    with pytest.raises(InputError, match="nerfstudio-path is only read"):
        write_cameras(out, given, "nerfstudio-path")
    with pytest.raises(InputError, match="no camera format called 'colamp': did you mean 'colmap'"):
        write_cameras(out, given, "colamp")
    assert not out.exists()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "of no known camera format"),
        ("# only a comment\n", "of no known camera format"),
        ("1 2 3 4 5 6 7 8 9\n", "of no known camera format"),
        ("https://video\n", "of no known camera format"),
        ("1 0 0 0 0 0 0 0 1 a.png\n\n", "of no known camera format"),
        ('{"frames": [], "extrinsic": []}', "could be worldstereo or nerfstudio; name the format"),
        ('{"frames": [', "not valid JSON"),
        ("\udcff".encode("utf-8", "surrogateescape"), "is no text file"),
    ],
)
def test_what_is_no_camera_file_is_said_so(tmp_path, content, said):
    file = tmp_path / "cameras"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=said) as raised:
        read_cameras(file)
    assert str(file) in str(raised.value)


def test_what_is_not_there_and_folders_are_named(tmp_path):
    with pytest.raises(InputError, match="nothing does not exist"):
        read_cameras(tmp_path / "nothing")
    with pytest.raises(InputError, match="is no COLMAP model"):
        detect_format(tmp_path)
    (tmp_path / "images.bin").write_bytes(b"\0" * 8)
    with pytest.raises(
        InputError, match=r"images\.bin is a table of a COLMAP model; name its folder"
    ):
        detect_format(tmp_path / "images.bin")
    with pytest.raises(InputError, match="is no COLMAP model"):
        read_cameras(tmp_path, "colmap")
    with pytest.raises(InputError, match="does not exist or is not a file"):
        read_cameras(tmp_path, "tum")


def test_a_file_without_known_fields_is_read_as_ours(tmp_path):
    (tmp_path / "mine.json").write_text(json.dumps({"pose": []}))
    with pytest.raises(InputError, match="has no field 'extrinsic'"):
        read_cameras(tmp_path / "mine.json")
