"""Depth maps from files: .npy or .npz in world units, or a grey image in millimetres.

In memory a depth map is float32 [h, w], the camera's z in world units, 0 where it is unknown.
"""

import os
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.data.images import open_image
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import DAMAGED_ARRAYS

_MILLIMETRE = 0.001


def read_depth(
    path: str | os.PathLike[str],
    size: tuple[int, int] | None = None,
    *,
    unit: float = _MILLIMETRE,
) -> Float[ndarray, "h w"]:
    """Depth [h, w] in world units (metres, when it comes from an image), 0 where unknown.

    .npy holds the array; .npz holds it under "depth" or alone; any other file must be a grey image
    of 16 (or 32) bits whose values are millimetres. NaN and infinity count as unknown. An array
    [h, w, 1] or [1, h, w] is taken as [h, w].

    size: (height, width) of the image that the depth belongs to; checked when given.
    unit: of the values of an image, in metres.

    Raises InputError for a missing or unreadable file, something else than one depth map, another
    size than the image's, negative depth, and a map without a single known value.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    is_array = path.suffix.lower() in (".npy", ".npz")
    depth = _from_array(path) if is_array else _from_image(path, unit)
    if size is not None and depth.shape != tuple(size):
        raise InputError(
            f"{path}: the depth is {depth.shape[0]} x {depth.shape[1]} (height x width), "
            f"but the image is {size[0]} x {size[1]}."
        )
    depth = np.where(np.isfinite(depth), depth, np.float32(0))
    if np.any(depth < 0):
        raise InputError(
            f"{path} holds negative depth; depth must be positive, or 0 where unknown."
        )
    if not np.any(depth > 0):
        raise InputError(f"{path} holds no valid depth: every value is 0, NaN or infinite.")
    return depth


def resize_depth(depth: Float[ndarray, "h w"], size: tuple[int, int]) -> Float[ndarray, "h2 w2"]:
    """The nearest pixels at `size` = (height, width).

    A mean over a depth edge would hang between the surfaces.
    """
    row, column = (
        ((np.arange(new) + 0.5) * old / new).astype(int)
        for new, old in zip(size, depth.shape, strict=True)
    )
    return depth[np.ix_(row, column)]


def _from_array(path: Path) -> Float[ndarray, "h w"]:
    try:
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.lib.npyio.NpzFile):
            with content:
                array = content[_npz_name(path, content.files)]
        else:
            array = content
    except InputError:
        raise
    except DAMAGED_ARRAYS as error:
        raise InputError(f"{path} cannot be read as a numpy array.") from error
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path} must hold numbers, not values of type {array.dtype}.")
    shape = array.shape
    if array.ndim == 3 and 1 in (shape[0], shape[2]):
        array = array[0] if shape[0] == 1 else array[..., 0]
    if array.ndim != 2 or array.size == 0:
        raise InputError(
            f"{path} must hold one depth map of height x width, but its shape is "
            f"{' x '.join(map(str, shape)) or 'that of a single number'}."
        )
    with np.errstate(over="ignore"):
        return array.astype(np.float32)


def _npz_name(path: Path, names: list[str]) -> str:
    if "depth" in names:
        return "depth"
    if len(names) != 1:
        raise InputError(f"{path} must hold one array, or one called 'depth'.")
    return names[0]


def _from_image(path: Path, unit: float) -> Float[ndarray, "h w"]:
    image = open_image(path)
    if not image.mode.startswith("I"):
        raise InputError(
            f"{path} must be a 16-bit grey image of millimetres (or .npy, .npz), "
            f"but its pixels are of mode {image.mode}."
        )
    return np.asarray(image).astype(np.float32) * np.float32(unit)
