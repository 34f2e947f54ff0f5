"""What decides inside the partial tiles of the TPU kernels.

A source of masks brings its arrays, their buffers and copies, and turns the fetched tiles of a
step into a bias per pair, [rows, columns], once for all heads of the group. Rows are the tokens
that a grid program owns, columns those of the listed tiles: queries and keys, or keys and queries
when `inverse`.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.fills import GeometryFill
from pallas_kernels.geometry import PairFields, Pairs, geometry_pairs, token_fields
from pallas_kernels.pallas_tpu_bits import BitMask, bit_entries
from pallas_kernels.pallas_tpu_plan import FIRST_SLOT, Entries, slot_entries
from pallas_kernels.pallas_tpu_soft import (
    FORBIDDEN,
    NumberMask,
    free_tile,
    soft_bias,
    soft_slope,
    strength_table,
)
from pallas_kernels.pallas_tpu_walk import EXCLUDED, Stream, token_stream

__all__ = ["GeometryMask", "MaskSource", "mask_entries", "mask_source"]

_CHUNK = 64  # rows of pairs evaluated at once: few enough to stay in registers


class GeometryMask:
    """The correspondence predicate, evaluated in the partial tiles; hard or soft.

    The fields of the program's own tokens are a block [rows, fields], those of the listed tiles
    are fetched as [fields, columns], all as int32. strength: [b, heads] of a soft mask.
    """

    def __init__(
        self, mask: BlockMask, strength: Array | None, *, tiles: int, inverse: bool, batch: int,
        heads: int,
    ):  # fmt: skip
        fill: GeometryFill = mask.fill
        query = token_fields(fill.query, fill.query_group, fill.key.visibility.shape[-1])
        key = token_fields(fill.key, fill.key_group, fill.query.visibility.shape[-1])
        own, other = (key, query) if inverse else (query, key)
        rows, columns = (mask.tile_k, mask.tile_q) if inverse else (mask.tile_q, mask.tile_k)
        self.fill, self.inverse, self.soft = fill, inverse, fill.soft
        self.rows, self.columns, self.tiles = rows, columns, tiles
        # Of the last key tile; the rows' own ragged ends are of no consequence.
        self.left = columns if inverse else mask.k_len - (mask.k_tiles - 1) * mask.tile_k
        self.own_layout, own_table = _pack_fields(own, axis=-1, multiple=1)
        self.other_layout, other_table = _pack_fields(other, axis=-2, multiple=8)
        self.operands: tuple[Array, ...] = (own_table, other_table)
        self.shared_batch = own_table.shape[0] == 1
        self.specs: tuple[Any, ...] = (
            pl.BlockSpec((None, rows, own_table.shape[-1]), self._own_place),
            pl.BlockSpec(memory_space=pltpu.HBM),
        )
        pairs = pltpu.VMEM((rows, tiles * columns), jnp.float32)
        buffer = pltpu.VMEM((2, other_table.shape[-2], tiles * columns), jnp.int32)
        self.scratch = (buffer, pairs, *((pairs,) if self.soft else ()))
        if strength is not None:
            self.operands += (strength_table(strength, batch, heads),)
            self.specs += (pl.BlockSpec(memory_space=pltpu.SMEM),)

    def _own_place(self, b, m, g, i):
        return 0 if self.shared_batch else b, i, 0

    def streams(self, refs: Any, scratch: Any, batch: Any, head: Any) -> Sequence[Stream]:
        """Copies of a step's tiles."""
        source = refs[1].at[0 if self.shared_batch else batch]
        return [token_stream(source, scratch[0], self.columns, 1)]

    def evaluate(self, refs: Any, scratch: Any, buffer: Array, slots: Sequence[Array]) -> None:
        """Bias of a step's tiles, kept for all heads; slots: of the listed tiles."""
        places = [pl.ds(place * self.columns, self.columns) for place in range(self.tiles)]
        for columns, slot in zip(places, slots, strict=True):

            @pl.when(slot < FIRST_SLOT)
            def _(columns=columns, slot=slot):
                self._constant(scratch, slot, columns)

        chunk = math.gcd(self.rows, _CHUNK)

        def part(at: Array, _: None) -> None:
            rows = pl.ds(pl.multiple_of(at * chunk, chunk), chunk)
            block = refs[0][rows, :]
            shape = (chunk, self.columns)
            # Spread over the lanes once for all listed tiles: it costs as much as the predicate.
            own = _unpack_fields(
                self.own_layout, lambda i: jnp.broadcast_to(block[:, i : i + 1], shape)
            )
            for columns, slot in zip(places, slots, strict=True):

                @pl.when(slot >= FIRST_SLOT)
                def _(columns=columns):
                    self._predicate(own, scratch, buffer, rows, columns)

        lax.fori_loop(0, self.rows // chunk, part, None)

    def _constant(self, scratch: Any, slot: Array, columns: Any) -> None:
        shape = (self.rows, self.columns)
        scratch[1][:, columns] = free_tile(shape, slot, self.left)
        if self.soft:
            scratch[2][:, columns] = jnp.zeros(shape, jnp.float32)

    def _predicate(
        self, own: PairFields, scratch: Any, buffer: Array, rows: Any, columns: Any
    ) -> None:
        table = scratch[0][buffer, :, columns]
        other = _unpack_fields(self.other_layout, lambda i: table[i : i + 1])
        query, key = (other, own) if self.inverse else (own, other)
        pairs: Pairs = geometry_pairs(
            query,
            key,
            self.fill.rule,
            soft=self.soft,
            token_level=self.fill.token_level,
            two_way=self.fill.two_way,
        )
        if not self.soft:
            scratch[1][rows, columns] = jnp.where(pairs.allowed, 0.0, EXCLUDED)
            return
        attraction, penalty = pairs.constraint()
        scratch[1][rows, columns] = jnp.where(pairs.allowed, attraction, FORBIDDEN)
        scratch[2][rows, columns] = jnp.where(pairs.allowed, penalty, 0.0)

    def bias(self, refs: Any, scratch: Any, batch: Any, head: Any) -> Array:
        """Added to the logits (in powers of two) of an attention head."""
        if not self.soft:
            return scratch[1][...]
        return soft_bias(refs[2], batch, head, scratch[1][...], scratch[2][...])

    def slope(self, refs: Any, scratch: Any, batch: Any, head: Any) -> Array:
        """Derivative of a soft mask's bias (in natural logits) by the strength."""
        return soft_slope(refs[2], batch, head, scratch[1][...], scratch[2][...])


MaskSource = BitMask | GeometryMask | NumberMask


def mask_source(
    mask: BlockMask, strength: Array | None, *, tiles: int, inverse: bool, batch: int, heads: int
) -> MaskSource:
    """The source of a mask whose fill is None, a BitFill, a SoftFill or a GeometryFill."""
    sizes: Any = {"tiles": tiles, "inverse": inverse, "batch": batch, "heads": heads}
    if isinstance(mask.fill, GeometryFill):
        return GeometryMask(mask, strength, **sizes)
    if strength is not None:
        return NumberMask(mask, strength, **sizes)
    return BitMask(mask, tiles=tiles, inverse=inverse)


def mask_entries(mask: BlockMask, source: MaskSource, *, inverse: bool) -> Entries:
    """What the rows say of the tiles to their source."""
    if isinstance(source, BitMask):
        return bit_entries(mask, source.layout)
    if isinstance(source, GeometryMask):
        return slot_entries(None)
    slot = mask.fill.slot
    return slot_entries(jnp.swapaxes(slot, 2, 3) if inverse else slot)


_Layout = tuple[Any, tuple[Any, ...]]


def _pack_fields(fields: PairFields, *, axis: int, multiple: int) -> tuple[_Layout, Array]:
    """All fields as one int32 array, stacked along `axis`, and how to take them apart again."""
    leaves, structure = jax.tree.flatten(fields)
    kinds = tuple(leaf.dtype for leaf in leaves)
    numbers = [
        leaf.astype(jnp.int32)
        if leaf.dtype in (jnp.bool_, jnp.int32)
        else lax.bitcast_convert_type(leaf, jnp.int32)
        for leaf in leaves
    ]
    numbers += [jnp.zeros_like(numbers[0])] * (-len(numbers) % multiple)
    return (structure, kinds), jnp.stack(numbers, axis=axis)


def _unpack_fields(layout: _Layout, read: Callable[[int], Array]) -> PairFields:
    """Fields from the int32 numbers that `read(i)` gives."""
    structure, kinds = layout

    def one(i: int, kind: Any) -> Array:
        number = read(i)
        if kind == jnp.bool_:
            return number != 0
        return pltpu.bitcast(number, jnp.float32) if kind == jnp.float32 else number

    return jax.tree.unflatten(structure, [one(i, kind) for i, kind in enumerate(kinds)])
