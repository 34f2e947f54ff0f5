"""Trajectories of the TUM RGB-D benchmark: `timestamp tx ty tz qx qy qz qw` on each line.

Camera to world, OpenCV axes, seconds and metres; # begins a comment. There are no intrinsics.
(https://cvg.cit.tum.de/data/datasets/rgbd-dataset/file_formats)
"""

import os

from scipy.spatial.transform import Rotation

from worldstereo_jax.files import atomic_write
from worldstereo_jax.geometry.camera_formats.posed_cameras import (
    PosedCameras,
    inverse,
    rigid_from_quaternions,
)
from worldstereo_jax.geometry.camera_formats.text_tables import read_rows, read_table

COLUMNS = "timestamp tx ty tz qx qy qz qw"


def read_tum(path: str | os.PathLike[str]) -> PosedCameras:
    """Cameras of a trajectory, in the order of its lines; the time stamps are their names.

    Raises:
        InputError: naming file and line.
    """
    rows = read_rows(path)
    table = read_table(path, rows, COLUMNS)
    c2w = rigid_from_quaternions(
        table[:, 4:8], table[:, 1:4], lambda i: f"{path}, line {rows[i].number}"
    )
    names = tuple(row.words[0] for row in rows)
    return PosedCameras(inverse(c2w), None, None, names, table[:, 0], metric=True)


def write_tum(path: str | os.PathLike[str], cameras: PosedCameras) -> None:
    """Write a trajectory; the cameras must have times."""
    assert cameras.times is not None
    c2w = inverse(cameras.w2c)
    quaternions = Rotation.from_matrix(c2w[:, :3, :3]).as_quat()
    lines = [f"# {COLUMNS}"]
    for time, place, turn in zip(cameras.times, c2w[:, :3, 3], quaternions, strict=True):
        lines.append(" ".join(repr(float(value)) for value in (time, *place, *turn)))
    with atomic_write(path) as temporary:
        temporary.write_text("\n".join(lines) + "\n", encoding="utf-8")
