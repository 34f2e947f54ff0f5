"""The feature pyramid that entries read from a frame: texture, patch, context (rows S1, S2, S9).

Each level looks at the picture at its own scale: a grid of colours around the place, averaged
over cells that grow from level to level. It needs no weights. A learned map of any width and
resolution (a VAE latent, DINOv2) is appended to the levels that ask for it.
"""

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.frame_check import check_shape


@dataclasses.dataclass(frozen=True)
class Level:
    """One level of the pyramid.

    name: what it is called in files. cell: side of one cell in image pixels. grid: cells along
    each side of the neighbourhood (odd), so grid x grid colours are stored. learned: whether the
    learned map is appended.
    """

    name: str
    cell: int
    grid: int
    learned: bool = False

    def __post_init__(self) -> None:
        if self.cell < 1 or self.grid < 1 or self.grid % 2 == 0:
            raise InputError(
                f"level {self.name!r} needs a cell of at least 1 pixel and an odd grid, got cell "
                f"{self.cell} and grid {self.grid}"
            )

    def width(self, learned_channels: int = 0) -> int:
        """Channels of the level when the learned map has `learned_channels`."""
        return 3 * self.grid**2 + (learned_channels if self.learned else 0)


PYRAMID = (
    Level("texture", cell=1, grid=3),
    Level("patch", cell=4, grid=3, learned=True),
    Level("context", cell=16, grid=3),
)
"""Levels by default, finest first: neighbourhoods of 3, 12 and 48 pixels."""


def pyramid_widths(
    levels: Sequence[Level] = PYRAMID, *, learned_channels: int = 0
) -> tuple[int, ...]:
    """Channels of every level: the `widths` of an `EntryConfig`."""
    return tuple(level.width(learned_channels) for level in levels)


def feature_pyramid(
    image: Float[Array, "h w 3"],
    learned: Float[Array, "lh lw c"] | None = None,
    *,
    levels: Sequence[Level] = PYRAMID,
) -> tuple[Float[Array, "..."], ...]:
    """Feature maps of a frame, one per level, each covering the whole picture.

    Args:
        image: in [-1, 1].
        learned: any map over the same picture, at any resolution; None appends nothing.
        levels: what to look at.

    Returns:
        Per level [ceil(h / cell), ceil(w / cell), width], float32.

    Raises:
        InputError: when the image has another shape, or does not hold floats.
    """
    check_shape("image", image, ("h", "w", 3))
    image = jnp.asarray(image, jnp.float32)
    return tuple(_level_map(image, learned, level) for level in levels)


def sample_map(
    features: Float[Array, "lh lw c"], pixels: Float[Array, "n 2"], *, height: int, width: int
) -> Float[Array, "n c"]:
    """Bilinear samples of a map that covers a height x width picture, at its pixels (x, y).

    Beyond the outermost cell centres the border is repeated.
    """
    rows, columns, channels = features.shape
    table = features.reshape(rows * columns, channels)
    x = jnp.clip(pixels[:, 0] * (columns / width) - 0.5, 0.0, columns - 1.0)
    y = jnp.clip(pixels[:, 1] * (rows / height) - 0.5, 0.0, rows - 1.0)
    x0, y0 = jnp.floor(x).astype(jnp.int32), jnp.floor(y).astype(jnp.int32)
    x1, y1 = jnp.minimum(x0 + 1, columns - 1), jnp.minimum(y0 + 1, rows - 1)
    fx, fy = (a - cell.astype(jnp.float32) for a, cell in ((x, x0), (y, y0)))
    found = jnp.zeros((pixels.shape[0], channels), features.dtype)
    for row, share_y in ((y0, 1.0 - fy), (y1, fy)):
        for column, share_x in ((x0, 1.0 - fx), (x1, fx)):
            tap = table.at[row * columns + column].get(mode="clip")
            found = found + (share_x * share_y)[:, None] * tap
    return found


def _level_map(
    image: Float[Array, "h w 3"], learned: Float[Array, "lh lw cl"] | None, level: Level
) -> Float[Array, "gh gw c"]:
    height, width = image.shape[:2]
    rows, columns = -(-height // level.cell), -(-width // level.cell)
    # The triangle filter of a linear resize averages over whole cells: nothing aliases.
    cells = jax.image.resize(image, (rows, columns, 3), "linear", antialias=True)
    reach = level.grid // 2
    padded = jnp.pad(cells, ((reach, reach), (reach, reach), (0, 0)), mode="edge")
    parts = [
        padded[dy : dy + rows, dx : dx + columns]
        for dy in range(level.grid)
        for dx in range(level.grid)
    ]
    if level.learned and learned is not None:
        shape = (rows, columns, learned.shape[-1])
        parts.append(jax.image.resize(learned.astype(jnp.float32), shape, "linear"))
    return jnp.concatenate(parts, -1)
