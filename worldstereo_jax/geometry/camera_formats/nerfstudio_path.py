"""camera_path.json, which nerfstudio's viewer writes: a path laid by hand, to be rendered.

Camera-to-world matrices of 16 numbers row by row, OpenGL camera axes, and a vertical field of view
in degrees by camera; the world is the viewer's and the unit is any.
"""

import math
import os

import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import read_json_object
from worldstereo_jax.geometry.camera_formats.nerfstudio import TURN_AXES, matrix, positive
from worldstereo_jax.geometry.camera_formats.posed_cameras import (
    PosedCameras,
    intrinsic_matrices,
    inverse,
    rigid_from_rows,
)


def read_nerfstudio_path(path: str | os.PathLike[str]) -> PosedCameras:
    """Cameras of the path in its order; their numbers are their names.

    Raises:
        InputError: naming file, camera and field, also for a path of another kind of camera.
    """
    content = read_json_object(path)
    kind = content.get("camera_type", "perspective")
    if kind != "perspective":
        raise InputError(f"{path}: 'camera_type' is {kind!r}; only 'perspective' is a pinhole.")
    height, width = (
        round(positive(content, f"render_{name}", str(path))) for name in ("height", "width")
    )
    cameras = content.get("camera_path")
    if not isinstance(cameras, list) or not cameras:
        raise InputError(f"{path}: 'camera_path' must be a list of cameras, and not empty.")

    def where(i: int) -> str:
        return f"{path}: 'camera_path[{i}]'"

    matrices, focal = [], []
    for i, camera in enumerate(cameras):
        if not isinstance(camera, dict):
            raise InputError(f"{where(i)} must be an object with named fields.")
        flat = camera.get("camera_to_world")
        if not isinstance(flat, list) or len(flat) != 16:
            raise InputError(f"{where(i)}: 'camera_to_world' must be a list of 16 numbers.")
        rows = [flat[start : start + 4] for start in range(0, 16, 4)]
        matrices.append(matrix(rows, f"{where(i)}: 'camera_to_world'"))
        angle = positive(camera, "fov", where(i))
        if angle >= 180:
            raise InputError(f"{where(i)}: 'fov' must be below 180 degrees, not {angle:g}.")
        focal.append(0.5 * height / math.tan(math.radians(angle) / 2))
    c2w = rigid_from_rows(np.stack(matrices)[:, :3], where) @ TURN_AXES
    middle = np.ones(len(focal))
    intrinsics = intrinsic_matrices(
        np.array(focal), np.array(focal), middle * width / 2, middle * height / 2
    )
    names = tuple(f"{number:04d}" for number in range(len(focal)))
    return PosedCameras(inverse(c2w), intrinsics, (height, width), names)
