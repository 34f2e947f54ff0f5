"""The tables of a COLMAP model as text: cameras.txt, images.txt, points3D.txt.

(https://colmap.github.io/format.html)
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from worldstereo_jax.array_types import Array, Float, UInt8, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats.colmap_tables import PARAMETERS, Lens, Registered
from worldstereo_jax.geometry.camera_formats.text_tables import number, read_lines, read_rows

_IMAGE = "IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME"
_POINT = "POINT3D_ID X Y Z R G B ERROR TRACK[]"


def read_lenses(path: Path) -> dict[int, Lens]:
    """The cameras by their ids; InputError, naming file and line, for a row that is none."""
    found = {}
    for row in read_rows(path):
        line, words = row.number, row.words
        if len(words) < 4:
            raise InputError(
                f"{path}, line {line} has {len(words)} columns; CAMERA_ID MODEL WIDTH HEIGHT "
                "PARAMS[] were expected."
            )
        if words[1] not in PARAMETERS:
            raise InputError(f"{path}, line {line}: there is no camera model {words[1]!r}.")
        names = PARAMETERS[words[1]].split()
        if len(words) != 4 + len(names):
            raise InputError(
                f"{path}, line {line}: {words[1]} has the {len(names)} parameters "
                f"{' '.join(names)}, but {len(words) - 4} are there."
            )
        width, height = (_whole(path, line, words[i], least=1) for i in (2, 3))
        values = tuple(number(path, line, word) for word in words[4:])
        found[_whole(path, line, words[0])] = Lens(
            words[1], width, height, values, f"{path}, line {line}"
        )
    return found


def read_images(path: Path) -> list[Registered]:
    """The images in the table's order; InputError, naming file and line, for a row that is none.

    Every image has a second line, of its features, which may be empty.
    """
    lines = enumerate(read_lines(path), 1)
    found = []
    for line, text in lines:
        if not text.strip() or text.lstrip().startswith("#"):
            continue
        # A name may hold spaces.
        words = text.split(maxsplit=9)
        if len(words) != 10:
            raise InputError(
                f"{path}, line {line} has {len(words)} columns; {_IMAGE} were expected."
            )
        values = tuple(number(path, line, word) for word in words[1:8])
        lens = _whole(path, line, words[8])
        found.append(
            Registered(words[9].rstrip(), lens, values[:4], values[4:], f"{path}, line {line}")
        )
        features = next(lines, (line + 1, ""))
        if len(features[1].split()) % 3:
            raise InputError(
                f"{path}, line {features[0]} must hold the features X Y POINT3D_ID of "
                f"{found[-1].name}, or be empty."
            )
    return found


def read_points(path: Path) -> Float[ndarray, "n 3"]:
    """Places of the points; InputError, naming file and line, for a row that is none."""
    rows = read_rows(path)
    for row in rows:
        if len(row.words) < 8:
            raise InputError(
                f"{path}, line {row.number} has {len(row.words)} columns; {_POINT} were expected."
            )
    places = [[number(path, row.number, word) for word in row.words[1:4]] for row in rows]
    return np.array(places).reshape(-1, 3)


def lens_line(camera: int, intrinsics: Float[Array | ndarray, "3 3"], size: tuple[int, int]) -> str:
    """A row of cameras.txt: a pinhole of images of `size` = (height, width), without skew."""
    k = np.asarray(intrinsics, np.float64)
    words = " ".join(repr(float(x)) for x in (k[0, 0], k[1, 1], k[0, 2], k[1, 2]))
    return f"{camera} PINHOLE {size[1]} {size[0]} {words}"


def image_lines(
    image: int, w2c: Float[Array | ndarray, "4 4"], camera: int, name: str
) -> list[str]:
    """The two rows of images.txt for an image; the second, of its features, is empty."""
    pose = np.asarray(w2c, np.float64)
    x, y, z, w = Rotation.from_matrix(pose[:3, :3]).as_quat()
    words = " ".join(repr(float(value)) for value in (w, x, y, z, *pose[:3, 3]))
    return [f"{image} {words} {camera} {name}", ""]


def point_lines(places: Float[Array | ndarray, "n 3"], colors: UInt8[ndarray, "n 3"]) -> list[str]:
    """Rows of points3D.txt, of points that no image is known to show."""
    return [
        f"{i} {x:.7g} {y:.7g} {z:.7g} {r} {g} {b} 0"
        for i, ((x, y, z), (r, g, b)) in enumerate(zip(places, colors, strict=True), 1)
    ]


def write_tables(
    folder: Path, lenses: Sequence[str], images: Sequence[str], points: Sequence[str]
) -> None:
    """Write the rows of the three tables into a folder that is there."""
    for name, lines in (("cameras", lenses), ("images", images), ("points3D", points)):
        text = "".join(f"{line}\n" for line in lines)
        (folder / f"{name}.txt").write_text(text, encoding="utf-8")


def _whole(path: Path, line: int, word: str, least: int = 0) -> int:
    if not (word.isascii() and word.isdecimal()) or int(word) < least:
        raise InputError(f"{path}, line {line}: {word!r} is no whole number of at least {least}.")
    return int(word)
