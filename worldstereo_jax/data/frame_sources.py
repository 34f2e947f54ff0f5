"""Where the frames and the depth of posed video lie, and how some of them are read.

A source is asked for frames by their number among the cameras. What can be wrong with files is
found when they are read, not before: a data set's folders would take too long.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.data.depth_io import read_depth
from worldstereo_jax.data.images import from_uint8, read_image
from worldstereo_jax.data.video_io import read_video_frames, read_video_times
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import DAMAGED_ARRAYS


@runtime_checkable
class Source(Protocol):
    """Frames, or depth maps, of a clip."""

    def read(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w ..."]]:
        """Some of them, in the order asked for; InputError for what is missing or unreadable.

        Frames are [h, w, 3] in [-1, 1], depth is [h, w] in world units with 0 for unknown.
        """
        ...


@dataclasses.dataclass(frozen=True)
class ImageFiles:
    """One picture a frame."""

    files: tuple[Path, ...]

    def read(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w 3"]]:
        """See `Source`."""
        return [read_image(self.files[index]) for index in chosen]


@dataclasses.dataclass(frozen=True)
class ImageFolder:
    """A folder of `count` pictures and nothing else, in the order of their names."""

    folder: Path
    count: int

    def read(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w 3"]]:
        """See `Source`."""
        return ImageFiles(tuple(one_per_camera(self.folder, self.count))).read(chosen)


@dataclasses.dataclass(frozen=True)
class Video:
    """A video of `count` frames."""

    file: Path
    count: int

    def read(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w 3"]]:
        """See `Source`."""
        return [from_uint8(frame) for frame in read_video_frames(self.file, chosen, self.count)]


@dataclasses.dataclass(frozen=True)
class VideoAtTimes:
    """Those frames of a video that are shown at some times, in seconds from its start."""

    file: Path
    times: tuple[float, ...]

    def read(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w 3"]]:
        """See `Source`."""
        wanted = [self.times[index] for index in chosen]
        return [from_uint8(frame) for frame in read_video_times(self.file, wanted)]


@dataclasses.dataclass(frozen=True)
class DepthFiles:
    """One depth map a frame, None where a frame has none: of such a map nothing is known.

    Attributes:
        files: one a frame.
        unit: of the values of images, in metres.
    """

    files: tuple[Path | None, ...]
    unit: float = 0.001

    def read(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w"]]:
        """See `Source`; a frame without a map is 0 everywhere, of a single pixel."""
        found = []
        for index in chosen:
            file = self.files[index]
            nothing = np.zeros((1, 1), np.float32)
            found.append(nothing if file is None else read_depth(file, unit=self.unit))
        return found


@dataclasses.dataclass(frozen=True)
class DepthFolder:
    """A folder of `count` depth maps and nothing else, in the order of their names."""

    folder: Path
    count: int

    def read(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w"]]:
        """See `Source`."""
        return DepthFiles(tuple(one_per_camera(self.folder, self.count))).read(chosen)


@dataclasses.dataclass(frozen=True)
class DepthStack:
    """A numpy archive of `count` maps, [f, h, w]."""

    file: Path
    count: int

    def read(self, chosen: Sequence[int]) -> list[Float[ndarray, "h w"]]:
        """See `Source`."""
        depth = _read_stack(self.file)
        if depth.ndim != 3 or len(depth) != self.count:
            raise InputError(
                f"{self.file}: 'depth' has shape {' x '.join(map(str, depth.shape))}, expected one "
                f"map for each of {self.count} cameras."
            )
        known = np.where(np.isfinite(depth), depth, 0)[list(chosen)].astype(np.float32)
        if (known < 0).any():
            raise InputError(
                f"{self.file}: 'depth' is negative; it must be positive, or 0 if unknown."
            )
        return list(known)


def one_per_camera(folder: Path, count: int) -> list[Path]:
    """The files of a folder by name; InputError when they are not as many as the cameras."""
    files = visible_files(folder)
    if len(files) != count:
        raise InputError(f"{folder} holds {len(files)} files, but {count} cameras belong to it.")
    return files


def visible_files(folder: Path) -> list[Path]:
    """The files of a folder by name, without hidden ones."""
    return sorted(path for path in folder.iterdir() if path.is_file() and path.name[0] != ".")


def by_stem(folder: Path) -> dict[str, Path]:
    """The files of a folder by their names without suffix; InputError when two share one."""
    found: dict[str, Path] = {}
    for file in visible_files(folder):
        if file.stem in found:
            raise InputError(f"{folder} holds both {found[file.stem].name} and {file.name}.")
        found[file.stem] = file
    return found


def _read_stack(file: Path) -> ndarray:
    try:
        with np.load(file) as content:
            name = "depth" if "depth" in content.files else content.files[0]
            depth = content[name]
    except DAMAGED_ARRAYS as error:
        raise InputError(f"{file} cannot be read as a numpy archive with 'depth'.") from error
    if depth.dtype.kind not in "iuf":
        raise InputError(f"{file}: 'depth' must hold numbers, not values of type {depth.dtype}.")
    return depth
