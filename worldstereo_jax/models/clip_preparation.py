"""Pictures as the CLIP vision encoder takes them: resized, cropped, standardised.

As `CLIPImageProcessor` of the transformers library does it to a picture of bytes: pixels are bytes
again after each axis is resized, with the filters and the rounding of the Pillow library.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.layers import along_channels

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
FILTERS = {"bicubic": "cubic", "bilinear": "linear"}
"""Filters of Pillow (bicubic with a = -0.5; both widen when they shrink), as JAX calls them."""
PIXEL_RANGES = ("official", "unit")


@dataclasses.dataclass(frozen=True)
class ClipPreparation:
    """What is done to a picture; the defaults are those of the library, and of ViT-H/14.

    Attributes:
        resize: pixels of the shorter side, which keeps the proportions; or rows and columns, which
            need not; None to leave the size.
        crop: rows and columns cut from the middle; None for no cut.
        mean: subtracted from colours in 0..1.
        std: what they are divided by then.
        resample: a name of `FILTERS`.

    Raises:
        InputError: for an unknown filter.
    """

    resize: int | tuple[int, int] | None = 224
    crop: tuple[int, int] | None = (224, 224)
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    resample: str = "bicubic"

    def __post_init__(self) -> None:
        if self.resample not in FILTERS:
            raise InputError(f"resample is {self.resample!r}, expected one of {', '.join(FILTERS)}")

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns of every result; None where they depend on the picture's."""
        if self.crop is None and not isinstance(self.resize, int):
            return self.resize
        return self.crop

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of a picture of this size before the cut."""
        if self.resize is None:
            return height, width
        if not isinstance(self.resize, int):
            return self.resize
        # The longer side is rounded down, as officially.
        short = min(height, width)
        return self.resize * height // short, self.resize * width // short


def prepare_clip(
    image: Float[Array, "b h w c"],
    preparation: ClipPreparation,
    *,
    pixel_range: str = "official",
) -> Float[Array, "b s t c"]:
    """Images in [-1, 1] as the encoder takes them.

    Args:
        image: colours in [-1, 1]; they are rounded to bytes, as files hold them.
        preparation: sizes, filter and statistics.
        pixel_range: "official": values 0..255 are standardised with the statistics of 0..1, as
            the official pipeline does by a slip (its do_rescale is off); "unit": 0..1, as the
            encoder was trained.

    Raises:
        InputError: for another pixel range, or a cut larger than the picture.
    """
    if pixel_range not in PIXEL_RANGES:
        raise InputError(f"pixel_range is {pixel_range!r}, expected {' or '.join(PIXEL_RANGES)}")
    values = _as_bytes((image / 2 + 0.5) * 255)
    rows, columns = preparation.resized(*image.shape[1:3])
    method = FILTERS[preparation.resample]
    # Columns first, as Pillow.
    for axis, size in ((2, columns), (1, rows)):
        if size != values.shape[axis]:
            shape = tuple(size if i == axis else n for i, n in enumerate(values.shape))
            values = _as_bytes(jax.image.resize(values, shape, method))
    if preparation.crop is not None:
        height, width = preparation.crop
        if height > rows or width > columns:
            raise InputError(
                f"crop is {height} x {width} pixels, expected at most the {rows} x {columns} of "
                "the resized image"
            )
        top, left = (rows - height) // 2, (columns - width) // 2
        values = values[:, top : top + height, left : left + width]
    if pixel_range == "unit":
        values = values / 255
    mean, std = (np.asarray(x, np.float32) for x in (preparation.mean, preparation.std))
    return (values - along_channels(mean, values)) / along_channels(std, values)


def _as_bytes(values: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """The nearest whole numbers in 0..255, halves upwards."""
    return jnp.clip(jnp.floor(values + 0.5), 0, 255)
