"""A block mask as the Hopper kernels read it: 128x128 tiles, bits laid out for the tensor cores.

A warpgroup holds 64 rows of logits, and each of its threads the same two columns of every group of
eight. So the bits of a partial tile stand in words [64, 8]: bit j of word [r, c] decides on row r
and column 8 j + c, bit 16 + j on row 64 + r. A thread reads the words of its columns once and
shifts; nothing moves between threads. The numbers of a soft constraint stay as they are, a word
to a pair, and are read where they lie: four threads then read 32 bytes side by side.
"""

import typing

import flax.struct
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int, UInt32

from pallas_kernels.block_mask import BlockMask, tile_lists
from pallas_kernels.fills import FULL, PARTIAL, pack_bits, unpack_bits
from pallas_kernels.kernel_tables import RowTables, packed, row_tables
from pallas_kernels.refinement import coarsen
from pallas_kernels.soft_fill import EXCLUDED_PAIR, SoftFill

__all__ = ["TILE", "MosaicTables", "lane_words", "mosaic_tables"]

TILE = 128
_HALF, _GROUP = TILE // 2, 8


@flax.struct.dataclass
@typing.no_type_check
class MosaicTables:
    """A mask for one direction of the Hopper kernels.

    rows    RowTables; every listed tile that needs a mask, a ragged one too, counts as partial.
    words   int32 [b, heads, slots, 64, 8] for the partial tiles; None when none needs a mask, and
            for a soft mask.
    pairs   int32 [b, heads, slots, 128, 128] for the partial tiles of a soft mask (see SoftFill);
            else None.
    """

    rows: RowTables
    words: Int[Array, "b heads slots 64 8"] | None
    pairs: Int[Array, "b heads slots 128 128"] | None = None


def lane_words(bits: UInt32[Array, "*n 128 4"]) -> Int[Array, "*n 64 8"]:
    """Row-major bits of 128x128 tiles in the order of a warpgroup's threads."""
    allowed = unpack_bits(bits)
    lead = allowed.shape[:-2]
    # [half, row, j, c] -> [row, c, half and j]
    split = allowed.reshape(*lead, 2, _HALF, TILE // _GROUP, _GROUP)
    split = jnp.moveaxis(split, (-4, -3, -2, -1), (-2, -4, -1, -3))
    words = pack_bits(split.reshape(*lead, _HALF, _GROUP, 32))[..., 0]
    return lax.bitcast_convert_type(words, jnp.int32)


def _columns_below(length: int) -> UInt32[Array, "128 4"]:
    """Bits of a tile that allow all rows the first `length` columns."""
    allowed = jnp.broadcast_to((jnp.arange(TILE) < length)[None], (TILE, TILE))
    return pack_bits(allowed)


def mosaic_tables(mask: BlockMask) -> tuple[MosaicTables, MosaicTables]:
    """Tables of the query rows (for the output and dq) and of the key rows (for dk and dv).

    Smaller tiles are coarsened to 128x128, and partial tiles that are not packed yet are packed,
    with room for every tile pair; a mask that several layers share is best packed once, at that
    size and with a capacity, by `coarsen` and `pack_partial_tiles` or `pack_soft_tiles`. A last key
    tile that is not whole becomes partial in the query rows, so that full tiles need no test of
    their columns.
    """
    if (mask.tile_q, mask.tile_k) != (TILE, TILE):
        mask = coarsen(mask, TILE, TILE)
    mask = packed(mask)
    state, fill, ragged = mask.state(), mask.fill, mask.k_len % TILE
    soft = isinstance(fill, SoftFill)
    if fill is None:
        slot, content = None, None
    else:
        slot, content = fill.slot, fill.pairs if soft else fill.words
        # One more slot allows nothing: partial tiles that found no slot have it.
        none = jnp.full_like(content[:, :, :1], EXCLUDED_PAIR if soft else 0)
        slot = jnp.where(slot >= 0, slot, content.shape[2])
        content = jnp.concatenate([content, none], axis=2)

    def tables(rows: RowTables, content: Array | None) -> MosaicTables:
        if content is None or not soft:
            return MosaicTables(rows, None if content is None else lane_words(content))
        return MosaicTables(rows, None, content)

    turned = content
    if content is not None:
        turned = jnp.swapaxes(content, -1, -2) if soft else _transposed(content)
    inverse = None if slot is None else jnp.swapaxes(slot, 2, 3)
    queries = tables(row_tables(mask.queries, inverse), turned)
    if ragged:
        if content is None or slot is None:
            content = jnp.zeros((1, 1, 0, TILE, TILE // 32), jnp.uint32)
            slot = jnp.zeros((1, 1, mask.q_tiles, mask.k_tiles), jnp.int32)
        edge = _columns_below(ragged)
        edge = jnp.where(unpack_bits(edge), 0, EXCLUDED_PAIR) if soft else edge
        edge = jnp.broadcast_to(edge[None, None, None], (*content.shape[:2], 1, *edge.shape))
        last = jnp.arange(mask.k_tiles) == mask.k_tiles - 1
        whole = (state == FULL) & last.reshape(1, 1, 1, -1)
        slot = jnp.where(whole, content.shape[2], slot)
        content = jnp.concatenate([content, edge.astype(content.dtype)], axis=2)
        state = jnp.where(whole, PARTIAL, state).astype(jnp.int8)
    return tables(row_tables(tile_lists(state), slot), content), queries


def _transposed(bits: UInt32[Array, "*n 128 4"]) -> UInt32[Array, "*n 128 4"]:
    """Bits of keys by queries."""
    return pack_bits(jnp.swapaxes(unpack_bits(bits), -1, -2))
