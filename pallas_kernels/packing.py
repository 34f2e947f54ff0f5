"""A mask whose partial tiles are evaluated once and held as bits, for use by many layers."""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels.block_mask import BlockMask, with_state
from pallas_kernels.fills import PARTIAL, BitFill, pack_bits
from pallas_kernels.refinement import over_partial, tile_kind

__all__ = ["pack_partial_tiles"]


@functools.partial(jax.jit, static_argnames="capacity")
def pack_partial_tiles(mask: BlockMask, *, capacity: int | None = None) -> BlockMask:
    """The same mask with its partial tiles as packed bits instead of the predicate behind them.

    Layers that share a mask then read a bit per pair where each would evaluate the geometry anew.
    Tiles are looked into on the way: those that hold nothing leave the lists, whole ones are full.

    mask: a hard mask; a soft constraint is no bit (ValueError). Its tile_k is a multiple of 32.
    capacity: partial tiles there is room for per sample and head; by default all tile pairs. Those
        beyond it lose their pairs and are counted in `fill.overflow`.
    """
    if mask.soft or mask.strength is not None:
        raise ValueError("only a hard mask can be packed into bits, and this one is soft")
    if mask.tile_k % 32:
        raise ValueError(f"tile_k must be a multiple of 32 for packed masks, got {mask.tile_k}")
    if mask.fill is None:
        return mask
    state = mask.state()
    b, heads, nq, nk = state.shape
    room = nq * nk if capacity is None else min(capacity, nq * nk)
    partial = (state == PARTIAL).reshape(b, heads, -1)
    place = jnp.cumsum(partial, axis=-1, dtype=jnp.int32) - 1
    slot = jnp.where(partial & (place < room), place, -1).reshape(state.shape)

    def update(carry, index, allowed, real):
        state, words = carry
        q, k = index.q[:, 0], index.k[:, 0]
        at = slot[index.batch, index.head, q, k]
        at = jnp.where(real & (at >= 0), at, room)
        words = words.at[index.batch, index.head, at].set(pack_bits(allowed), mode="drop")
        row = jnp.where(real, q, nq)
        kind = tile_kind(mask, index, allowed)
        return state.at[index.batch, index.head, row, k].set(kind, mode="drop"), words

    words = jnp.zeros((b, heads, room, mask.tile_q, mask.tile_k // 32), jnp.uint32)
    exact, words = over_partial(mask, (state, words), update)
    left = exact == PARTIAL
    overflow = jnp.sum(left & (slot < 0), axis=(2, 3), dtype=jnp.int32)
    return with_state(mask, exact, BitFill(words, jnp.where(left, slot, -1), overflow))
