"""Folders of posed video to train on: one sub-folder per clip.

A clip's folder holds video.mp4 or images/ (one picture per frame, in the order of their names),
cameras.json as `worldstereo generate` writes it (camera.json is found too), and perhaps
prompt.json ("long caption" or "prompt") and depth: depth.npz with one array [f, h, w], or depth/
with one file per frame (see `depth_io`). Frames may have any size; they are resized without crop,
and the intrinsics follow.
"""

import dataclasses
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Float, Int, ndarray
from worldstereo_jax.data.depth_io import read_depth
from worldstereo_jax.data.images import read_image, resize_image
from worldstereo_jax.data.scene_folders import read_caption
from worldstereo_jax.data.video_io import read_video_frames
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import evenly_spaced, read_camera_json
from worldstereo_jax.geometry.cameras import resize_intrinsics

_CAMERAS = ("cameras.json", "camera.json")
_VIDEO, _IMAGES, _PROMPT = "video.mp4", "images", "prompt.json"
_DEPTH_FILE, _DEPTH_FOLDER = "depth.npz", "depth"


@dataclasses.dataclass(frozen=True)
class PosedClip:
    """A clip's folder with its cameras read; frames are read when asked for.

    Attributes:
        folder: where it lies.
        w2c: world-to-camera matrices [f, 4, 4].
        intrinsics: [f, 3, 3], in pixels of `size`.
        size: (height, width) that the intrinsics belong to; None for that of the frames.
        prompt: the caption, empty where there is none.
    """

    folder: Path
    w2c: Float[ndarray, "f 4 4"]
    intrinsics: Float[ndarray, "f 3 3"]
    size: tuple[int, int] | None
    prompt: str

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    def __len__(self) -> int:
        return len(self.w2c)

    def frames(
        self, chosen: Sequence[int], size: tuple[int, int]
    ) -> tuple[Float[ndarray, "n h w 3"], Float[ndarray, "n 3 3"]]:
        """Some frames in [-1, 1] at `size` = (height, width), and their intrinsics there.

        Raises:
            InputError: for frames that are missing, unreadable, or not as many as the cameras.
        """
        pictures = self._pictures(chosen)
        sizes = {picture.shape[:2] for picture in pictures}
        if len(sizes) != 1:
            raise InputError(f"{self.folder}: its frames differ in size: {sorted(sizes)}.")
        own = self.size if self.size is not None else sizes.pop()
        intrinsics = np.asarray(resize_intrinsics(self.intrinsics[list(chosen)], own, size))
        return np.stack([resize_image(picture, size) for picture in pictures]), intrinsics

    def depth(self, chosen: Sequence[int], size: tuple[int, int]) -> Float[ndarray, "n h w"] | None:
        """Depth of some frames at `size`, 0 where unknown; None where the folder has none.

        Nearest pixels are taken: a mean over a depth edge would hang between the surfaces.

        Raises:
            InputError: for depth that is unreadable, or of another number of frames.
        """
        maps = self._depth_maps(chosen)
        return None if maps is None else np.stack([_nearest(depth, size) for depth in maps])

    def _pictures(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w 3"]]:
        folder, video = self.folder / _IMAGES, self.folder / _VIDEO
        if not folder.is_dir():
            frames = read_video_frames(video, chosen, len(self))
            return [
                frame.astype(np.float32) / np.float32(127.5) - np.float32(1) for frame in frames
            ]
        files = _one_per_camera(folder, len(self))
        return [read_image(files[index]) for index in chosen]

    def _depth_maps(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w"]] | None:
        folder, file = self.folder / _DEPTH_FOLDER, self.folder / _DEPTH_FILE
        if folder.is_dir():
            files = _one_per_camera(folder, len(self))
            return [read_depth(files[index]) for index in chosen]
        if not file.is_file():
            return None
        depth = _read_depth_stack(file)
        if depth.ndim != 3 or len(depth) != len(self):
            raise InputError(
                f"{file}: 'depth' has shape {' x '.join(map(str, depth.shape))}, expected one map "
                f"for each of {len(self)} cameras."
            )
        known = np.where(np.isfinite(depth), depth, 0)[list(chosen)].astype(np.float32)
        if (known < 0).any():
            raise InputError(f"{file}: 'depth' is negative; it must be positive, or 0 if unknown.")
        return list(known)


def find_posed_clips(folder: str | os.PathLike[str], frames: int) -> list[PosedClip]:
    """The clips of a folder by name; everything but frames and depth is read and checked.

    Args:
        folder: holds one sub-folder per clip; those without a camera file are passed over.
        frames: fewest frames that a clip must have.

    Raises:
        InputError: for a folder without clips, and, naming file and field, for a clip without
            frames, with a faulty camera file or caption, or with too few cameras.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; one with a sub-folder per clip was expected.")
    found = [path for path in sorted(folder.iterdir()) if _camera_file(path) is not None]
    if not found:
        raise InputError(f"{folder} has no sub-folder with a {_CAMERAS[0]}.")
    return [read_posed_clip(path, frames) for path in found]


def read_posed_clip(folder: Path, frames: int) -> PosedClip:
    """One clip's folder; see `find_posed_clips`."""
    cameras = _camera_file(folder)
    if cameras is None:
        raise InputError(f"{folder} has no {_CAMERAS[0]}.")
    if not (folder / _VIDEO).is_file() and not (folder / _IMAGES).is_dir():
        raise InputError(f"{folder} has neither {_VIDEO} nor {_IMAGES}/.")
    w2c, intrinsics, size = read_camera_json(cameras)
    if len(w2c) < frames:
        raise InputError(
            f"{cameras}: 'extrinsic' holds {len(w2c)} cameras, but the model's clips have {frames} "
            "frames."
        )
    prompt = folder / _PROMPT
    text = read_caption(prompt) if prompt.exists() else ""
    return PosedClip(folder, w2c, intrinsics, size, text)


def split_clip(
    total: int, frames: int, rng: np.random.Generator, *, spread: bool
) -> tuple[Int[ndarray, "f"], Int[ndarray, "r"]]:
    """Which frames of a video become the clip, and which may be views to attend to.

    The clip is a window at random; the other frames are misaligned with it in time. What lies
    between the clip's own frames is neither, since it shows nearly the same.

    Args:
        total: frames of the video.
        frames: of the clip.
        rng: places the window.
        spread: keyframes, spread over a window of half of the video; else frames that follow each
            other.
    """
    span = max(frames, total // 2) if spread else frames
    start = int(rng.integers(0, total - span + 1))
    clip = start + evenly_spaced(span, frames)
    others = np.concatenate([np.arange(start), np.arange(start + span, total)])
    return clip, others


def _camera_file(folder: Path) -> Path | None:
    return next((folder / name for name in _CAMERAS if (folder / name).is_file()), None)


def _one_per_camera(folder: Path, count: int) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")
    if len(files) != count:
        raise InputError(f"{folder} holds {len(files)} files, but {count} cameras belong to it.")
    return files


def _read_depth_stack(file: Path) -> ndarray:
    try:
        with np.load(file) as content:
            name = "depth" if "depth" in content.files else content.files[0]
            depth = content[name]
    except (OSError, ValueError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise InputError(f"{file} cannot be read as a numpy archive with 'depth'.") from error
    if depth.dtype.kind not in "iuf":
        raise InputError(f"{file}: 'depth' must hold numbers, not values of type {depth.dtype}.")
    return depth


def _nearest(depth: Float[ndarray, "h w"], size: tuple[int, int]) -> Float[ndarray, "h2 w2"]:
    row, column = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, depth.shape, strict=True)
    )
    return depth[np.ix_(row, column)]
