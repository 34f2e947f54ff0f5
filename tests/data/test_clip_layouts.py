"""Posed video as COLMAP, nerfstudio, RealEstate10K and TUM leave it."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.posed_cameras import random_cameras
from worldstereo_jax.data.images import write_image
from worldstereo_jax.data.posed_clips import PosedClip, find_posed_clips
from worldstereo_jax.data.video_io import write_video
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import inverse, write_cameras

FRAMES, HEIGHT, WIDTH = 5, 24, 32
GREYS = np.linspace(-0.8, 0.8, FRAMES, dtype=np.float32)
GIVEN = dataclasses.replace(
    random_cameras(FRAMES, size=(48, 64)), points=np.random.default_rng(4).normal(size=(9, 3))
)
TIMES = np.asarray(GIVEN.times)
FORMATS = ("colmap", "nerfstudio", "realestate10k", "tum")


def pictures(folder: Path, names) -> None:
    """Frame i is grey `GREYS[i]`."""
    for name, grey in zip(names, GREYS, strict=True):
        write_image(folder / name, np.full((HEIGHT, WIDTH, 3), grey, np.float32))


def depth_png(file: Path, metres: float, unit: float) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((HEIGHT, WIDTH), round(metres / unit), np.uint16)).save(file)


def colmap(folder: Path) -> None:
    pictures(folder / "images", GIVEN.names)
    write_cameras(folder / "sparse/0", GIVEN, "colmap")
    for number in range(1, FRAMES):
        depth_png(folder / f"depth/{number:04d}.png", number + 1, 0.001)


def nerfstudio(folder: Path) -> None:
    names = tuple(f"images/{name}" for name in GIVEN.names)
    pictures(folder, names)
    write_cameras(folder / "transforms.json", dataclasses.replace(GIVEN, names=names), "nerfstudio")
    fields = json.loads((folder / "transforms.json").read_text())
    for number, frame in enumerate(fields["frames"]):
        frame["depth_file_path"] = f"maps/{number}.png"
        depth_png(folder / f"maps/{number}.png", number + 1, 0.001)
    (folder / "transforms.json").write_text(json.dumps(fields))


def realestate10k(folder: Path) -> None:
    stamps = [f"{round(time * 1e6)}" for time in TIMES]
    pictures(folder / "images", [f"{stamp}.png" for stamp in stamps])
    write_cameras(folder / "0a1b.txt", GIVEN, "realestate10k")
    (folder / "notes.txt").write_text("a house\n")
    (folder / "depth").mkdir()
    for number, stamp in enumerate(stamps):
        np.save(folder / f"depth/{stamp}.npy", np.full((HEIGHT, WIDTH), number + 1.0))


def tum(folder: Path) -> None:
    """Poses are more frequent than frames, which are a little late; one frame has no depth."""
    between = GIVEN.take(np.repeat(np.arange(FRAMES), 2))
    times = np.repeat(TIMES, 2)
    times[1::2] += 1 / 64
    between = dataclasses.replace(between, times=times)
    between.w2c[1::2, :3, 3] += 9
    write_cameras(folder / "groundtruth.txt", between, "tum")
    pictures(folder / "rgb", [f"{i}.png" for i in range(FRAMES)])
    lines = [f"{time + 0.003:.6f} rgb/{i}.png" for i, time in enumerate(TIMES)]
    (folder / "rgb.txt").write_text("# color images\n" + "\n".join(reversed(lines)) + "\n")
    depth = []
    for number, time in enumerate(TIMES):
        depth_png(folder / f"depth/{number}.png", number + 1, 1 / 5000)
        depth.append(f"{time + (0.1 if number == 0 else 0.01):.6f} depth/{number}.png")
    (folder / "depth.txt").write_text("\n".join(depth[1:]) + "\n")
    k = GIVEN.intrinsics[0]
    # Of the frames as they are, with whole numbers for the centres of pixels.
    fx, fy, cx, cy = k[0, 0] / 2, k[1, 1] / 2, k[0, 2] / 2 - 0.5, k[1, 2] / 2 - 0.5
    (folder / "calibration.txt").write_text(f"{fx} {fy} {cx} {cy}\n")


WRITERS = {"colmap": colmap, "nerfstudio": nerfstudio, "realestate10k": realestate10k, "tum": tum}


def only_clip(folder: Path, frames: int = FRAMES, **options) -> PosedClip:
    (clip,) = find_posed_clips(folder, frames, **options)
    return clip


@pytest.fixture(params=FORMATS)
def layout(request, tmp_path) -> tuple[str, Path]:
    (tmp_path / "clips/a").mkdir(parents=True)
    WRITERS[request.param](tmp_path / "clips/a")
    return request.param, tmp_path / "clips"


def test_every_layout_gives_the_same_clip(layout):
    name, folder = layout
    clip = only_clip(folder)
    assert (clip.name, clip.prompt, len(clip)) == ("a", "", FRAMES)
    expected = GIVEN.w2c @ inverse(GIVEN.w2c[0])
    np.testing.assert_allclose(clip.w2c, expected, atol=1e-5)
    images, intrinsics = clip.frames([3, 1], (12, 16))
    np.testing.assert_allclose(images.mean((1, 2, 3)), GREYS[[3, 1]], atol=0.01)
    k = GIVEN.intrinsics[0] * np.array([[0.25], [0.25], [1]])
    # Of RealEstate10K only the proportions of its square pixels are known, and these are not.
    np.testing.assert_allclose(intrinsics[0], k, rtol=1e-5)
    depth = clip.depth([3, 1, 0], (12, 16))
    assert depth.shape == (3, 12, 16)
    unknown = name in ("colmap", "tum")
    np.testing.assert_allclose(depth[:, 0, 0], [4, 2, 0 if unknown else 1], rtol=1e-4)
    if name == "colmap":
        moved = GIVEN.points @ GIVEN.w2c[0, :3, :3].T + GIVEN.w2c[0, :3, 3]
        np.testing.assert_allclose(clip.points, moved, atol=1e-5)
    else:
        assert clip.points is None


def test_depth_may_be_missing(layout):
    name, folder = layout
    if name == "nerfstudio":
        fields = json.loads((folder / "a/transforms.json").read_text())
        for frame in fields["frames"]:
            del frame["depth_file_path"]
        (folder / "a/transforms.json").write_text(json.dumps(fields))
    elif name == "tum":
        (folder / "a/depth.txt").unlink()
    else:
        (folder / "a/depth").rename(folder / "a/other")
    assert only_clip(folder).depth([0], (12, 16)) is None


def test_time_stamps_find_the_frames_of_a_longer_video(tmp_path):
    """Here at 16 frames a second, those of the cameras at 32: every one is shown twice."""
    realestate10k(tmp_path / "a")
    (tmp_path / "a/images").rename(tmp_path / "a/none")
    brightness = np.linspace(-0.9, 0.9, 40, dtype=np.float32)
    frames = np.broadcast_to(brightness[:, None, None, None], (40, HEIGHT, WIDTH, 3))
    write_video(tmp_path / "a/video.mp4", frames)
    images, _ = only_clip(tmp_path).frames([4, 0, 2], (HEIGHT, WIDTH))
    times = TIMES[[4, 0, 2]]
    np.testing.assert_allclose(
        images.mean((1, 2, 3)), brightness[(times * 16).astype(int)], atol=0.03
    )
    write_video(tmp_path / "a/video.mp4", frames[:10])
    with pytest.raises(InputError, match=r"video\.mp4 shows no frame at 1\.25 s"):
        only_clip(tmp_path).frames([0], (HEIGHT, WIDTH))


def test_blender_s_frames_tell_size_and_suffix(tmp_path):
    pictures(tmp_path / "a/train", GIVEN.names)
    frames = [
        {"file_path": f"./train/{name[:-4]}", "transform_matrix": pose.tolist()}
        for name, pose in zip(GIVEN.names, GIVEN.w2c, strict=True)
    ]
    file = tmp_path / "a/transforms.json"
    file.write_text(json.dumps({"camera_angle_x": np.pi / 2, "frames": frames}))
    clip = only_clip(tmp_path)
    assert clip.size == (HEIGHT, WIDTH)
    images, intrinsics = clip.frames([2], (HEIGHT, WIDTH))
    np.testing.assert_allclose(images.mean(), GREYS[2], atol=0.01)
    np.testing.assert_allclose(intrinsics[0, 0, 0], WIDTH / 2)
    file.write_text(json.dumps({"camera_angle_x": 9, "frames": frames}))
    with pytest.raises(InputError, match="'camera_angle_x' must be an angle"):
        only_clip(tmp_path)


def test_cameras_of_two_kinds_must_be_chosen_from(tmp_path):
    colmap(tmp_path / "a")
    nerfstudio(tmp_path / "a")
    with pytest.raises(InputError, match=r"several formats \(colmap, nerfstudio\); choose one"):
        only_clip(tmp_path)
    assert only_clip(tmp_path, camera_format="colmap").points is not None
    assert only_clip(tmp_path, camera_format="nerfstudio").points is None
    with pytest.raises(InputError, match="no sub-folder with tum cameras"):
        only_clip(tmp_path, camera_format="tum")
    with pytest.raises(InputError, match="no camera format called 'tumm'"):
        only_clip(tmp_path, camera_format="tumm")


def test_poses_and_depth_far_in_time_are_not_taken(tmp_path):
    tum(tmp_path / "a")
    file = tmp_path / "a/groundtruth.txt"
    lines = file.read_text().splitlines()
    # Without the third frame's poses and the one before, the nearest is 0.028 s off.
    file.write_text("\n".join(lines[:4] + lines[7:]) + "\n")
    clip = only_clip(tmp_path, FRAMES - 1)
    kept = [0, 1, 3, 4]
    expected = GIVEN.w2c[kept] @ inverse(GIVEN.w2c[0])
    assert len(clip) == len(kept)
    np.testing.assert_allclose(clip.w2c, expected, atol=1e-5)
    np.testing.assert_allclose(clip.frames([2], (8, 8))[0].mean(), GREYS[3], atol=0.01)
    np.testing.assert_allclose(clip.depth([2], (8, 8)), 4, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("colmap", lambda f: (f / "images").rename(f / "x"), "a has no images/ beside its COLMAP"),
        ("realestate10k", lambda f: (f / "images").rename(f / "x"), "has neither video"),
        (
            "realestate10k",
            lambda f: (f / "images/1281250.png").unlink(),
            "no picture called 1281250, a time stamp",
        ),
        (
            "realestate10k",
            lambda f: (f / "images/1281250.jpg").write_bytes(b""),
            r"holds both 1281250\.jpg and 1281250\.png",
        ),
        (
            "realestate10k",
            lambda f: (f / "b.txt").write_text((f / "0a1b.txt").read_text()),
            r"several files of RealEstate10K \(0a1b\.txt, b\.txt\)",
        ),
        ("tum", lambda f: (f / "calibration.txt").unlink(), r"calibration\.txt is missing"),
        ("tum", lambda f: (f / "calibration.txt").write_text("1 2 3\n"), "has 3 columns instead"),
        ("tum", lambda f: (f / "calibration.txt").write_text("0 2 3 4\n"), "focal lengths"),
        ("tum", lambda f: (f / "rgb.txt").write_text("# none\n"), r"rgb\.txt lists no frames"),
        ("tum", lambda f: (f / "rgb.txt").write_text("1 a b\n"), "line 1 has 3 columns instead"),
        ("tum", lambda f: (f / "rgb.txt").write_text("99 a\n"), r"no pose within 0\.02 s"),
        ("tum", lambda f: (f / "groundtruth.txt").write_text("1 2\n"), "line 1 has 2 columns"),
    ],
)
def test_what_a_layout_lacks_is_named_at_once(tmp_path, name, spoil, said):
    WRITERS[name](tmp_path / "a")
    spoil(tmp_path / "a")
    with pytest.raises(InputError, match=said):
        only_clip(tmp_path)


def test_missing_frames_and_too_few_cameras_are_named(layout):
    name, folder = layout
    with pytest.raises(InputError, match=rf"its cameras \({name}\) are 5, but .* 6 frames"):
        only_clip(folder, 6)
    clip = only_clip(folder)
    folder_of = {"tum": "rgb"}.get(name, "images")
    for file in sorted((folder / "a" / folder_of).iterdir())[1:2]:
        file.unlink()
    with pytest.raises(InputError, match="does not exist"):
        clip.frames([1], (8, 8))
