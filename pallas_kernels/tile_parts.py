"""Tall tiles in parts of their query rows, so that bits are kept only where there are some.

A tile of 512 queries, which is what keeps a TPU's matrix unit busy, is partial more than twice as
often as one of 128: along a curve through the world half of it is empty. So the bits of a partial
tile are held by parts of 128 queries, side by side, those that allow anything.
"""

import dataclasses

import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool

from pallas_kernels.block_mask import BlockMask, build_mask
from pallas_kernels.fills import EMPTY, PARTIAL, BitFill, has_part

__all__ = ["PART", "as_part_tiles", "held_parts", "rows_per_part"]

PART = 128
_MOST_PARTS = 6  # the flags of as many leave 25 bits for where the first is


def rows_per_part(tile_q: int) -> int:
    """Query rows of a part: the fewest that make at most six of a tile, in multiples of 128."""
    rows = (rows for rows in range(PART, tile_q, PART) if tile_q % rows == 0)
    return next((each for each in rows if tile_q // each <= _MOST_PARTS), tile_q)


def held_parts(allowed: Bool[Array, "n tq tk"], rows: int) -> Bool[Array, "n parts"]:
    """Which parts of tiles allow anything."""
    return jnp.any(allowed.reshape(allowed.shape[0], -1, rows, allowed.shape[2]), axis=(2, 3))


def as_part_tiles(mask: BlockMask) -> BlockMask:
    """The same mask in tiles as tall as its parts: what is held stays where it is.

    A mask whose partial tiles are not bits, or are one part each, is returned as it is.
    """
    fill = mask.fill
    if not isinstance(fill, BitFill) or fill.parts is None:
        return mask
    rows = fill.rows
    count = mask.tile_q // rows

    def spread(x: Array) -> Array:
        """[b, heads, nq, nk, parts] -> [b, heads, nq * parts, nk], those with tokens."""
        x = jnp.swapaxes(x, 3, 4)
        return x.reshape(*x.shape[:2], -1, x.shape[4])[:, :, : -(-mask.q_len // rows)]

    held = jnp.stack([has_part(fill.parts, part) for part in range(count)], axis=-1)
    held = held * (fill.slot >= 0)[..., None]
    slot = jnp.where(held == 1, fill.slot[..., None] + jnp.cumsum(held, axis=-1) - held, -1)
    state, held = jnp.broadcast_arrays(mask.state()[..., None], held)
    state = jnp.where((state == PARTIAL) & (held == 0), EMPTY, state)
    return build_mask(
        spread(state).astype(jnp.int8),
        q_len=mask.q_len,
        k_len=mask.k_len,
        tile_q=rows,
        tile_k=mask.tile_k,
        fill=dataclasses.replace(fill, slot=spread(slot), parts=None),
    )
