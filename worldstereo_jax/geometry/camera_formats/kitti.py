"""Trajectories of KITTI's odometry benchmark: a camera-to-world 3 x 4 matrix on each line.

OpenCV axes, metres, row by row; there are neither intrinsics nor times.
"""

import os

from worldstereo_jax.files import atomic_write
from worldstereo_jax.geometry.camera_formats.posed_cameras import (
    PosedCameras,
    inverse,
    rigid_from_rows,
)
from worldstereo_jax.geometry.camera_formats.text_tables import read_rows, read_table

COLUMNS = "r11 r12 r13 tx r21 r22 r23 ty r31 r32 r33 tz"


def read_kitti(path: str | os.PathLike[str]) -> PosedCameras:
    """Cameras of a trajectory, in the order of its lines; their numbers are their names.

    Raises:
        InputError: naming file and line.
    """
    rows = read_rows(path)
    table = read_table(path, rows, COLUMNS)
    c2w = rigid_from_rows(table.reshape(-1, 3, 4), lambda i: f"{path}, line {rows[i].number}")
    names = tuple(f"{number:06d}" for number in range(len(rows)))
    return PosedCameras(inverse(c2w), None, None, names, metric=True)


def write_kitti(path: str | os.PathLike[str], cameras: PosedCameras) -> None:
    """Write a trajectory."""
    c2w = inverse(cameras.w2c)[:, :3].reshape(-1, 12)
    lines = [" ".join(repr(float(value)) for value in row) for row in c2w]
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
