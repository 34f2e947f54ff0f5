"""Folders of posed video: what they hold, and what is said of those that do not."""

import json
from pathlib import Path

import numpy as np
import pytest

from worldstereo_jax.data.images import write_image
from worldstereo_jax.data.posed_clips import find_posed_clips, split_clip
from worldstereo_jax.data.video_io import write_video
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.geometry.trajectories import make_path

FRAMES, HEIGHT, WIDTH = 6, 32, 48
K = np.array([[40.0, 0, 24], [0, 40.0, 16], [0, 0, 1]], np.float32)
GREYS = np.linspace(-0.8, 0.8, FRAMES, dtype=np.float32)


def write_clip(folder: Path, *, frames: str = "video", depth: str | None = None) -> Path:
    """A clip whose frame i is grey `GREYS[i]` everywhere, its depth i + 1."""
    folder.mkdir(parents=True)
    size = (HEIGHT, WIDTH)
    write_cameras_json(
        folder / "cameras.json", make_path("left", FRAMES), np.stack([K] * FRAMES), size
    )
    pictures = np.broadcast_to(GREYS[:, None, None, None], (FRAMES, HEIGHT, WIDTH, 3))
    if frames == "video":
        write_video(folder / "video.mp4", pictures)
    else:
        for number, picture in enumerate(pictures):
            write_image(folder / f"images/{number:03d}.png", picture)
    maps = np.broadcast_to(np.arange(1.0, FRAMES + 1)[:, None, None], (FRAMES, HEIGHT, WIDTH))
    if depth == "file":
        np.savez(folder / "depth.npz", depth=maps.astype(np.float16))
    elif depth == "folder":
        (folder / "depth").mkdir()
        for number, one in enumerate(maps):
            np.save(folder / f"depth/{number:03d}.npy", one)
    return folder


@pytest.mark.parametrize(("frames", "depth"), [("video", "file"), ("images", "folder")])
def test_a_clip_is_read_at_the_working_size(tmp_path, frames, depth):
    folder = write_clip(tmp_path / "clips/a", frames=frames, depth=depth)
    (folder / "prompt.json").write_text(json.dumps({"prompt": "a room"}))
    (tmp_path / "clips/notes").mkdir()
    (clip,) = find_posed_clips(tmp_path / "clips", FRAMES)
    assert (clip.name, clip.prompt, len(clip)) == ("a", "a room", FRAMES)
    images, intrinsics = clip.frames([4, 1], (16, 32))
    assert images.shape == (2, 16, 32, 3)
    np.testing.assert_allclose(images.mean((1, 2, 3)), GREYS[[4, 1]], atol=0.02)
    np.testing.assert_allclose(intrinsics[0], [[40 * 32 / 48, 0, 16], [0, 20, 8], [0, 0, 1]])
    found = clip.depth([4, 1], (16, 32))
    assert found.shape == (2, 16, 32)
    np.testing.assert_array_equal(found[:, 0, 0], [5, 2])


def test_prompt_and_depth_may_be_missing(tmp_path):
    write_clip(tmp_path / "a")
    (clip,) = find_posed_clips(tmp_path, FRAMES)
    assert clip.prompt == ""
    assert clip.depth([0], (16, 32)) is None


def _few_cameras(folder: Path) -> None:
    write_cameras_json(
        folder / "cameras.json", make_path("left", 4), np.stack([K] * 4), (HEIGHT, WIDTH)
    )


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / "video.mp4").unlink(), r"a has neither video\.mp4 nor images/"),
        (lambda f: (f / "cameras.json").write_text("{}"), r"cameras\.json has no field 'extrinsic"),
        (lambda f: (f / "prompt.json").write_text("{}"), r"prompt\.json has no field"),
        (_few_cameras, r"a: its cameras \(worldstereo\) are 4, but the model's clips have 6"),
        (
            lambda f: (f / "cameras.json").unlink(),
            r"has no sub-folder with known cameras \(cameras\.json",
        ),
    ],
)
def test_a_faulty_clip_is_named_at_once(tmp_path, spoil, said):
    spoil(write_clip(tmp_path / "a"))
    with pytest.raises(InputError, match=said):
        find_posed_clips(tmp_path, FRAMES)


def test_faulty_frames_and_depth_are_named(tmp_path):
    size = (16, 32)
    write_clip(tmp_path / "a", depth="file")
    write_clip(tmp_path / "b", frames="images", depth="folder")
    first, second = find_posed_clips(tmp_path, FRAMES)
    write_video(first.folder / "video.mp4", np.zeros((4, HEIGHT, WIDTH, 3), np.float32))
    with pytest.raises(InputError, match=r"video\.mp4 holds 4 frames, but 6 cameras"):
        first.frames([0], size)
    for values, said in (
        (np.ones((4, 8, 8)), "'depth' has shape 4 x 8 x 8, expected one map for each of 6"),
        (-np.ones((6, 8, 8)), "'depth' is negative"),
        (np.full((6, 8, 8), "far"), "'depth' must hold numbers"),
    ):
        np.savez(first.folder / "depth.npz", depth=values)
        with pytest.raises(InputError, match=said):
            first.depth([0], size)
    (first.folder / "depth.npz").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"depth\.npz cannot be read"):
        first.depth([0], size)
    (second.folder / "images/003.png").unlink()
    (second.folder / "depth/003.npy").unlink()
    with pytest.raises(InputError, match="images holds 5 files, but 6 cameras"):
        second.frames([0], size)
    with pytest.raises(InputError, match="depth holds 5 files, but 6 cameras"):
        second.depth([0], size)
    write_image(second.folder / "images/003.png", np.zeros((8, 8, 3)))
    with pytest.raises(InputError, match="frames differ in size"):
        second.frames([2, 3], size)
    with pytest.raises(InputError, match="is no folder"):
        find_posed_clips(tmp_path / "nowhere", FRAMES)


@pytest.mark.parametrize("spread", [True, False])
@pytest.mark.parametrize("total", [6, 9, 40])
def test_a_video_is_split_into_a_clip_and_other_frames(total, spread):
    starts = set()
    for seed in range(20):
        clip, others = split_clip(total, 6, np.random.default_rng(seed), spread=spread)
        assert len(clip) == 6
        assert (np.diff(clip) > 0).all()
        assert clip.min() >= 0
        assert clip.max() < total
        span = range(clip[0], clip[-1] + 1)
        assert sorted([*others, *span]) == list(range(total))
        assert len(span) == (20 if spread and total == 40 else 6)
        starts.add(int(clip[0]))
    assert len(starts) == 1 if total == 6 else len(starts) > 2
