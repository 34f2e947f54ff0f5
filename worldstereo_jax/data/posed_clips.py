"""Folders of posed video to train on: one sub-folder per clip.

A clip's folder holds cameras and frames in any layout of `clip_layouts` (this project's own, what
`worldstereo generate` writes; COLMAP; nerfstudio; RealEstate10K; TUM RGB-D), and perhaps
prompt.json ("long caption" or "prompt") and depth. Frames may have any size; they are resized
without crop, and the intrinsics follow.
"""

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Float, Int, ndarray
from worldstereo_jax.data.clip_layouts import camera_files, read_layout
from worldstereo_jax.data.depth_io import resize_depth
from worldstereo_jax.data.frame_sources import Source
from worldstereo_jax.data.images import resize_image
from worldstereo_jax.data.scene_folders import read_caption
from worldstereo_jax.errors import InputError, unknown_name
from worldstereo_jax.geometry.camera_formats import FORMATS, inverse
from worldstereo_jax.geometry.camera_io import evenly_spaced
from worldstereo_jax.geometry.cameras import resize_intrinsics

_PROMPT = "prompt.json"


@dataclasses.dataclass(frozen=True)
class PosedClip:
    """A clip's folder with its cameras read; frames are read when asked for.

    Attributes:
        folder: where it lies.
        w2c: world-to-camera matrices [f, 4, 4]; the first camera's frame is the world's, unless
            the cameras are this project's own.
        intrinsics: [f, 3, 3], in pixels of `size`.
        size: (height, width) that the intrinsics belong to; None for that of the frames.
        prompt: the caption, empty where there is none.
        pictures: the frames.
        maps: their depth, None where the folder has none.
        points: of the surfaces [n, 3], in the world and unit of the cameras, where a COLMAP model
            has some.
    """

    folder: Path
    w2c: Float[ndarray, "f 4 4"]
    intrinsics: Float[ndarray, "f 3 3"]
    size: tuple[int, int] | None
    prompt: str
    pictures: Source
    maps: Source | None
    points: Float[ndarray, "n 3"] | None

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
        pictures = self.pictures.read(chosen)
        sizes = {picture.shape[:2] for picture in pictures}
        if len(sizes) != 1:
            raise InputError(f"{self.folder}: its frames differ in size: {sorted(sizes)}.")
        own = self.size if self.size is not None else sizes.pop()
        intrinsics = np.asarray(resize_intrinsics(self.intrinsics[list(chosen)], own, size))
        return np.stack([resize_image(picture, size) for picture in pictures]), intrinsics

    def lenses(self, chosen: Sequence[int], size: tuple[int, int]) -> Float[ndarray, "n 3 3"]:
        """Intrinsics of some frames at `size`, without reading them all; see `frames`."""
        own = self.size
        if own is None:
            height, width = self.pictures.read([0])[0].shape[:2]
            own = height, width
        return np.asarray(resize_intrinsics(self.intrinsics[list(chosen)], own, size))

    def depth(self, chosen: Sequence[int], size: tuple[int, int]) -> Float[ndarray, "n h w"] | None:
        """Depth of some frames at `size`, 0 where unknown; None where the folder has none.

        Raises:
            InputError: for depth that is unreadable, or of another number of frames.
        """
        if self.maps is None:
            return None
        return np.stack([resize_depth(depth, size) for depth in self.maps.read(chosen)])


def find_posed_clips(
    folder: str | os.PathLike[str], frames: int, *, camera_format: str | None = None
) -> list[PosedClip]:
    """The clips of a folder by name; everything but frames and depth is read and checked.

    Args:
        folder: holds one sub-folder per clip; those without cameras are passed over.
        frames: fewest frames that a clip must have.
        camera_format: which cameras are read, for folders that hold several kinds.

    Raises:
        InputError: for a folder without clips, and, naming file and field, for a clip without
            frames, with faulty cameras or caption, with several kinds of cameras, or with too few.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; one with a sub-folder per clip was expected.")
    if camera_format is not None and camera_format not in FORMATS:
        raise InputError(unknown_name("camera format", camera_format, FORMATS))
    found = [
        (path, files)
        for path in sorted(folder.iterdir())
        if (files := camera_files(path)) and camera_format in (None, *files)
    ]
    if not found:
        raise InputError(
            f"{folder} has no sub-folder with {camera_format or 'known'} cameras (cameras.json, "
            "sparse/0, transforms.json, a file of RealEstate10K, or groundtruth.txt and rgb.txt)."
        )
    clips = []
    for path, files in found:
        if camera_format is None and len(files) > 1:
            raise InputError(
                f"{path} holds cameras of several formats ({', '.join(files)}); choose one."
            )
        clips.append(read_posed_clip(path, frames, camera_format or next(iter(files))))
    return clips


def read_posed_clip(folder: Path, frames: int, camera_format: str) -> PosedClip:
    """One clip's folder; see `find_posed_clips`."""
    layout = read_layout(folder, camera_format)
    cameras = layout.cameras
    if len(cameras) < frames:
        raise InputError(
            f"{folder}: its cameras ({camera_format}) are {len(cameras)}, but the model's clips "
            f"have {frames} frames."
        )
    assert cameras.intrinsics is not None
    w2c, points = cameras.w2c, cameras.points
    if camera_format != "worldstereo":
        # A recording's world may begin far away, where float32 is coarse.
        start = w2c[0]
        w2c = w2c @ inverse(start)
        points = None if points is None else points @ start[:3, :3].T + start[:3, 3]
    prompt = folder / _PROMPT
    return PosedClip(
        folder=folder,
        w2c=w2c.astype(np.float32),
        intrinsics=cameras.intrinsics.astype(np.float32),
        size=cameras.size,
        prompt=read_caption(prompt) if prompt.exists() else "",
        pictures=layout.pictures,
        maps=layout.depth,
        points=None if points is None else points.astype(np.float32),
    )


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
