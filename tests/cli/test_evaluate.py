"""`worldstereo evaluate`: a true clip and a spoilt one, each with the memory that knew it."""

import json
import shutil

import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_world
from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.outputs import check_output_folder, save_world
from worldstereo_jax.data import images, video_io
from worldstereo_jax.geometry.camera_formats import PosedCameras, write_cameras
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.sampling.world import Cameras, empty_memory, remember_frames

# The sizes of other tests, whose programs are taken.
CONFIG = small_world.ROLLOUT
FRAMES = CONFIG.frames


@pytest.fixture(scope="module")
def scene():
    return {name: np.asarray(value) for name, value in small_world.scene().items()}


@pytest.fixture(scope="module")
def home(tmp_path_factory, scene):
    """Two clips of one path through one memory: `out/first`, true, and `out/second`, whose last
    two frames are paler."""
    home = tmp_path_factory.mktemp("runs") / "out"
    spoilt = scene["image"].copy()
    spoilt[2:] = 0.6 * spoilt[2:] + 0.3
    memory = empty_memory(CONFIG)
    clips = (("", scene["image"], [0]), ("first", scene["image"], [3]), ("second", spoilt, [2]))
    for source, (name, video, stored) in enumerate(clips):
        cameras = Cameras(*(jnp.asarray(scene[k][stored]) for k in ("w2c", "intrinsics")))
        pictures = (jnp.asarray(x[stored]) for x in (video, scene["depth"]))
        memory = remember_frames(CONFIG, memory, *pictures, cameras, source)
        if name:
            video_io.write_video(home / name / "video.mp4", video)
            cameras = scene["w2c"], scene["intrinsics"], (CONFIG.height, CONFIG.width)
            write_cameras_json(home / name / "cameras.json", *cameras)
    save_world(home / "memory", memory, "tiny")
    return home


def evaluated(folder, *arguments):
    assert main(["evaluate", str(folder), *map(str, arguments)]) == 0
    return json.loads((folder / "evaluation.json").read_text())["clips"]


@pytest.mark.slow
@pytest.mark.row("S25")
def test_every_clip_is_compared_with_what_was_known_before_it(home, capsys):
    found = evaluated(home)
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
        assert str(home / clip / "evaluation.png") in said
        assert images.read_image(home / clip / "evaluation.png").std() > 0.1


@pytest.mark.slow
def test_against_truth_an_earlier_clip_and_estimated_cameras(home, scene, tmp_path):
    frames = tmp_path / "frames"
    for i, image in enumerate(scene["image"]):
        images.write_image(frames / f"{i}.png", image)
    # As another tool would leave it: in another unit, turned about the last axis by a degree.
    w2c = np.asarray(scene["w2c"], np.float64)
    angle = np.radians(1.0) * np.arange(FRAMES)
    turn = np.stack([np.eye(4)] * FRAMES)
    turn[:, 0, 0] = turn[:, 1, 1] = np.cos(angle)
    turn[:, 0, 1] = -np.sin(angle)
    turn[:, 1, 0] = np.sin(angle)
    w2c = turn @ w2c
    w2c[:, :3, 3] *= 7.0
    size = CONFIG.height, CONFIG.width
    names = tuple(f"{i}.png" for i in range(FRAMES))
    estimated = PosedCameras(w2c, np.asarray(scene["intrinsics"], np.float64), size, names)
    write_cameras(tmp_path / "estimated", estimated, "colmap")
    given = ("--truth", frames, "--earlier", home / "first",
             "--estimated-cameras", tmp_path / "estimated")  # fmt: skip
    found = evaluated(home / "second", *given)["."]
    again = evaluated(home / "first", "--truth", home / "first/video.mp4")["."]
    assert found["PSNR dB"] < 25
    assert again["PSNR dB"] is None
    assert again["SSIM"] > 0.999 > found["SSIM"]
    assert 10 < found["PSNR dB to the earlier clip"] < 25
    assert found["pixels revisited, %"] > 30
    assert found["RotErr, rad"] == pytest.approx(angle.sum(), rel=1e-2)
    assert found["ATE, units of the scene"] < 1e-3
    assert images.read_image(home / "second/evaluation_truth.png").std() > 0.1


def test_what_cannot_be_measured_is_said(home, tmp_path, refused):
    alone = shutil.copytree(home / "first", tmp_path / "alone/deep/first")
    plain = shutil.copytree(home / "first", tmp_path / "plain/deep/first")
    (plain / "cameras.json").unlink()
    (tmp_path / "empty").mkdir()
    other = tmp_path / "other"
    shutil.copytree(home / "memory", other / "memory")
    video_io.write_video(other / "video.mp4", np.zeros((4, 48, 64, 3)))
    shutil.copy(home / "first/cameras.json", other)
    for arguments, said in (
        ((tmp_path / "none",), "is no folder"),
        ((tmp_path / "empty",), "holds no video.mp4"),
        ((home, "--truth", "x.mp4"), "--truth is for one clip, and"),
        ((home / "first", "--lpips", "x"), "--lpips is for --truth"),
        ((alone,), "there is no memory of its run, and no --truth given"),
        ((alone, "--truth", tmp_path / "empty"), "holds no image"),
        ((alone, "--truth", other / "video.mp4", "--earlier", home), "--earlier needs the memory"),
        ((plain, "--estimated-cameras", home / "first/cameras.json"), "which is not there"),
        ((other,), "holds no frame of"),
    ):
        assert said in refused("evaluate", *arguments)


def test_a_plain_video_has_a_truth_alone(home, tmp_path):
    alone = shutil.copytree(home / "first", tmp_path / "x/y/plain")
    (alone / "cameras.json").unlink()
    found = evaluated(alone, "--truth", home / "second/video.mp4")["."]
    assert found["PSNR dB"] < 25
    # A run's folder with these results can still be replaced.
    (alone / "run.json").write_text('{"clips": [""]}')
    check_output_folder(alone, overwrite=True)
