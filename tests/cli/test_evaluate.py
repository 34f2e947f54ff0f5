"""`worldstereo evaluate`: a true clip and a spoilt one, each with the memory that knew it."""

import json
import shutil

import numpy as np
import pytest

from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.outputs import check_output_folder
from worldstereo_jax.data import images, video_io
from worldstereo_jax.geometry.camera_formats import PosedCameras, write_cameras


def evaluated(folder, *arguments):
    assert main(["evaluate", str(folder), *map(str, arguments)]) == 0
    return json.loads((folder / "evaluation.json").read_text())["clips"]


@pytest.mark.slow
@pytest.mark.row("S25")
def test_every_clip_is_compared_with_what_was_known_before_it(finished, capsys):
    found = evaluated(finished)
    assert list(found) == ["first", "second"]
    name = "difference from what was remembered (0..2)"
    assert found["first"][name] < 0.1
    assert found["second"][name] > found["first"][name]
    assert found["second"]["flicker (0..2)"] > 2 * found["first"]["flicker (0..2)"]
    for clip in found.values():
        assert 30 < clip["pixels that were remembered, %"] <= 100
        assert 30 < clip["pixels tracked, %"] <= 100
    said = capsys.readouterr().out
    assert f"| {name} |" in said
    for clip in found:
        assert str(finished / clip / "evaluation.png") in said
        assert images.read_image(finished / clip / "evaluation.png").std() > 0.1


@pytest.mark.slow
def test_against_truth_an_earlier_clip_and_estimated_cameras(finished, true_scene, tmp_path):
    frames = tmp_path / "frames"
    for i, image in enumerate(true_scene["image"]):
        images.write_image(frames / f"{i}.png", image)
    # As another tool would leave it: in another unit, turned about the last axis by a degree.
    w2c = np.asarray(true_scene["w2c"], np.float64)
    angle = np.radians(1.0) * np.arange(len(true_scene["image"]))
    turn = np.stack([np.eye(4)] * len(true_scene["image"]))
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 0, 1] = -np.sin(angle)
    turn[:, 1, 0] = np.sin(angle)
    w2c = turn @ w2c
    w2c[:, :3, 3] *= 7.0
    size = true_scene["image"].shape[1:3]
    names = tuple(f"{i}.png" for i in range(len(true_scene["image"])))
    estimated = PosedCameras(w2c, np.asarray(true_scene["intrinsics"], np.float64), size, names)
    write_cameras(tmp_path / "estimated", estimated, "colmap")
    given = ("--truth", frames, "--earlier", finished / "first",
             "--estimated-cameras", tmp_path / "estimated")  # fmt: skip
    found = evaluated(finished / "second", *given)["."]
    again = evaluated(finished / "first", "--truth", finished / "first/video.mp4")["."]
    assert found["PSNR dB"] < 25
    assert again["PSNR dB"] is None
    assert again["SSIM"] > 0.999 > found["SSIM"]
    assert 10 < found["PSNR dB to the earlier clip"] < 25
    assert found["pixels revisited, %"] > 30
    assert found["RotErr, rad"] == pytest.approx(angle.sum(), rel=1e-2)
    assert found["ATE, units of the scene"] < 1e-3
    assert images.read_image(finished / "second/evaluation_truth.png").std() > 0.1


def test_what_cannot_be_measured_is_said(finished, tmp_path, refused, capsys):
    alone = shutil.copytree(finished / "first", tmp_path / "alone/deep/first")
    plain = shutil.copytree(finished / "first", tmp_path / "plain/deep/first")
    (plain / "cameras.json").unlink()
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    shutil.copytree(finished / "memory", other / "memory")
    video_io.write_video(other / "video.mp4", np.zeros((4, 48, 64, 3)))
    shutil.copy(finished / "first/cameras.json", other)
    for arguments, said in (
        ((tmp_path / "none",), "is no folder"),
        ((tmp_path / "empty",), "holds no video.mp4"),
        ((finished, "--truth", "x.mp4"), "--truth is for one clip, and"),
        ((finished / "first", "--lpips", "x"), "--lpips is for --truth"),
        ((alone,), "there is no memory of its run, and no --truth given"),
        ((alone, "--truth", tmp_path / "empty"), "holds no image"),
        (
            (alone, "--truth", other / "video.mp4", "--earlier", finished),
            "--earlier needs the memory",
        ),
        ((plain, "--estimated-cameras", finished / "first/cameras.json"), "which is not there"),
        ((other,), "holds no frame of"),
    ):
        assert said in refused("evaluate", *arguments)
    # With a truth there is something to say.
    assert "PSNR dB" in evaluated(other, "--truth", finished / "first/video.mp4")["."]
    assert "holds no frame of" in capsys.readouterr().err


def test_a_plain_video_has_a_truth_alone(finished, tmp_path):
    alone = shutil.copytree(finished / "first", tmp_path / "x/y/plain")
    (alone / "cameras.json").unlink()
    found = evaluated(alone, "--truth", finished / "second/video.mp4")["."]
    assert found["PSNR dB"] < 25
    # A run's folder with these results can still be replaced.
    (alone / "run.json").write_text('{"clips": [""]}')
    check_output_folder(alone, overwrite=True)
