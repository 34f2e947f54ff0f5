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
    capacity: tiles there is room for per sample and head that are partial once looked into; by
        default all tile pairs. Those beyond it lose their pairs and are counted in
        `fill.overflow`.
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

    def update(carry, index, pairs, real):
        state, slot, used, words = carry
        q, k = jnp.where(real, index.q[:, 0], nq), index.k[:, 0]
        kind = tile_kind(mask, index, pairs.allowed)
        # Only what turns out to be partial takes a slot, the next one of its sample and head.
        left = real & (kind == PARTIAL)
        together = (index.batch[:, None] == index.batch[None]) & (
            index.head[:, None] == index.head[None]
        )
        before = jnp.sum(jnp.tril(together & left[None], -1), axis=1, dtype=jnp.int32)
        at = used[index.batch, index.head] + before
        at = jnp.where(left & (at < room), at, room)
        place = index.batch, index.head, q, k
        return (
            state.at[place].set(kind, mode="drop"),
            slot.at[place].set(jnp.where(at < room, at, -1), mode="drop"),
            used.at[index.batch, index.head].add(left.astype(jnp.int32)),
            words.at[index.batch, index.head, at].set(encode(pairs), mode="drop"),
        )

    slot = jnp.full(state.shape, -1, jnp.int32)
    used = jnp.zeros((b, heads), jnp.int32)
    words = jnp.zeros((b, heads, room, *shape), dtype)
    exact, slot, used, words = over_partial(mask, (state, slot, used, words), update)
    return exact, (words, slot, jnp.maximum(used - room, 0))
