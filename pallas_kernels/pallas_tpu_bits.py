"""Packed bits in the TPU kernels: parts of tiles in whole registers, fetched and unpacked.

Bit i of row r of a part's words stands for row i * `word_rows` + r, so that a kernel unpacks
registers of 8 rows without moving anything within them. A part of 128 rows needs 16 bits, so two of
them share a register: the parts of a tile follow each other, and a listed tile says where the first
is and which it has.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Bool, Int, UInt32

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.compat import vary_like
from pallas_kernels.fills import BitFill, has_part
from pallas_kernels.pallas_tpu_plan import Entries
from pallas_kernels.pallas_tpu_walk import EXCLUDED, Stream

__all__ = ["BitLayout", "BitMask", "bit_entries", "bit_layout", "row_bits", "word_rows"]


def word_rows(tile: int) -> int:
    """Rows of words that hold the bits of `tile` rows: whole registers of 8, at most 32 bits."""
    return next(rows for rows in range(8, tile + 1, 8) if tile % rows == 0 and tile <= 32 * rows)


@dataclasses.dataclass(frozen=True)
class BitLayout:
    """How the bits of a mask's tiles lie in memory; rows are those of a kernel's own tokens.

    rows, columns  pairs of a part.
    parts          of a tile: one below the other, or side by side where the own tokens are keys.
    inverse        whether they are.
    """

    rows: int
    columns: int
    parts: int
    inverse: bool

    @property
    def words(self) -> int:
        """Rows of words of a part."""
        return word_rows(self.rows)

    @property
    def bits(self) -> int:
        """Bits of each word that a part takes."""
        return self.rows // self.words

    @property
    def shared(self) -> int:
        """Parts that share a register, a power of two."""
        return 1 << ((32 // self.bits).bit_length() - 1)

    @property
    def fetched(self) -> int:
        """Registers that the parts of a tile may lie in, wherever the first is."""
        return -(-(self.parts + self.shared - 1) // self.shared)

    def place(self, tile: int, part: int) -> tuple[int, int]:
        """First row and column of a part among the tiles of a step that lie side by side."""
        if self.inverse:
            return 0, (tile * self.parts + part) * self.columns
        return part * self.rows, tile * self.columns


def bit_layout(mask: BlockMask, *, inverse: bool) -> BitLayout:
    """The layout of a mask whose partial tiles are bits, or that has none."""
    rows = mask.tile_q if mask.fill is None else mask.fill.rows
    size = (mask.tile_k, rows) if inverse else (rows, mask.tile_k)
    return BitLayout(*size, mask.tile_q // rows, inverse)


# Before the parts that a mask holds: as many that allow everything, as many that end the keys.
_SPECIAL = 2


def bit_entries(mask: BlockMask, layout: BitLayout) -> Entries:
    """Of every tile where its first part is, and in the lowest bits which parts it has.

    Raises ValueError for more parts than these numbers reach.
    """
    count = layout.parts
    every = (1 << count) - 1
    full, ragged = every, count << count | every
    if mask.fill is None:
        return Entries(None, 0, full, ragged)
    slots = mask.fill.flat.shape[2] + _SPECIAL * count
    if slots >= 1 << (31 - count):
        raise ValueError(f"{slots} parts of tiles are more than the TPU kernels can number")
    slot, parts = mask.fill.slot, every if mask.fill.parts is None else mask.fill.parts
    partial = jnp.where(slot >= 0, (slot + _SPECIAL * count) << count | parts, 0)
    return Entries(jnp.swapaxes(partial, 2, 3) if layout.inverse else partial, 0, full, ragged)


def _pack_rows(allowed: Bool[Array, "n rows columns"]) -> UInt32[Array, "n words columns"]:
    """Bits of few parts, from booleans."""
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
        """The same of the transposed part."""
        column = jnp.arange(first, first + count)
        block = jnp.swapaxes(words[..., column // 32], 3, 4)
        return (block >> (column % 32).astype(jnp.uint32)[None, None, None, :, None]) & jnp.uint32(
            1
        )

    total, block = (columns, column_block) if transposed else (rows, row_block)
    out = word_rows(total)
    parts = (block(i * out, out) << jnp.uint32(i) for i in range(total // out))
    return functools.reduce(jnp.bitwise_or, parts)


# Parts turned at a time: spread over whole registers before they are joined, their rows take some
# 70 KB a part, which is 9 GB at 45,240 tokens, where the result takes half a gigabyte.
_AT_ONCE = 2048


def row_bits(mask: BlockMask, layout: BitLayout) -> Int[Array, "b heads registers words columns"]:
    """The mask's bits as the kernels fetch them, the special parts first."""
    size = (layout.columns, layout.rows) if layout.inverse else (layout.rows, layout.columns)
    left = mask.k_len - (mask.k_tiles - 1) * mask.tile_k
    ends = jnp.broadcast_to(jnp.arange(mask.tile_k)[None] < left, size)
    special = jnp.stack([jnp.ones(size, bool)] * layout.parts + [ends] * layout.parts)
    special = _pack_rows(jnp.swapaxes(special, 1, 2) if layout.inverse else special)[None, None]
    count = special.shape[2]
    own = 0 if mask.fill is None else mask.fill.flat.shape[2]
    # Whole registers, and as many more as are fetched with the last.
    registers = -(-(count + own) // layout.shared) + layout.fetched - 1
    margin = registers * layout.shared - count
    special = jnp.pad(special, ((0, 0), (0, 0), (0, margin), (0, 0), (0, 0)))
    first = -(-count // layout.shared)
    special = _share_registers(special[:, :, : first * layout.shared], layout)
    if mask.fill is None:
        special = jnp.pad(special, ((0, 0), (0, 0), (0, registers - first), (0, 0), (0, 0)))
        packed = jnp.broadcast_to(special, (1, mask.heads, *special.shape[2:]))
    else:
        packed = _turned_registers(mask.fill, layout, count, registers)
        packed = packed.at[:, :, :first].set(packed[:, :, :first] | special)
        packed = jnp.broadcast_to(packed, (packed.shape[0], mask.heads, *packed.shape[2:]))
    return jax.lax.bitcast_convert_type(packed, jnp.int32)


def _share_registers(
    parts: UInt32[Array, "b h n words columns"], layout: BitLayout
) -> UInt32[Array, "b h registers words columns"]:
    """Neighbouring parts side by side in the bits of one register."""
    parts = parts.reshape(*parts.shape[:2], -1, layout.shared, *parts.shape[3:])
    each = (parts[:, :, :, i] << jnp.uint32(i * layout.bits) for i in range(layout.shared))
    return functools.reduce(jnp.bitwise_or, each)


def _turned_registers(
    fill: BitFill, layout: BitLayout, before: int, registers: int
) -> UInt32[Array, "b h registers words columns"]:
    """The registers of a mask's own parts, behind `before` empty ones, a few at a time."""
    b, h, n = fill.flat.shape[:3]
    step = min(max(_AT_ONCE // (b * h * layout.shared), 1), registers)
    steps = -(-registers // step)
    behind = steps * step * layout.shared - before - n
    flat = jnp.pad(fill.flat, ((0, 0), (0, 0), (before, behind), (0, 0)))

    def turn(at: Array, packed: Array) -> Array:
        parts = step * layout.shared
        block = lax.dynamic_slice_in_dim(flat, at * parts, parts, axis=2)
        block = block.reshape(b, h, parts, fill.rows, -1)
        turned = _share_registers(_turn_words(block, layout.inverse), layout)
        return lax.dynamic_update_slice_in_dim(packed, turned, at * step, axis=2)

    start = jnp.zeros((b, h, steps * step, layout.words, layout.columns), jnp.uint32)
    packed = lax.fori_loop(0, steps, turn, vary_like(start, flat))
    return packed[:, :, :registers]


class BitMask:
    """Packed bits, fetched for every listed tile of a step that needs a mask.

    tiles: listed tiles per step.
    """

    soft = False

    def __init__(self, mask: BlockMask, *, tiles: int, inverse: bool):
        self.layout = layout = bit_layout(mask, inverse=inverse)
        words = row_bits(mask, layout)
        self.operands = (words,)
        self.specs = (pl.BlockSpec(memory_space=pltpu.HBM),)
        rows, width = (
            (layout.rows, tiles * layout.parts * layout.columns)
            if inverse
            else (layout.rows * layout.parts, tiles * layout.columns)
        )
        self.scratch = (
            pltpu.VMEM((2, layout.fetched, layout.words, tiles * layout.columns), jnp.int32),
            pltpu.VMEM((rows, width), jnp.float32),
        )
        self.shared_batch = words.shape[0] == 1

    def streams(self, refs: Any, scratch: Any, batch: Any, head: Any) -> Sequence[Stream]:
        """Copies of a step's tiles."""
        source = refs[0].at[0 if self.shared_batch else batch, head]
        layout = self.layout

        def copy(place: int, listed: Array, entry: Array, at: Array):
            first = lax.shift_right_logical(entry, jnp.int32(layout.parts + self._log_shared))
            columns = pl.ds(place * layout.columns, layout.columns)
            registers = source.at[pl.ds(first, layout.fetched)]
            return registers, scratch[0].at[at, :, :, columns]

        return [copy]

    @property
    def _log_shared(self) -> int:
        return self.layout.shared.bit_length() - 1

    def evaluate(self, refs: Any, scratch: Any, buffer: Array, entries: Sequence[Array]) -> None:
        """Bias of a step's tiles, kept for all heads."""
        words, bias = scratch
        layout = self.layout
        for tile, entry in enumerate(entries):
            columns = pl.ds(tile * layout.columns, layout.columns)
            at = lax.shift_right_logical(entry, jnp.int32(layout.parts))
            at = lax.bitwise_and(at, jnp.int32(layout.shared - 1))
            for part in range(layout.parts):
                held = has_part(entry, part)
                register = lax.shift_right_logical(at, jnp.int32(self._log_shared))
                packed = words[buffer, register, :, columns]
                if layout.shared > 1:
                    lane = lax.bitwise_and(at, jnp.int32(layout.shared - 1))
                    packed = lax.shift_right_logical(
                        packed, jnp.full_like(packed, lane * layout.bits)
                    )
                packed = lax.bitwise_and(packed, jnp.full_like(packed, -held))
                at = at + held
                self._unpack(bias, packed, *layout.place(tile, part))

    def _unpack(self, bias: Any, packed: Array, row: int, column: int) -> None:
        span = pl.ds(column, self.layout.columns)
        for bit in range(self.layout.bits):
            chosen = jnp.int32(1 << bit if bit < 31 else -(1 << 31))
            allowed = lax.bitwise_and(packed, chosen) != 0
            rows = pl.ds(row + bit * self.layout.words, self.layout.words)
            bias[rows, span] = jnp.where(allowed, 0.0, EXCLUDED)

    def bias(self, refs: Any, scratch: Any, batch: Any, head: Any) -> Array:
        """Added to the logits (in powers of two) of an attention head."""
        return scratch[1][...]
