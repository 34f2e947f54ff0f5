"""The tables of a COLMAP model in binary: cameras.bin, images.bin, points3D.bin.

Little-endian, rows without padding. (https://colmap.github.io/format.html)
"""

import math
import struct
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats.colmap_tables import PARAMETERS, Lens, Registered

_MODELS = tuple(PARAMETERS)
_FEATURE = 24  # bytes: x, y, id of the point
_TRACK = 8  # bytes: ids of an image and of its feature


class _Bytes:
    """A file's content, taken piece by piece; every fault names the file."""

    def __init__(self, path: Path):
        self.path, self._at = path, 0
        try:
            self._content = path.read_bytes()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror}.") from error

    def take(self, layout: str) -> tuple:
        self._need(struct.calcsize(f"<{layout}"))
        values = struct.unpack_from(f"<{layout}", self._content, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return values

    def take_finite(self, count: int, what: str) -> tuple[float, ...]:
        values = self.take(f"{count}d")
        if not all(map(math.isfinite, values)):
            raise InputError(f"{self.path}: {what} holds NaN or infinity.")
        return values

    def text(self) -> str:
        end = self._content.find(b"\0", self._at)
        self._need(1 if end < 0 else end + 1 - self._at, present=end >= 0)
        word, self._at = self._content[self._at : end], end + 1
        try:
            return word.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"{self.path}: the name of an image is no text.") from error

    def skip(self, size: int) -> None:
        self._need(size)
        self._at += size

    def end(self) -> None:
        if self._at != len(self._content):
            raise InputError(
                f"{self.path} is {len(self._content) - self._at} bytes longer than its table."
            )

    def _need(self, size: int, *, present: bool = True) -> None:
        if not present or self._at + size > len(self._content):
            raise InputError(f"{self.path} is cut short, or no table of a COLMAP model.")


def read_lenses(path: Path) -> dict[int, Lens]:
    """The cameras by their ids; InputError for a file that is no such table."""
    content = _Bytes(path)
    found = {}
    for _ in range(content.take("Q")[0]):
        camera, model, width, height = content.take("iiQQ")
        where = f"{path}: camera {camera}"
        if not 0 <= model < len(_MODELS):
            raise InputError(f"{where} is of the unknown model {model}.")
        if width < 1 or height < 1:
            raise InputError(f"{where} has images of {width} x {height} pixels.")
        name = _MODELS[model]
        values = content.take_finite(len(PARAMETERS[name].split()), f"camera {camera}")
        found[camera] = Lens(name, width, height, values, where)
    content.end()
    return found


def read_images(path: Path) -> list[Registered]:
    """The images in the table's order; InputError for a file that is no such table."""
    content = _Bytes(path)
    found = []
    for _ in range(content.take("Q")[0]):
        (image,) = content.take("I")
        values = content.take_finite(7, f"image {image}")
        (lens,) = content.take("I")
        name = content.text()
        found.append(Registered(name, lens, values[:4], values[4:], f"{path}: image {image}"))
        content.skip(_FEATURE * content.take("Q")[0])
    content.end()
    return found


def read_points(path: Path) -> Float[ndarray, "n 3"]:
    """Places of the points; InputError for a file that is no such table."""
    content = _Bytes(path)
    found = []
    for _ in range(content.take("Q")[0]):
        (point,) = content.take("Q")
        found.append(content.take_finite(3, f"point {point}"))
        # Colour and error lie before the length of the track.
        content.skip(3 + 8)
        content.skip(_TRACK * content.take("Q")[0])
    content.end()
    return np.array(found).reshape(-1, 3)
