"""A mask whose partial tiles are evaluated once and held as data, for use by many layers.

Its metadata is then all that a mask holds: the lists of both sides, a table of where the bits of
each tile are, and the bits of the partial tiles. At 45,240 x 45,240 tokens, with room for what a
scene fills, that is less than 1 % of a dense mask of a byte per pair, which other kernels take.
Without a capacity there is room for a bit of every pair, an eighth of it, and nothing can be lost.
The numbers of a soft constraint are no metadata: they are a bias, four bytes to a pair.
"""

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
from pallas_kernels.tile_parts import held_parts, rows_per_part

__all__ = ["pack_partial_tiles", "pack_soft_tiles"]


@functools.partial(jax.jit, static_argnames="capacity")
def pack_partial_tiles(mask: BlockMask, *, capacity: int | None = None) -> BlockMask:
    """The same mask with its partial tiles as packed bits instead of the predicate behind them.

    Layers that share a mask then read a bit per pair where each would evaluate the geometry anew.
    Tiles are looked into on the way: those that hold nothing leave the lists, whole ones are full.
    Tall tiles are held by parts of 128 queries (see `rows_per_part`), those that hold something.

    mask: a hard mask; a soft constraint is no bit (ValueError). Its tile_k is a multiple of 32.
    capacity: parts there is room for per sample and head, of tiles that are partial once looked
        into; by default all there are. Tiles beyond it lose their pairs, and their parts are
        counted in `fill.overflow`.
    """
    if mask.soft or mask.strength is not None:
        raise ValueError("only a hard mask can be packed into bits, and this one is soft")
    if mask.tile_k % 32:
        raise ValueError(f"tile_k must be a multiple of 32 for packed masks, got {mask.tile_k}")
    if mask.fill is None:
        return mask
    rows = rows_per_part(mask.tile_q)
    state, packed = _pack(
        mask,
        capacity,
        rows,
        (rows * mask.tile_k // 32,),
        jnp.uint32,
        lambda pairs: pack_bits(pairs.allowed),
    )
    parts = None if rows == mask.tile_q else packed.parts
    fill = BitFill(packed.content, packed.slot, parts, packed.overflow, rows)
    return with_state(mask, state, fill)


@functools.partial(jax.jit, static_argnames="capacity")
def pack_soft_tiles(mask: BlockMask, *, capacity: int | None = None) -> BlockMask:
    """The same soft mask with its partial tiles as numbers, four bytes a pair (see `SoftFill`).

    What the GPU kernels read; the strength stays a variable. mask: a soft one (ValueError for
    others). capacity: tiles there is room for per sample and head; else as in
    `pack_partial_tiles`, and of more weight here.
    """
    if not mask.soft:
        raise ValueError("only a soft mask's tiles hold numbers; `pack_partial_tiles` packs others")
    shape = (mask.tile_q, mask.tile_k)
    state, packed = _pack(mask, capacity, mask.tile_q, shape, jnp.int32, encode_pairs)
    return with_state(mask, state, SoftFill(packed.content, packed.slot, packed.overflow))


class _Packed(typing.NamedTuple):
    """Partial tiles as data; the fields are those of `BitFill`, content its words."""

    content: Array
    slot: Int[Array, "b heads nq nk"]
    parts: Int[Array, "b heads nq nk"]
    overflow: Int[Array, "b heads"]


def _pack(
    mask: BlockMask,
    capacity: int | None,
    rows: int,
    shape: tuple[int, ...],
    dtype: typing.Any,
    encode: Callable[[Pairs], Array],
) -> tuple[Int[Array, "b heads nq nk"], _Packed]:
    """Exact kinds of the tile pairs, and the encoded parts of the partial ones.

    rows: of a part. shape: of what is held of it, in the order of its rows.
    """
    state = mask.state()
    b, heads, nq, nk = state.shape
    parts = mask.tile_q // rows
    room = nq * nk * parts if capacity is None else min(capacity, nq * nk * parts)

    def update(carry, index, pairs, real):
        state, slot, flags, used, lost, content = carry
        q, k = jnp.where(real, index.q[:, 0], nq), index.k[:, 0]
        kind = tile_kind(mask, index, pairs.allowed)
        # Only what turns out to be partial takes slots, the next ones of its sample and head.
        left = real & (kind == PARTIAL)
        held = held_parts(pairs.allowed, rows) & left[:, None]
        count = jnp.sum(held, axis=1, dtype=jnp.int32)
        together = (index.batch[:, None] == index.batch[None]) & (
            index.head[:, None] == index.head[None]
        )
        earlier = jnp.where(jnp.tril(together, -1), count[None], 0)
        before = jnp.sum(earlier, axis=1, dtype=jnp.int32)
        first = used[index.batch, index.head] + before
        fits = first + count <= room
        at = first[:, None] + jnp.cumsum(held, axis=1, dtype=jnp.int32) - 1
        at = jnp.where(held & fits[:, None], at, room)
        flag = jnp.where(held, 1 << jnp.arange(parts, dtype=jnp.int32), 0)
        flag = jnp.sum(flag, axis=1, dtype=jnp.int32)
        words = encode(pairs).reshape(-1, parts, *shape)
        place, own = (index.batch, index.head, q, k), (index.batch, index.head)
        return (
            state.at[place].set(kind, mode="drop"),
            slot.at[place].set(jnp.where(left & fits, first, -1), mode="drop"),
            flags.at[place].set(flag, mode="drop"),
            used.at[own].add(count),
            lost.at[own].add(jnp.where(fits, 0, count)),
            content.at[own[0][:, None], own[1][:, None], at].set(words, mode="drop"),
        )

    slot = jnp.full(state.shape, -1, jnp.int32)
    flags = jnp.zeros(state.shape, jnp.int32)
    used = jnp.zeros((b, heads), jnp.int32)
    content = jnp.zeros((b, heads, room, *shape), dtype)
    start = state, slot, flags, used, used, content
    exact, slot, flags, _, lost, content = over_partial(mask, start, update)
    return exact, _Packed(content, slot, flags, lost)
