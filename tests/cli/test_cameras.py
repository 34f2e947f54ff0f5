"""`worldstereo cameras`: every format into every other, and what it says of them."""

import dataclasses

import numpy as np
import pytest

from tests.posed_cameras import SIZE, random_cameras
from worldstereo_jax.cli.main import main
from worldstereo_jax.geometry.camera_formats import (
    FORMATS,
    inverse,
    read_cameras,
    write_cameras,
)
from worldstereo_jax.geometry.camera_io import write_cameras_json

WRITTEN = [name for name, known in FORMATS.items() if known.write is not None]
LENSLESS = ("tum", "kitti")
GIVEN = random_cameras()


def cameras(*arguments: object) -> None:
    assert main(["cameras", *map(str, arguments)]) == 0


@pytest.mark.parametrize("source", WRITTEN)
def test_every_format_becomes_every_other_and_comes_back(tmp_path, source):
    write_cameras(tmp_path / "src", GIVEN, source)
    given = [] if source not in LENSLESS else ["--lens", "50,52,30.72,24.96"]
    if source in (*LENSLESS, "realestate10k"):
        given += ["--size", f"{SIZE[0]}x{SIZE[1]}"]
    for target in WRITTEN:
        out = tmp_path / f"{source}-{target}"
        cameras("convert", tmp_path / "src", out, "--to", target, *given)
        found = read_cameras(out, size=SIZE)
        np.testing.assert_allclose(found.w2c, GIVEN.w2c, atol=1e-6, err_msg=target)
        if target not in LENSLESS:
            np.testing.assert_allclose(found.intrinsics, GIVEN.intrinsics, atol=1e-5)
        times = np.arange(len(GIVEN)) / 30
        if source in ("tum", "realestate10k"):
            times = GIVEN.times
        if found.times is not None:
            np.testing.assert_allclose(found.times, times, atol=1e-6)


def test_pictures_are_named_as_the_target_has_them(tmp_path):
    write_cameras(tmp_path / "model", GIVEN, "colmap")
    cameras("convert", tmp_path / "model", tmp_path / "a.json", "--to", "nerfstudio")
    assert read_cameras(tmp_path / "a.json").names[1] == "images/0001.png"
    cameras("convert", tmp_path / "a.json", tmp_path / "again", "--to", "colmap")
    assert read_cameras(tmp_path / "again").names == GIVEN.names
    write_cameras(tmp_path / "t.txt", GIVEN, "tum")
    given = ("--size", "48x64", "--lens", "50,50,32,24")
    cameras("convert", tmp_path / "t.txt", tmp_path / "b.json", "--to", "nerfstudio", *given)
    # As text, 1.28125 would come before 1.3125, but after it as numbers.
    assert read_cameras(tmp_path / "b.json").names[2] == "images/000002.png"
    write_cameras(tmp_path / "r.txt", GIVEN, "realestate10k")
    cameras("convert", tmp_path / "r.txt", tmp_path / "r", "--to", "colmap", "--size", "48x64")
    assert read_cameras(tmp_path / "r").names[1] == "1281250.png"


def test_frames_unit_and_world_are_changed_as_asked(tmp_path):
    points = np.random.default_rng(2).normal(size=(8, 3))
    write_cameras(tmp_path / "src", dataclasses.replace(GIVEN, points=points), "colmap")
    out = tmp_path / "out"
    options = ("--frames", "1:5:2", "--relative", "--scale", 3)
    cameras("convert", tmp_path / "src", out, "--to", "colmap", *options)
    found = read_cameras(out)
    assert found.names == ("0001.png", "0003.png")
    np.testing.assert_allclose(found.w2c[0], np.eye(4), atol=1e-12)
    expected = GIVEN.w2c[3] @ inverse(GIVEN.w2c[1])
    np.testing.assert_allclose(found.w2c[1, :3, :3], expected[:3, :3], atol=1e-12)
    np.testing.assert_allclose(found.w2c[1, :3, 3], 3 * expected[:3, 3], atol=1e-12)
    # A point stays where the cameras see it.
    seen = points @ GIVEN.w2c[3, :3, :3].T + GIVEN.w2c[3, :3, 3]
    again = found.points @ found.w2c[1, :3, :3].T + found.w2c[1, :3, 3]
    np.testing.assert_allclose(again, 3 * seen, atol=1e-5)


def test_info_says_what_a_file_holds(tmp_path, capsys):
    said = {}
    points = np.zeros((3, 3))
    for name in WRITTEN:
        write_cameras(tmp_path / name, dataclasses.replace(GIVEN, points=points), name)
        capsys.readouterr()
        cameras("info", tmp_path / name)
        said[name] = capsys.readouterr().out
        assert f"{name}: {FORMATS[name].line}" in said[name]
        assert "cameras     6" in said[name]
    assert "none: a path takes the scene's" in said["tum"]
    assert "times       1.250000 to 1.406250 s" in said["tum"]
    assert "of any size" in said["realestate10k"]
    assert "48 x 64 pixels" in said["colmap"]
    assert "points      3" in said["colmap"]
    assert "focal 50 52, centre 30.72 24.96, 65.2 degrees across" in said["nerfstudio"]
    way = np.linalg.norm(np.diff(inverse(GIVEN.w2c)[:, :3, 3], axis=0), axis=-1).sum()
    assert f"way         {way:.4g} m" in said["kitti"]


def test_what_does_not_fit_is_one_sentence(tmp_path, refused):
    write_cameras(tmp_path / "t.txt", GIVEN, "tum")
    write_cameras(tmp_path / "r.txt", GIVEN, "realestate10k")
    out = tmp_path / "out"

    def said(source: str, *options: object) -> str:
        return refused("cameras", "convert", tmp_path / source, out, "--to", *options)

    assert "colmap needs intrinsics" in said("t.txt", "colmap")
    assert "needs the size of the images" in said("r.txt", "nerfstudio")
    sizeless = dataclasses.replace(GIVEN, size=None)
    write_cameras_json(tmp_path / "s.json", sizeless.w2c, sizeless.intrinsics, None)
    assert "give it as --size HxW" in said("s.json", "colmap")
    assert "--lens needs --size" in said("t.txt", "colmap", "--lens", "1,1,1,1")
    for lens in ("1,2,3", "0,1,1,1", "a,b,c,d"):
        assert "--lens is" in said("t.txt", "colmap", "--lens", lens, "--size", "4x4")
    lens = ("--lens", "1,1,1,1", "--size", "4x4")
    assert "r.txt has some" in said("r.txt", "colmap", *lens)
    for frames in ("3", "a:b", "0:4:0", "4:0:-1"):
        assert "--frames is" in said("t.txt", "kitti", "--frames", frames)
    assert "none of the 6 cameras" in said("t.txt", "kitti", "--frames", "9:")
    assert "--scale must be a positive number" in said("t.txt", "kitti", "--scale", "0")
    assert "--fps must be a positive number" in said("t.txt", "kitti", "--fps", "nan")
    assert "line 2 has 8 columns instead of 12" in said("t.txt", "kitti", "--from", "kitti")
    assert "invalid choice" in said("t.txt", "nerfstudio-path")
    assert not out.exists()
    out.write_text("kept")
    assert "is there already; name a new one" in said("t.txt", "kitti")
    assert out.read_text() == "kept"
