"""Camera files: the official `camera.json` of a path, and the `cameras.json` this project writes.

Official layouts: {"extrinsic": f x 4 x 4, "intrinsic": f x 3 x 3} with "motion_list" (single view,
81 cameras) or "width" and "height" (panorama, 21 cameras). Ours has the same keys plus "format"
and "version", so either reader opens it.
"""

import json
import os
from typing import Any

import numpy as np

from worldstereo_jax.array_types import Array, Float, Int, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write, read_json_object

_FORMAT = "worldstereo-cameras"
_VERSION = 1
_ROTATION_TOLERANCE = 1e-3
_SMALL = 1e-6

Cameras = tuple[Float[ndarray, "f 4 4"], Float[ndarray, "f 3 3"], tuple[int, int] | None]
"""World-to-camera matrices, intrinsics in pixels, and (height, width) of the images if known."""


def read_camera_json(path: str | os.PathLike[str]) -> Cameras:
    """Cameras of a path: w2c [f, 4, 4], intrinsics [f, 3, 3] in pixels, (height, width) or None.

    Both arrays are float32. Raises InputError, in one sentence naming file and field, for a file
    that is missing or not JSON, a missing key, wrong shapes, numbers that are not finite, a
    rotation that is none, a singular intrinsic, and fewer than 2 cameras.
    """
    content = read_json_object(path)
    _check_format(path, content)
    w2c, intrinsics = cameras_from_fields(path, content, "")
    if len(w2c) < 2:
        raise InputError(
            f"{path}: 'extrinsic' holds {len(w2c)} cameras, but a path needs at least 2."
        )
    return w2c, intrinsics, _size(path, content)


def read_keyed_cameras(
    path: str | os.PathLike[str],
) -> tuple[list[str], Float[ndarray, "v 4 4"], Float[ndarray, "v 3 3"]]:
    """Cameras of a view bank, {"0000": {"extrinsic": 4 x 4, "intrinsic": 3 x 3}, ...}.

    Returns the keys in sorted order, w2c [v, 4, 4] and intrinsics [v, 3, 3] in that order. Raises
    InputError like `read_camera_json`, naming the key too.
    """
    content = read_json_object(path)
    if not content:
        raise InputError(f"{path} holds no cameras.")
    keys = sorted(content)
    w2c, intrinsics = [], []
    for key in keys:
        entry = content[key]
        if not isinstance(entry, dict):
            raise InputError(f"{path}: '{key}' must be an object with 'extrinsic' and 'intrinsic'.")
        wrapped = {
            name: [entry[name]]
            for name in ("extrinsic", "intrinsic")
            if entry.get(name) is not None
        }
        one_w2c, one_intrinsics = cameras_from_fields(path, wrapped, f"{key}.")
        w2c.append(one_w2c[0])
        intrinsics.append(one_intrinsics[0])
    return keys, np.stack(w2c), np.stack(intrinsics)


def cameras_from_fields(
    path: str | os.PathLike[str], content: dict[str, Any], prefix: str
) -> tuple[Float[ndarray, "f 4 4"], Float[ndarray, "f 3 3"]]:
    """Checked float32 arrays from the fields "extrinsic" and "intrinsic" of parsed JSON.

    `path` and `prefix` (say "0003.") are for the error's sentence.
    """
    w2c = _array(path, content, prefix, "extrinsic", (4, 4))
    intrinsics = _array(path, content, prefix, "intrinsic", (3, 3))
    if len(w2c) != len(intrinsics):
        raise InputError(
            f"{path}: '{prefix}extrinsic' holds {len(w2c)} cameras but '{prefix}intrinsic' "
            f"{len(intrinsics)}."
        )
    _check_rotations(f"{path}: '{prefix}extrinsic'", w2c)
    _check_intrinsics(f"{path}: '{prefix}intrinsic'", intrinsics)
    return w2c.astype(np.float32), intrinsics.astype(np.float32)


def write_cameras_json(
    path: str | os.PathLike[str],
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    size: tuple[int, int] | None = None,
) -> None:
    """Write cameras so that `read_camera_json` and the official code read them back.

    `size` is (height, width) of the images the intrinsics belong to. float32 values survive the
    round trip exactly.
    """
    content: dict[str, Any] = {"format": _FORMAT, "version": _VERSION}
    if size is not None:
        content |= {"width": int(size[1]), "height": int(size[0])}
    content |= {
        "extrinsic": np.asarray(w2c, np.float64).tolist(),
        "intrinsic": np.asarray(intrinsics, np.float64).tolist(),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(content, allow_nan=False), encoding="utf-8")


def select_cameras(
    w2c: Float[Array | ndarray, "f 4 4"], intrinsics: Float[Array | ndarray, "f 3 3"], count: int
) -> tuple[Float[ndarray, "k 4 4"], Float[ndarray, "k 3 3"]]:
    """`count` evenly spaced cameras of a path, first and last included (every 4th: 21 of 81).

    Raises InputError when `count` is below 2 or the path holds fewer cameras.
    """
    if count < 2:
        raise InputError(f"A clip needs at least 2 cameras, not {count}.")
    if len(w2c) < count:
        raise InputError(f"The clip needs {count} cameras, but its path holds only {len(w2c)}.")
    index = evenly_spaced(len(w2c), count)
    return np.asarray(w2c)[index], np.asarray(intrinsics)[index]


def evenly_spaced(total: int, count: int) -> Int[ndarray, "k"]:
    """`count` places among `total`, first and last included: every fourth for 21 of 81."""
    return np.round(np.linspace(0, total - 1, count)).astype(int)


def keyframe_indices(total: int, count: int) -> Int[ndarray, "k"]:
    """The frames of a finished clip that enter the bank: the last of each of `count` even parts.

    Frame 0 is never chosen, since the bank already holds it. With 21 frames and count 8 these are
    3, 6, 9, 12, 14, 16, 18, 20. All frames but the first are chosen when there are fewer.
    """
    parts = np.array_split(np.arange(1, total), max(1, min(count, total - 1)))
    return np.array([part[-1] for part in parts if len(part)], dtype=np.int64)


def _check_format(path: str | os.PathLike[str], content: dict[str, Any]) -> None:
    if content.get("format", _FORMAT) != _FORMAT:
        raise InputError(
            f"{path}: 'format' is {content['format']!r}, but '{_FORMAT}' was expected."
        )
    if content.get("format") == _FORMAT and content.get("version") != _VERSION:
        raise InputError(
            f"{path}: 'version' is {content.get('version')!r}, but this program reads {_VERSION}."
        )


def _size(path: str | os.PathLike[str], content: dict[str, Any]) -> tuple[int, int] | None:
    if "width" not in content and "height" not in content:
        return None
    for name in ("height", "width"):
        value = content.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise InputError(f"{path}: '{name}' must be a positive whole number of pixels.")
    return content["height"], content["width"]


def _array(
    path: str | os.PathLike[str],
    content: dict[str, Any],
    prefix: str,
    name: str,
    shape: tuple[int, int],
) -> Float[ndarray, "f rows columns"]:
    if name not in content:
        raise InputError(f"{path} has no field '{prefix}{name}'.")
    where = f"{path}: '{prefix}{name}'"
    expected = f"{where} must be a list of {shape[0]} x {shape[1]} matrices of numbers"
    try:
        array = np.array(content[name])
    except ValueError as error:
        raise InputError(f"{expected}, and its rows differ in length.") from error
    if array.dtype.kind not in "iuf":
        raise InputError(f"{expected}, and it holds something else.")
    if array.ndim != 3 or array.shape[1:] != shape:
        raise InputError(f"{expected}, but its shape is {' x '.join(map(str, array.shape))}.")
    array = array.astype(np.float64)
    # Numbers beyond float32 count as infinite, since float32 is what the rest computes in.
    finite = (np.abs(array) <= np.finfo(np.float32).max).all(axis=(1, 2))
    if not finite.all():
        raise InputError(f"{where} of camera {int(np.argmin(finite))} holds NaN or infinity.")
    return array


def _check_rotations(where: str, w2c: ndarray) -> None:
    rotation = w2c[:, :3, :3]
    error = np.abs(rotation @ np.swapaxes(rotation, -1, -2) - np.eye(3)).max(axis=(1, 2))
    for i in np.flatnonzero((error > _ROTATION_TOLERANCE) | (np.linalg.det(rotation) < 0))[:1]:
        raise InputError(f"{where} of camera {i} is no rotation in its upper left 3 x 3.")
    bottom = np.abs(w2c[:, 3] - np.array([0.0, 0.0, 0.0, 1.0])).max(axis=1)
    for i in np.flatnonzero(bottom > _SMALL)[:1]:
        raise InputError(f"{where} of camera {i} must end in the row 0 0 0 1.")


def _check_intrinsics(where: str, intrinsics: ndarray) -> None:
    focal = np.minimum(intrinsics[:, 0, 0], intrinsics[:, 1, 1])
    for i in np.flatnonzero(focal <= _SMALL)[:1]:
        raise InputError(f"{where} of camera {i} is singular: both focal lengths must be positive.")
    lower = np.abs(intrinsics[:, [1, 2, 2], [0, 0, 1]]).max(axis=1)
    for i in np.flatnonzero((lower > _SMALL) | (np.abs(intrinsics[:, 2, 2] - 1) > _SMALL))[:1]:
        raise InputError(f"{where} of camera {i} must be upper triangular and end in a 1.")
