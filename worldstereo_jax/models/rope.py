"""Rotary positions in three axes, for a clip and for references stitched to its right.

A head of size d gives t = d - 4 (d // 6) channels to time and 2 (d // 6) to rows and columns
each, in that order; theta 10000, adjacent channels form a pair.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, Int

TABLE_LENGTH = 1024
"""Positions 0 .. TABLE_LENGTH - 1 exist on every axis, as in the official model."""


class Rotary(NamedTuple):
    """Cosine and sine of every token's angles: [b or 1, tokens, head_size // 2], float32."""

    cos: Array
    sin: Array


def axis_sizes(head_size: int) -> tuple[int, int, int]:
    """Channels of a head that turn with time, row and column."""
    spatial = 2 * (head_size // 6)
    return head_size - 2 * spatial, spatial, spatial


def _axis_angles(size: int) -> np.ndarray:
    """Angles [TABLE_LENGTH, size // 2] of one axis, float64."""
    return np.arange(TABLE_LENGTH, dtype=np.float64)[:, None] * _frequencies(size)[None, :]


def _frequencies(size: int) -> np.ndarray:
    """Radians per step [size // 2] of one axis, float64."""
    return 10000.0 ** -(np.arange(0, size, 2, dtype=np.float64) / size)


def rotary_table(positions: Int[Array, "b n 3"], head_size: int) -> Rotary:
    """Cosines and sines for tokens at integer positions (frame, row, column).

    Args:
        positions: 0 <= position < TABLE_LENGTH on each axis.
        head_size: channels of an attention head.
    """
    cos, sin = [], []
    for axis, size in enumerate(axis_sizes(head_size)):
        angles = _axis_angles(size)
        cos.append(jnp.asarray(np.cos(angles), jnp.float32)[positions[..., axis]])
        sin.append(jnp.asarray(np.sin(angles), jnp.float32)[positions[..., axis]])
    return Rotary(jnp.concatenate(cos, -1), jnp.concatenate(sin, -1))


def real_rotary(positions: Float[Array, "b n 3"], head_size: int) -> Rotary:
    """Cosines and sines for tokens at any real positions, negative ones included.

    At whole positions below `TABLE_LENGTH` the same as `rotary_table`, to float32 rounding.

    Args:
        positions: one number for each axis, in tokens.
        head_size: channels of an attention head.
    """
    angles = jnp.concatenate(
        [
            positions[..., axis, None] * jnp.asarray(_frequencies(size), jnp.float32)[None, None]
            for axis, size in enumerate(axis_sizes(head_size))
        ],
        -1,
    )
    return Rotary(jnp.cos(angles), jnp.sin(angles))


def target_positions(frames: int, rows: int, columns: int) -> Int[Array, "1 n 3"]:
    """Positions of a clip's tokens in raster order: the left half of the stitched grid."""
    grid = np.indices((frames, rows, columns)).reshape(3, -1).T
    return jnp.asarray(grid[None], jnp.int32)


def reference_positions(index: Int[Array, "b r"], rows: int, columns: int) -> Int[Array, "b s 3"]:
    """Positions of reference tokens: the right half of frame `index + 1` of a grid twice as wide.

    Returns:
        Raster order within a reference, references one after another: s = r * rows * columns.
    """
    b, r = index.shape
    row, column = np.meshgrid(np.arange(rows), np.arange(columns, 2 * columns), indexing="ij")
    shape = (b, r, rows, columns)
    frame = jnp.broadcast_to((index + 1)[:, :, None, None], shape)
    grid = [jnp.broadcast_to(jnp.asarray(a)[None, None], shape) for a in (row, column)]
    return jnp.stack([frame, *grid], -1).reshape(b, r * rows * columns, 3).astype(jnp.int32)


def apply_rotary(x: Float[Array, "b n heads d"], rotary: Rotary) -> Float[Array, "b n heads d"]:
    """Turn adjacent channel pairs by each token's angles; computed in float32."""
    cos, sin = rotary.cos[:, :, None, :], rotary.sin[:, :, None, :]
    pairs = x.astype(jnp.float32).reshape(*x.shape[:-1], -1, 2)
    even, odd = pairs[..., 0], pairs[..., 1]
    turned = jnp.stack([even * cos - odd * sin, even * sin + odd * cos], -1)
    return turned.reshape(x.shape).astype(x.dtype)
