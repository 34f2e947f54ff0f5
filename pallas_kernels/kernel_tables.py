"""A block mask as the GPU kernels read it: lists, the order of rows, and bits of partial tiles."""

import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from pallas_kernels.block_mask import BlockMask, TileLists
from pallas_kernels.fills import BitFill
from pallas_kernels.packing import pack_partial_tiles

__all__ = ["KernelTables", "RowTables", "kernel_tables", "loop_trips", "row_tables"]


@flax.struct.dataclass
@typing.no_type_check
class RowTables:
    """Rows of tiles of one side, and the tiles of the other side that each visits.

    order    int32 [b, heads, rows]: rows by falling length of their lists, so that the longest
             start first and the short ones fill the gaps that these leave.
    index    int32 [b, heads, rows, capacity]: listed tiles, the partial ones first.
    slot     int32 [b, heads, rows, capacity], or [b, heads, 1, 1] without partial tiles: where a
             listed partial tile's bits are; -1 where it has none, and allows nothing.
    count    int32 [b, heads, rows]: listed tiles.
    partial  int32 [b, heads, rows]: how many of them are partial.
    """

    order: Int[Array, "b heads rows"]
    index: Int[Array, "b heads rows capacity"]
    slot: Int[Array, "b heads _ _"]
    count: Int[Array, "b heads rows"]
    partial: Int[Array, "b heads rows"]


@flax.struct.dataclass
@typing.no_type_check
class KernelTables:
    """A hard mask for the kernels.

    keys     RowTables of query tiles, which visit key tiles.
    queries  RowTables of key tiles, which visit query tiles.
    words    int32 [b, heads, slots, tile_q, tile_k / 32]: bit c of word j allows key 32 j + c; None
             when no tile is partial.
    """

    keys: RowTables
    queries: RowTables
    words: Int[Array, "b heads slots tq words"] | None
    q_len: int = flax.struct.field(pytree_node=False)
    k_len: int = flax.struct.field(pytree_node=False)
    tile_q: int = flax.struct.field(pytree_node=False)
    tile_k: int = flax.struct.field(pytree_node=False)


def kernel_tables(mask: BlockMask) -> KernelTables:
    """The tables of a hard mask (ValueError for a soft one).

    Partial tiles that are no bits yet are turned into bits, with room for every tile pair. Where
    several layers share a mask, or where that room is too much, call `pack_partial_tiles` with a
    capacity once, and give them its result.
    """
    if mask.fill is not None and not isinstance(mask.fill, BitFill):
        mask = pack_partial_tiles(mask)
    fill = mask.fill
    words = None if fill is None else jax.lax.bitcast_convert_type(fill.words, jnp.int32)
    slot = None if fill is None else fill.slot
    inverse = None if slot is None else jnp.swapaxes(slot, 2, 3)
    return KernelTables(
        keys=row_tables(mask.keys, slot),
        queries=row_tables(mask.queries, inverse),
        words=words,
        q_len=mask.q_len,
        k_len=mask.k_len,
        tile_q=mask.tile_q,
        tile_k=mask.tile_k,
    )


def row_tables(lists: TileLists, slot: Int[Array, "b heads nq nk"] | None) -> RowTables:
    """One side's tables; slot: where each tile pair's bits are, or None without partial tiles."""
    order = jnp.argsort(-lists.count, axis=-1, stable=True).astype(jnp.int32)
    if slot is None:
        listed = jnp.zeros((*lists.count.shape[:2], 1, 1), jnp.int32)
    else:
        shape = jnp.broadcast_shapes(slot.shape[:2], lists.index.shape[:2])
        slot = jnp.broadcast_to(slot, (*shape, *slot.shape[2:]))
        listed = jnp.take_along_axis(
            slot, jnp.broadcast_to(lists.index, (*shape, *lists.index.shape[2:])), axis=3
        )
    return RowTables(order, lists.index, listed, lists.count, lists.partial)


def loop_trips(rows: RowTables) -> Int[Array, ""]:
    """Listed tiles visited, and rows started: the work of a kernel, in tiles."""
    return jnp.sum(rows.count) + rows.count.size
