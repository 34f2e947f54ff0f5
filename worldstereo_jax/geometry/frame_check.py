"""Whether a frame's arrays are what the conventions say: one sentence that names the one at fault.

Shapes and types are known while a program is traced, so they are checked inside jit too. Values are
not: `check_values` is for the plain Python at which a memory begins.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.errors import InputError

# Resampling overshoots; pixels in 0 .. 255 are far beyond.
_MOST_COLOUR = 1.25
# Between these float32 holds the squares, variances and areas that the memories compute.
_LEAST_DEPTH, _MOST_DEPTH = 1e-8, 1e9
_NOT_RIGID = 1e-2
# A focal length below this share of the picture's side sees more than 177 degrees.
_LEAST_FOCAL = 0.02


def check_shape(name: str, value: object, wanted: Sequence[int | str]) -> None:
    """Raise unless `value` is an array of floats of the wanted shape; a str is an axis of any size.

    Args:
        name: of the argument, for the sentence.
        value: array or tracer.
        wanted: sizes; the names of axes stand for any size but 0.

    Raises:
        InputError: when it is no array, of another shape, or not of floats.
    """
    text = "[" + ", ".join(map(str, wanted)) + "]"
    if not isinstance(value, jax.Array | np.ndarray):
        raise InputError(f"{name} must be an array of shape {text}, got a {type(value).__name__}")
    fits = len(value.shape) == len(wanted) and all(
        size > 0 if isinstance(axis, str) else size == axis
        for size, axis in zip(value.shape, wanted, strict=True)
    )
    if not fits:
        raise InputError(f"{name} must have shape {text}, got {list(value.shape)}")
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(f"{name} must hold floats, got {value.dtype}")


def check_cameras(w2c: object, intrinsics: object, *, leading: Sequence[int | str] = ()) -> None:
    """Raise unless w2c is [*leading, 4, 4] and intrinsics [*leading, 3, 3].

    Raises:
        InputError: naming the argument at fault.
    """
    check_shape("w2c", w2c, (*leading, 4, 4))
    check_shape("intrinsics", intrinsics, (*leading, 3, 3))


def check_frame(
    image: object,
    depth: object,
    w2c: object,
    intrinsics: object,
    *,
    size: Sequence[int] | None = None,
    frames: int | None = None,
) -> None:
    """Raise unless image, depth and camera have the shapes of one frame, or of several.

    Args:
        image: [h, w, 3]; depth: [h, w]; w2c: [4, 4]; intrinsics: [3, 3].
        size: h and w; the image's own when None.
        frames: length of a leading axis that all four must have; none when None.

    Raises:
        InputError: naming the argument at fault.
    """
    lead = () if frames is None else (frames,)
    check_shape("image", image, (*lead, *(size or ("h", "w")), 3))
    assert isinstance(image, jax.Array | np.ndarray)  # checked before
    check_shape("depth", depth, image.shape[:-1])
    check_cameras(w2c, intrinsics, leading=lead)


def check_values(
    image: Float[Array | ndarray, "h w 3"],
    depth: Float[Array | ndarray, "h w"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
) -> None:
    """Raise where the values of one frame break the conventions; values being traced pass.

    Depth that is 0, infinite or no number is unknown, which any share of it may be (row S36).

    Raises:
        InputError: naming the argument at fault: an image that is not in [-1, 1], negative depth,
            depth too small or large for float32, a camera that is not rigid or whose focal lengths
            are not positive and in pixels.
    """
    # Anything of a frame may be traced while the rest is not.
    known = {
        name: np.asarray(jax.device_get(value), np.float32)
        for name, value in (
            ("image", image),
            ("depth", depth),
            ("w2c", w2c),
            ("intrinsics", intrinsics),
        )
        if not isinstance(value, Tracer)
    }
    if "image" in known:
        _check_image(known["image"])
    if "depth" in known:
        _check_depth(known["depth"])
    if "w2c" in known:
        _check_w2c(known["w2c"])
    if "intrinsics" in known:
        _check_intrinsics(known["intrinsics"], *image.shape[:2])


def _check_image(image: Float[ndarray, "h w 3"]) -> None:
    if not np.isfinite(image).all():
        raise InputError("image must be finite, and holds values that are NaN or infinite")
    low, high = float(image.min()), float(image.max())
    if max(-low, high) > _MOST_COLOUR:
        raise InputError(f"image must lie in [-1, 1], and goes from {low:g} to {high:g}")


def _check_depth(depth: Float[ndarray, "h w"]) -> None:
    if (depth < 0).any():
        raise InputError(
            "depth must not be negative (0 stands for unknown), and goes down to "
            f"{float(np.nanmin(depth)):g}"
        )
    there = depth[np.isfinite(depth) & (depth > 0)]
    if there.size and not (there.min() >= _LEAST_DEPTH and there.max() <= _MOST_DEPTH):
        raise InputError(
            f"depth must lie between {_LEAST_DEPTH:g} and {_MOST_DEPTH:g} world units where it is "
            f"known, and goes from {float(there.min()):g} to {float(there.max()):g}"
        )


def _check_w2c(w2c: Float[ndarray, "4 4"]) -> None:
    turn = w2c[:3, :3]
    rigid = np.isfinite(w2c).all() and np.abs(turn @ turn.T - np.eye(3)).max() < _NOT_RIGID
    if not rigid or np.linalg.det(turn) < 0 or np.abs(w2c[3] - [0, 0, 0, 1]).max() > _NOT_RIGID:
        raise InputError(
            "w2c must be a rigid motion from world to camera: a rotation without scale or "
            "reflection, a translation, and the last row 0 0 0 1"
        )


def _check_intrinsics(intrinsics: Float[ndarray, "3 3"], height: int, width: int) -> None:
    focal = float(intrinsics[0, 0]), float(intrinsics[1, 1])
    pixels = focal[0] >= _LEAST_FOCAL * width and focal[1] >= _LEAST_FOCAL * height
    last = np.abs(intrinsics[2] - [0, 0, 1]).max() < 1e-6
    if not (np.isfinite(intrinsics).all() and pixels and last):
        raise InputError(
            "intrinsics must be finite, in pixels, with positive focal lengths and the last row "
            f"0 0 1, and have focal lengths {focal[0]:g} and {focal[1]:g} for an image of "
            f"{height}x{width}"
        )
