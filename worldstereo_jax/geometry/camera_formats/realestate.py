"""Camera files of RealEstate10K: the video's URL, then a line for each frame.

`timestamp fx fy cx cy 0 0` and a world-to-camera 3 x 4 matrix row by row: OpenCV axes,
microseconds, a unit of its own. The intrinsics are shares of the image's width and height, measured
from its corner, so that its middle is 0.5 0.5: this project's pixels once multiplied.
(https://google.github.io/realestate10k/download.html)
"""

import os

import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write
from worldstereo_jax.geometry.camera_formats.posed_cameras import (
    UNIT_SIZE,
    PosedCameras,
    check_focal,
    intrinsic_matrices,
    resized,
    rigid_from_rows,
)
from worldstereo_jax.geometry.camera_formats.text_tables import is_number, read_rows, read_table

COLUMNS = "timestamp fx fy cx cy k1 k2 r11 r12 r13 tx r21 r22 r23 ty r31 r32 r33 tz"
_MICROSECONDS = 1_000_000
_NO_VIDEO = "https://"


def read_realestate(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None
) -> PosedCameras:
    """Cameras of a clip, in the order of its lines; the time stamps are their names.

    Args:
        path: the file.
        size: (height, width) of the images; without it the intrinsics stay shares of them.

    Raises:
        InputError: naming file and line, also where the lens has distortion.
    """
    rows = read_rows(path)
    if rows and not is_number(rows[0].words[0]):
        rows = rows[1:]
    table = read_table(path, rows, COLUMNS)

    def where(i: int) -> str:
        return f"{path}, line {rows[i].number}"

    for i in np.flatnonzero(table[:, 5:7].any(axis=1))[:1].tolist():
        raise InputError(f"{where(i)}: its lens has distortion; undistort the images first.")
    w2c = rigid_from_rows(table[:, 7:].reshape(-1, 3, 4), where)
    shares = intrinsic_matrices(*table[:, 1:5].T)
    check_focal(shares, where)
    names = tuple(row.words[0] for row in rows)
    times = table[:, 0] / _MICROSECONDS
    if size is None:
        return PosedCameras(w2c, shares, UNIT_SIZE, names, times)
    return PosedCameras(w2c, resized(shares, UNIT_SIZE, size), size, names, times)


def write_realestate(path: str | os.PathLike[str], cameras: PosedCameras) -> None:
    """Write a clip; the cameras must have times, a size and a lens without skew."""
    assert cameras.times is not None
    assert cameras.size is not None
    assert cameras.intrinsics is not None
    shares = resized(cameras.intrinsics, cameras.size, UNIT_SIZE)
    lines = [_NO_VIDEO]
    for time, lens, pose in zip(cameras.times, shares, cameras.w2c, strict=True):
        numbers = (lens[0, 0], lens[1, 1], lens[0, 2], lens[1, 2], 0, 0, *pose[:3].reshape(-1))
        words = (repr(float(value)) for value in numbers)
        lines.append(f"{round(float(time) * _MICROSECONDS)} {' '.join(words)}")
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
