"""A block mask as the GPU kernels read it: lists, the order of rows, what is in partial tiles."""

import math
import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float, Int

from pallas_kernels.block_mask import BlockMask, TileLists
from pallas_kernels.compat import reduce_like
from pallas_kernels.fills import BitFill
from pallas_kernels.packing import pack_partial_tiles, pack_soft_tiles
from pallas_kernels.soft_fill import SoftFill
from pallas_kernels.tile_parts import as_part_tiles

__all__ = [
    "WEAKEST",
    "KernelTables",
    "RowTables",
    "kernel_tables",
    "loop_trips",
    "packed",
    "row_tables",
    "strength_numbers",
    "strength_slope",
]

# Biases below this are those of an infinite strength, which excludes.
WEAKEST = -1e20
_LOG2E = math.log2(math.e)
# An infinite strength, as a factor: it leaves a penalty of 0 alone, and the least other excludes.
_STRONGEST = 1e30


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
    """A mask for the kernels.

    keys     RowTables of query tiles, which visit key tiles.
    queries  RowTables of key tiles, which visit query tiles.
    words    int32 [b, heads, slots, tile_q, tile_k / 32]: bit c of word j allows key 32 j + c; None
             when no tile is partial, and of a soft mask.
    pairs    int32 [b, heads, slots, tile_q, tile_k] of a soft mask, see SoftFill; else None.
    """

    keys: RowTables
    queries: RowTables
    words: Int[Array, "b heads slots tq words"] | None
    pairs: Int[Array, "b heads slots tq tk"] | None
    q_len: int = flax.struct.field(pytree_node=False)
    k_len: int = flax.struct.field(pytree_node=False)
    tile_q: int = flax.struct.field(pytree_node=False)
    tile_k: int = flax.struct.field(pytree_node=False)


def packed(mask: BlockMask) -> BlockMask:
    """The mask with its partial tiles as bits, or as numbers when it is soft.

    What is neither yet is packed with room for every tile pair. Where several layers share a mask,
    or where that room is too much, call `pack_partial_tiles` or `pack_soft_tiles` with a capacity
    once, and give them its result.
    """
    if mask.fill is None or isinstance(mask.fill, BitFill | SoftFill):
        return mask
    return pack_soft_tiles(mask) if mask.soft else pack_partial_tiles(mask)


def kernel_tables(mask: BlockMask) -> KernelTables:
    """The tables of a mask, packed if need be (see `packed`), its tall tiles cut to their parts."""
    mask = as_part_tiles(packed(mask))
    fill = mask.fill
    words = None
    if isinstance(fill, BitFill):
        words = jax.lax.bitcast_convert_type(fill.words, jnp.int32)
    slot = None if fill is None else fill.slot
    inverse = None if slot is None else jnp.swapaxes(slot, 2, 3)
    return KernelTables(
        keys=row_tables(mask.keys, slot),
        queries=row_tables(mask.queries, inverse),
        words=words,
        pairs=fill.pairs if isinstance(fill, SoftFill) else None,
        q_len=mask.q_len,
        k_len=mask.k_len,
        tile_q=mask.tile_q,
        tile_k=mask.tile_k,
    )


def strength_numbers(
    strength: Float[Array, "b heads"], *, strongest: float = _STRONGEST
) -> Float[Array, "b heads 3"]:
    """What the kernels multiply by: of attraction and penalty in base-2 logits; and the slope.

    The third is the derivative of attraction's factor by the strength, in natural logits.
    """
    share = 1.0 / (1.0 + strength)
    factor = jnp.minimum(strength, strongest)
    return jnp.stack([(1.0 - share) * _LOG2E, factor * _LOG2E, jnp.square(share)], axis=-1)


def strength_slope(
    rows: Float[Array, "b heads t"], strength: Float[Array, "_ _"]
) -> Float[Array, "_ _"]:
    """The strength's gradient from that of every row of logits."""
    slope = jnp.sum(rows, axis=2)
    for axis in (0, 1):
        if strength.shape[axis] == 1:
            slope = jnp.sum(slope, axis=axis, keepdims=True)
    return reduce_like(slope, strength)


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
