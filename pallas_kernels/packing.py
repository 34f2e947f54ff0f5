"""A mask whose partial tiles are evaluated once and held as data, for use by many layers."""

import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from pallas_kernels.block_mask import BlockMask, with_state
from pallas_kernels.fills import PARTIAL, BitFill, pack_bits
from pallas_kernels.geometry import Pairs
from pallas_kernels.refinement import over_partial, tile_kind
from pallas_kernels.soft_fill import SoftFill, encode_pairs

__all__ = ["pack_partial_tiles", "pack_soft_tiles"]


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
    shape = (mask.tile_q, mask.tile_k // 32)
    state, packed = _pack(mask, capacity, shape, jnp.uint32, lambda pairs: pack_bits(pairs.allowed))
    return with_state(mask, state, BitFill(*packed))


@functools.partial(jax.jit, static_argnames="capacity")
def pack_soft_tiles(mask: BlockMask, *, capacity: int | None = None) -> BlockMask:
    """The same soft mask with its partial tiles as numbers, four bytes a pair (see `SoftFill`).

    What the GPU kernels read; the strength stays a variable. mask: a soft one (ValueError for
    others). capacity: as in `pack_partial_tiles`, and of more weight here.
    """
    if not mask.soft:
        raise ValueError("only a soft mask's tiles hold numbers; `pack_partial_tiles` packs others")
    shape = (mask.tile_q, mask.tile_k)
    state, packed = _pack(mask, capacity, shape, jnp.int32, encode_pairs)
    return with_state(mask, state, SoftFill(*packed))


def _pack(
    mask: BlockMask,
    capacity: int | None,
    shape: tuple[int, int],
    dtype: typing.Any,
    encode: Callable[[Pairs], Array],
) -> tuple[Int[Array, "b heads nq nk"], tuple[Array, Array, Array]]:
    """Exact kinds of the tile pairs; and the encoded partial tiles, their slots, the overflow."""
    state = mask.state()
    b, heads, nq, nk = state.shape
    room = nq * nk if capacity is None else min(capacity, nq * nk)
    partial = (state == PARTIAL).reshape(b, heads, -1)
    place = jnp.cumsum(partial, axis=-1, dtype=jnp.int32) - 1
    slot = jnp.where(partial & (place < room), place, -1).reshape(state.shape)

    def update(carry, index, pairs, real):
        state, words = carry
        q, k = index.q[:, 0], index.k[:, 0]
        at = slot[index.batch, index.head, q, k]
        at = jnp.where(real & (at >= 0), at, room)
        words = words.at[index.batch, index.head, at].set(encode(pairs), mode="drop")
        row = jnp.where(real, q, nq)
        kind = tile_kind(mask, index, pairs.allowed)
        return state.at[index.batch, index.head, row, k].set(kind, mode="drop"), words

    words = jnp.zeros((b, heads, room, *shape), dtype)
    exact, words = over_partial(mask, (state, words), update)
    left = exact == PARTIAL
    overflow = jnp.sum(left & (slot < 0), axis=(2, 3), dtype=jnp.int32)
    return exact, (words, jnp.where(left, slot, -1), overflow)
