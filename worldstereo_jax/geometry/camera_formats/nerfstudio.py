"""transforms.json of nerfstudio and instant-ngp: camera-to-world matrices, OpenGL camera axes.

The camera looks along -z with y up, so its y and z axes are turned here. Intrinsics are in pixels
from the image's corner, shared or by frame, or a field of view. What nerfstudio did to the poses it
was given (applied_transform, applied_scale) is undone: cameras and depth stand in the world that
they were recorded in. The unit is any.
(https://docs.nerf.studio/quickstart/data_conventions.html)
"""

import json
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write, read_json_object
from worldstereo_jax.geometry.camera_formats.posed_cameras import (
    PosedCameras,
    by_number,
    check_focal,
    intrinsic_matrices,
    inverse,
    rigid_from_rows,
)

TURN_AXES = np.diag([1.0, -1.0, -1.0, 1.0])
"""From OpenCV's camera axes to OpenGL's, and back."""

_PERSPECTIVE = ("PINHOLE", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL", "OPENCV", "FULL_OPENCV")
_DISTORTION = ("k1", "k2", "k3", "k4", "p1", "p2")
_SCALE_TOLERANCE = 1e-3


def read_nerfstudio(
    path: str | os.PathLike[str], size: tuple[int, int] | None = None
) -> PosedCameras:
    """Cameras in the order of the frames' `file_path`, numbers as numbers.

    Args:
        path: the file.
        size: (height, width) of the images, where the file does not tell.

    Raises:
        InputError: naming file, frame and field, also for a lens with distortion and for images of
            several sizes.
    """
    content = read_json_object(path)
    frames = content.get("frames")
    if not isinstance(frames, list) or not frames:
        raise InputError(f"{path}: 'frames' must be a list of frames, and not empty.")
    for i, frame in enumerate(frames):
        if not isinstance(frame, dict):
            raise InputError(f"{path}: 'frames[{i}]' must be an object with named fields.")
        if not isinstance(frame.get("file_path"), str):
            raise InputError(f"{path}: 'frames[{i}].file_path' must be text.")
    order = by_number([frame["file_path"] for frame in frames])

    def where(i: int) -> str:
        return f"{path}: 'frames[{order[i]}]'"

    chosen = [frames[i] for i in order]
    matrices = [
        matrix(frame.get("transform_matrix"), f"{where(i)}: 'transform_matrix'")
        for i, frame in enumerate(chosen)
    ]
    c2w = rigid_from_rows(np.stack(matrices)[:, :3], where)
    c2w = _undo(path, content, c2w) @ TURN_AXES
    lenses, sizes = [], []
    for i, frame in enumerate(chosen):
        values, own = _lens({**content, **frame}, size, where(i))
        lenses.append(values)
        sizes.append(own)
    if len(set(sizes)) > 1:
        one, other = sorted(set(sizes))[:2]
        raise InputError(
            f"{path}: its images differ in size ({one[1]} x {one[0]}, {other[1]} x {other[0]})."
        )
    intrinsics = intrinsic_matrices(*np.array(lenses).T)
    check_focal(intrinsics, where)
    depth = [frame.get("depth_file_path") for frame in chosen]
    named = all(isinstance(file, str) for file in depth)
    return PosedCameras(
        inverse(c2w),
        intrinsics,
        sizes[0],
        tuple(frame["file_path"] for frame in chosen),
        depth_files=tuple(map(str, depth)) if named else None,
    )


def write_nerfstudio(
    path: str | os.PathLike[str], cameras: PosedCameras, *, points: str | None = None
) -> None:
    """Write a file; the cameras must have a size and lenses without skew.

    Args:
        path: the file.
        cameras: named by their images, beside the file.
        points: name of a .ply file beside it, in the cameras' world; None for none.
    """
    assert cameras.size is not None
    assert cameras.intrinsics is not None
    c2w = inverse(cameras.w2c) @ TURN_AXES
    shared = bool((cameras.intrinsics == cameras.intrinsics[:1]).all())
    content: dict[str, Any] = {
        "camera_model": "PINHOLE",
        "w": cameras.size[1],
        "h": cameras.size[0],
    }
    if points is not None:
        content["ply_file_path"] = points
    if shared:
        content |= _fields(cameras.intrinsics[0])
    content["frames"] = [
        {"file_path": name, **({} if shared else _fields(k)), "transform_matrix": pose.tolist()}
        for name, k, pose in zip(cameras.names, cameras.intrinsics, c2w, strict=True)
    ]
    with atomic_write(path) as temporary:
        text = json.dumps(content, indent=1, allow_nan=False)
        temporary.write_text(text, encoding="utf-8")


def matrix(value: object, where: str) -> Float[ndarray, "4 4"]:
    """A 4 x 4 matrix of finite numbers whose last row is 0 0 0 1.

    Raises:
        InputError: beginning with `where`, for anything else.
    """
    try:
        array = np.array(value)
    except ValueError as error:
        raise InputError(f"{where} must be a 4 x 4 matrix of numbers.") from error
    if array.shape != (4, 4) or array.dtype.kind not in "iuf":
        raise InputError(f"{where} must be a 4 x 4 matrix of numbers.")
    if not np.isfinite(array).all():
        raise InputError(f"{where} holds NaN or infinity.")
    if np.abs(array[3] - [0, 0, 0, 1]).max() > 1e-6:
        raise InputError(f"{where} must end in the row 0 0 0 1.")
    return array.astype(np.float64)


def positive(fields: Mapping[str, Any], name: str, where: str) -> float:
    """A field that must be a positive number; InputError, beginning with `where`, if it is not."""
    value = _number(fields, name, where)
    if value <= 0:
        raise InputError(f"{where}: '{name}' must be positive, not {value:g}.")
    return value


def _number(fields: Mapping[str, Any], name: str, where: str) -> float:
    value = fields.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InputError(f"{where}: '{name}' must be a finite number.")
    return float(value)


def _lens(
    fields: Mapping[str, Any], size: tuple[int, int] | None, where: str
) -> tuple[tuple[float, float, float, float], tuple[int, int]]:
    """(fx, fy, cx, cy) and the (height, width) they belong to."""
    model = fields.get("camera_model", "PINHOLE")
    bent = [name for name in _DISTORTION if name in fields and _number(fields, name, where) != 0]
    if model not in _PERSPECTIVE or bent or fields.get("is_fisheye", False) is not False:
        raise InputError(
            f"{where}: its lens ({model}{', ' if bent else ''}{', '.join(bent)}) is no pinhole; "
            "undistort the images first, for instance with COLMAP's image_undistorter."
        )
    if "w" in fields or "h" in fields:
        width, height = (positive(fields, name, where) for name in ("w", "h"))
    elif size is not None:
        height, width = size
    else:
        raise InputError(f"{where}: 'w' and 'h' are missing, so the image's size must be given.")
    if "fl_x" in fields:
        fx = _number(fields, "fl_x", where)
    elif "camera_angle_x" in fields:
        fx = 0.5 * width / math.tan(0.5 * _angle(fields, "camera_angle_x", where))
    else:
        raise InputError(f"{where}: 'fl_x' is missing, and 'camera_angle_x' too.")
    if "fl_y" in fields:
        fy = _number(fields, "fl_y", where)
    elif "camera_angle_y" in fields:
        fy = 0.5 * height / math.tan(0.5 * _angle(fields, "camera_angle_y", where))
    else:
        fy = fx
    cx = _number(fields, "cx", where) if "cx" in fields else width / 2
    cy = _number(fields, "cy", where) if "cy" in fields else height / 2
    return (fx, fy, cx, cy), (round(height), round(width))


def _angle(fields: Mapping[str, Any], name: str, where: str) -> float:
    value = _number(fields, name, where)
    if not 0 < value < math.pi:
        raise InputError(f"{where}: '{name}' must be an angle between 0 and pi, not {value:g}.")
    return value


def _undo(
    path: str | os.PathLike[str], content: Mapping[str, Any], c2w: Float[ndarray, "f 4 4"]
) -> Float[ndarray, "f 4 4"]:
    """Camera-to-world matrices before nerfstudio turned, moved and scaled the world."""
    scale = 1.0
    if "applied_scale" in content:
        scale = positive(content, "applied_scale", str(path))
    applied = content.get("applied_transform")
    change = np.eye(4)
    if applied is not None:
        where = f"{path}: 'applied_transform'"
        rows = applied[:3] if isinstance(applied, list) else applied
        wrapped = [*rows, [0, 0, 0, 1]] if isinstance(rows, list) else rows
        change = matrix(wrapped, where)
        own = np.cbrt(max(np.linalg.det(change[:3, :3]), 0.0))
        square = change[:3, :3] @ change[:3, :3].T
        if own == 0 or np.abs(square / own**2 - np.eye(3)).max() > _SCALE_TOLERANCE:
            raise InputError(f"{where} must be a rotation, perhaps scaled, and a translation.")
        change[:3, :3] /= own
        change[:3, 3] /= own
        scale *= own
    undone = c2w.copy()
    undone[:, :3, 3] /= scale
    return inverse(change) @ undone


def _fields(intrinsics: Float[ndarray, "3 3"]) -> dict[str, float]:
    return {
        "fl_x": float(intrinsics[0, 0]),
        "fl_y": float(intrinsics[1, 1]),
        "cx": float(intrinsics[0, 2]),
        "cy": float(intrinsics[1, 2]),
    }
