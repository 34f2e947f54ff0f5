"""The soft constraint in the TPU kernels: a bias of two products, and its packed numbers.

An excluded pair has an attraction so low that any share of it excludes; so a head's bias takes two
products and a difference, without a comparison.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.kernel_tables import strength_numbers
from pallas_kernels.pallas_tpu_plan import EMPTY_SLOT, FIRST_SLOT, RAGGED_SLOT
from pallas_kernels.pallas_tpu_walk import Stream
from pallas_kernels.soft_fill import SoftFill, decode_scaled

__all__ = ["FORBIDDEN", "NumberMask", "free_tile", "soft_bias", "soft_slope", "strength_table"]

FORBIDDEN = -2e38
# At no strength an excluded pair keeps this share of FORBIDDEN, and a pair of the mask as much of
# its own attraction, which is nothing.
_LEAST_SHARE = 1e-8
# An infinite strength: with the least penalty it is below what counts as excluded here.
_STRONGEST = 1e38


def strength_table(strength: Array, batch: int, heads: int) -> Array:
    """What attraction and penalty are multiplied by, and the slope: [batch, heads, 3]."""
    strength = jnp.broadcast_to(strength, (batch, heads))
    numbers = strength_numbers(strength, strongest=_STRONGEST)
    return numbers.at[..., 0].max(_LEAST_SHARE)


def soft_bias(table: Any, batch: Any, head: Any, attraction: Array, penalty: Array) -> Array:
    """Bias of pairs, in powers of two, for an attention head."""
    return table[batch, head, 0] * attraction - table[batch, head, 1] * penalty


def soft_slope(table: Any, batch: Any, head: Any, attraction: Array, penalty: Array) -> Array:
    """Derivative of the bias (in natural logits) by the strength."""
    return attraction * table[batch, head, 2] - penalty


def free_tile(shape: tuple[int, int], slot: Array, left: int) -> Array:
    """Attraction in a tile that is full, ends the keys with `left` columns, or is empty."""
    kept = jnp.where(slot == RAGGED_SLOT, left, shape[1])
    kept = jnp.where(slot == EMPTY_SLOT, 0, kept)
    column = lax.broadcasted_iota(jnp.int32, shape, 1)
    return jnp.where(column < kept, 0.0, FORBIDDEN)


class NumberMask:
    """A soft constraint's packed numbers, fetched for the listed tiles, decoded once for all heads.

    They lie as queries by keys; where a program owns keys they are turned within the kernel, so
    that they are in memory once.
    """

    soft = True

    def __init__(
        self, mask: BlockMask, strength: Array, *, tiles: int, inverse: bool, batch: int,
        heads: int,
    ):  # fmt: skip
        fill: SoftFill = mask.fill
        rows, columns = (mask.tile_k, mask.tile_q) if inverse else (mask.tile_q, mask.tile_k)
        self.operands = (fill.pairs, strength_table(strength, batch, heads))
        self.specs = (
            pl.BlockSpec(memory_space=pltpu.HBM),
            pl.BlockSpec(memory_space=pltpu.SMEM),
        )
        fetched = (tiles * columns, rows) if inverse else (rows, tiles * columns)
        pairs = pltpu.VMEM((rows, tiles * columns), jnp.float32)
        self.scratch = (pltpu.VMEM((2, *fetched), jnp.int32), pairs, pairs)
        self.rows, self.columns, self.tiles, self.inverse = rows, columns, tiles, inverse
        # Of the last key tile; the rows' own ragged ends are of no consequence.
        self.left = columns if inverse else mask.k_len - (mask.k_tiles - 1) * mask.tile_k
        self.shared_batch, self.shared_heads = (x == 1 for x in fill.pairs.shape[:2])

    def _place(self, at: Any, place: int) -> tuple[Any, ...]:
        """Where a listed tile's numbers lie in the buffer."""
        span = pl.ds(place * self.columns, self.columns)
        return (at, span, slice(None)) if self.inverse else (at, slice(None), span)

    def streams(self, refs: Any, scratch: Any, batch: Any, head: Any) -> Sequence[Stream]:
        """Copies of a step's tiles."""
        batch = 0 if self.shared_batch else batch
        source = refs[0].at[batch, 0 if self.shared_heads else head]

        def copy(place: int, listed: Array, slot: Array, at: Array):
            # What has no numbers of its own fetches some that nothing reads.
            own = jnp.maximum(slot - FIRST_SLOT, 0)
            return source.at[own], scratch[0].at[self._place(at, place)]

        return [copy]

    def evaluate(self, refs: Any, scratch: Any, buffer: Array, slots: Sequence[Array]) -> None:
        """Attraction and penalty of a step's tiles, kept for all heads."""
        fetched, attraction, penalty = scratch
        for place, slot in enumerate(slots):
            columns = pl.ds(place * self.columns, self.columns)

            @pl.when(slot >= FIRST_SLOT)
            def _(place=place, columns=columns):
                numbers = fetched[self._place(buffer, place)]
                numbers = jnp.transpose(numbers) if self.inverse else numbers
                found = decode_scaled(numbers, FORBIDDEN)
                attraction[:, columns], penalty[:, columns] = found

            @pl.when(slot < FIRST_SLOT)
            def _(slot=slot, columns=columns):
                shape = (self.rows, self.columns)
                attraction[:, columns] = free_tile(shape, slot, self.left)
                penalty[:, columns] = jnp.zeros(shape, jnp.float32)

    def bias(self, refs: Any, scratch: Any, batch: Any, head: Any) -> Array:
        """Added to the logits (in powers of two) of an attention head."""
        return soft_bias(refs[1], batch, head, scratch[1][...], scratch[2][...])

    def slope(self, refs: Any, scratch: Any, batch: Any, head: Any) -> Array:
        """Derivative of the bias (in natural logits) by the strength."""
        return soft_slope(refs[1], batch, head, scratch[1][...], scratch[2][...])
