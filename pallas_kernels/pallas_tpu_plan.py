"""What the TPU kernels read instead of a mask: rows of listed tiles in steps, and their bits."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, UInt32

from pallas_kernels.block_mask import BlockMask, TileLists

__all__ = [
    "EMPTY_SLOT",
    "FIRST_SLOT",
    "FULL_SLOT",
    "HEADER",
    "RAGGED_SLOT",
    "TpuConfig",
    "choose_config",
    "make_rows",
    "row_bits",
    "word_rows",
]

# Slots of every row: what is listed nowhere, a full tile, a full tile that ends the keys.
EMPTY_SLOT, FULL_SLOT, RAGGED_SLOT, FIRST_SLOT = 0, 1, 2, 3
# Numbers before the lists in a row: see `make_rows`.
HEADER = 8
_WIDTH = 512  # tokens of a compute tile, along the lists
_MOST_HEADS = 5  # 40 heads over 8 chips leave groups of 5


@dataclasses.dataclass(frozen=True)
class TpuConfig:
    """Size of a kernel's step.

    heads       heads that share a mask and are computed together: the predicate is evaluated once.
    key_tiles   listed key tiles gathered into one compute tile (forward, dq).
    query_tiles listed query tiles gathered into one compute tile (dk and dv).
    """

    heads: int
    key_tiles: int
    query_tiles: int

    def __post_init__(self):
        if min(self.heads, self.key_tiles, self.query_tiles) < 1:
            raise ValueError(f"heads and tiles must be at least 1, got {self}")

    def check(self, mask: BlockMask, heads: int) -> None:
        """Raise ValueError unless `heads` attention heads make whole groups under the mask."""
        if heads // mask.heads % self.heads:
            raise ValueError(
                f"{heads} heads, of which {heads // mask.heads} share a mask, cannot be computed "
                f"in groups of {self.heads}"
            )


def choose_config(mask: BlockMask, heads: int, token_bytes: int = 256) -> TpuConfig:
    """Compute tiles of 512 tokens, or all there are; up to 5 of the heads that share a mask.

    token_bytes: of a token of one head in memory, where it takes whole registers of 128 numbers.
    Fewer heads of larger ones fit the 16 MiB that a kernel may use on the smallest chips.
    """
    shared = heads // mask.heads
    most = max(1, _MOST_HEADS * 256 // token_bytes)
    group = max(n for n in range(1, most + 1) if shared % n == 0)

    def gathered(tile: int, tiles: int) -> int:
        return max(1, min(_WIDTH // tile, tiles))

    return TpuConfig(
        heads=group,
        key_tiles=gathered(mask.tile_k, mask.k_tiles),
        query_tiles=gathered(mask.tile_q, mask.q_tiles),
    )


def make_rows(
    lists: TileLists,
    slot: Int[Array, "b heads rows columns"] | None,
    *,
    tiles: int,
    ragged: bool,
) -> Int[Array, "b heads rows 1 width"]:
    """Lists as the kernels read them, one row of int32 at a time.

    A row is HEADER numbers, then the listed tiles, then their slots, both padded to whole steps of
    `tiles`. Steps [0, header[0]) and [header[1], header[2]) need the mask, the ones between do not.
    A padded entry names tile 0 and the empty slot. slot: of the partial tiles, None: any will do.
    `ragged`: the last column's tile ends the tokens, so that even a full one needs the mask.
    """
    b, heads, rows, capacity = lists.index.shape
    columns = capacity
    position = jnp.arange(capacity, dtype=jnp.int32)[None, None, None]
    listed = position < lists.count[..., None]
    partial = position < lists.partial[..., None]
    if slot is None:
        own = jnp.zeros_like(lists.index)
    else:
        slot = jnp.broadcast_to(slot, (b, heads, rows, columns))
        own = jnp.take_along_axis(slot, lists.index, axis=-1)
    last = (lists.index == columns - 1) & listed & ~partial
    last = last if ragged else jnp.zeros_like(last)
    kind = jnp.where(last, RAGGED_SLOT, FULL_SLOT)
    kind = jnp.where(partial, jnp.where(own >= 0, own + FIRST_SLOT, EMPTY_SLOT), kind)
    kind = jnp.where(listed, kind, EMPTY_SLOT)
    whole = lists.count - jnp.any(last, axis=-1)
    head = -(-lists.partial // tiles)
    end = jnp.maximum(head, whole // tiles)
    total = -(-lists.count // tiles)
    header = jnp.stack([head, end, total], axis=-1)
    header = jnp.pad(header, ((0, 0),) * 3 + ((0, HEADER - 3),))
    margins = ((0, 0),) * 3 + ((0, -capacity % tiles),)
    parts = (header, jnp.pad(lists.index, margins), jnp.pad(kind, margins))
    return jnp.concatenate([x.astype(jnp.int32) for x in parts], axis=-1)[:, :, :, None]


def word_rows(tile: int) -> int:
    """Rows of words that hold the bits of `tile` rows: whole registers of 8, at most 32 bits.

    Bit i of row r stands for row i * word_rows + r, so that a kernel unpacks registers without
    moving anything within them.
    """
    return next(rows for rows in range(8, tile + 1, 8) if tile % rows == 0 and tile <= 32 * rows)


def _pack_rows(allowed: Bool[Array, "n rows columns"]) -> UInt32[Array, "n words columns"]:
    """Bits of few tiles, from booleans."""
    n, rows, columns = allowed.shape
    words = word_rows(rows)
    bits = allowed.reshape(n, rows // words, words, columns).astype(jnp.uint32)
    weight = jnp.uint32(1) << jnp.arange(rows // words, dtype=jnp.uint32)
    return jnp.sum(bits * weight[None, :, None, None], axis=1, dtype=jnp.uint32)


def _turn_words(
    words: UInt32[Array, "b h n rows words"], transposed: bool
) -> UInt32[Array, "b h n out columns"]:
    """Words along the columns as words along the rows, bit by bit: never as booleans."""
    rows, columns = words.shape[3], words.shape[4] * 32
    bit = (jnp.arange(columns, dtype=jnp.uint32) % 32).reshape(1, 1, 1, 1, -1)

    def row_block(first: int, count: int) -> Array:
        """Rows of bits, one number each."""
        block = jnp.repeat(words[:, :, :, first : first + count], 32, axis=4)
        return (block >> bit) & jnp.uint32(1)

    def column_block(first: int, count: int) -> Array:
        """The same of the transposed tile."""
        column = jnp.arange(first, first + count)
        block = jnp.swapaxes(words[..., column // 32], 3, 4)
        return (block >> (column % 32).astype(jnp.uint32)[None, None, None, :, None]) & jnp.uint32(
            1
        )

    total, block = (columns, column_block) if transposed else (rows, row_block)
    out = word_rows(total)
    parts = (block(i * out, out) << jnp.uint32(i) for i in range(total // out))
    return functools.reduce(jnp.bitwise_or, parts)


def row_bits(mask: BlockMask, *, transposed: bool) -> Int[Array, "b heads slots words columns"]:
    """The words of the mask's BitFill as the kernels unpack them, after the special slots.

    Rows are queries, columns keys; the other way round when `transposed`. See `word_rows`.
    """
    shape = (mask.tile_q, mask.tile_k)
    column = jnp.arange(mask.tile_k, dtype=jnp.int32)[None]
    left = mask.k_len - (mask.k_tiles - 1) * mask.tile_k
    special = [jnp.zeros(shape, bool), jnp.ones(shape, bool)]
    special.append(jnp.broadcast_to(column < left, shape))
    special = jnp.stack(special)
    special = _pack_rows(jnp.swapaxes(special, 1, 2) if transposed else special)[None, None]
    if mask.fill is None:
        packed = jnp.broadcast_to(special, (1, mask.heads, *special.shape[2:]))
    else:
        own = _turn_words(mask.fill.words, transposed)
        own = jnp.broadcast_to(own, (own.shape[0], mask.heads, *own.shape[2:]))
        special = jnp.broadcast_to(special, (*own.shape[:2], *special.shape[2:]))
        packed = jnp.concatenate([special, own], axis=2)
    return jax.lax.bitcast_convert_type(packed, jnp.int32)
