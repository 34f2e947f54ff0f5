"""Image files: any common format in, PNG out.

In memory an image is float32 [h, w, 3] in [-1, 1].
"""

import os
import warnings
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from worldstereo_jax.array_types import Array, Float, UInt8, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write


def open_image(path: str | os.PathLike[str]) -> Image.Image:
    """The decoded picture of a file, whatever its suffix, upright as its EXIF data says.

    The format is told by the bytes: JPEG or WebP under the name image.png is fine. Raises
    InputError when the file is missing, holds no image, or is cut short.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    try:
        # Pillow warns of large photographs, and refuses those twice as large.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise InputError(f"{path} is not an image of a known format.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        # Pillow reports damaged files with all of these.
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{path} cannot be read as an image: {reason}.") from error


def read_image(path: str | os.PathLike[str]) -> Float[ndarray, "h w 3"]:
    """Colours [h, w, 3] in [-1, 1], float32, of an image file; grey becomes RGB, alpha is dropped.

    Raises InputError as `open_image` does, and for floating-point grey, whose white is not told.
    """
    image = open_image(path)
    if image.mode == "F":
        raise InputError(
            f"{path} holds floating-point grey; save it with 8 or 16 bits a channel instead."
        )
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey to 8 bits; scale it instead.
        grey = np.asarray(image, np.float32) / np.float32(65535)
        return np.repeat(np.clip(grey, 0, 1)[..., None] * 2 - 1, 3, axis=-1)
    return from_uint8(np.asarray(image.convert("RGB")))


def resize_image(
    image: Float[Array | ndarray, "h w 3"], size: tuple[int, int]
) -> Float[ndarray, "h2 w2 3"]:
    """The whole image resized bicubically, without crop, to `size` = (height, width).

    Pillow's filter: it widens when shrinking, so nothing aliases. Overshoot is clipped to [-1, 1].
    """
    array = np.asarray(image, np.float32)
    if array.shape[:2] == tuple(size):
        return array
    channels = [
        np.asarray(
            Image.fromarray(np.ascontiguousarray(array[..., c])).resize(
                (size[1], size[0]), Image.Resampling.BICUBIC
            )
        )
        for c in range(3)
    ]
    return np.clip(np.stack(channels, -1), -1, 1)


def to_uint8(image: Float[Array | ndarray, "*batch"]) -> UInt8[ndarray, "*batch"]:
    """Values in [-1, 1], clipped, as 0..255 rounded to the nearest."""
    array = np.clip(np.asarray(image, np.float32), -1, 1)
    return np.round((array + 1) * np.float32(127.5)).astype(np.uint8)


def from_uint8(levels: UInt8[Array | ndarray, "*batch"]) -> Float[ndarray, "*batch"]:
    """0..255 as float32 in [-1, 1]; `to_uint8` gives the same levels back."""
    return np.asarray(levels, np.float32) / np.float32(127.5) - np.float32(1)


def write_image(path: str | os.PathLike[str], image: Float[Array | ndarray, "h w 3"]) -> None:
    """Write an image in [-1, 1] as 8-bit PNG; the file appears only when complete."""
    write_uint8_image(path, to_uint8(image))


def write_uint8_image(path: str | os.PathLike[str], image: UInt8[ndarray, "h w 3"]) -> None:
    """Write an image in 0..255 as PNG; the file appears only when complete."""
    with atomic_write(path) as temporary:
        Image.fromarray(image).save(temporary, format="PNG")
