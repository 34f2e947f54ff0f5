"""The official camera.json and this project's cameras.json as posed cameras; see `camera_io`."""

import os

from worldstereo_jax.geometry.camera_formats.posed_cameras import PosedCameras
from worldstereo_jax.geometry.camera_io import read_camera_json, write_cameras_json


def read_project_json(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None
) -> PosedCameras:
    """Cameras of a path, their numbers as names; `size` is the images' where the file has none.

    Raises:
        InputError: as `read_camera_json` does.
    """
    w2c, intrinsics, own = read_camera_json(path)
    names = tuple(f"{number:04d}" for number in range(len(w2c)))
    return PosedCameras(
        w2c.astype(float), intrinsics.astype(float), size if own is None else own, names
    )


def write_project_json(path: str | os.PathLike[str], cameras: PosedCameras) -> None:
    """Write a cameras.json, which keeps neither names nor times."""
    assert cameras.intrinsics is not None
    write_cameras_json(path, cameras.w2c, cameras.intrinsics, cameras.size)
