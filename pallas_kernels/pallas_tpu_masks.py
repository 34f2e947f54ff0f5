"""What decides inside the partial tiles of the TPU kernels.

A source of masks brings its arrays, their buffers and copies, and turns the fetched tiles of a
step into a bias per pair, [rows, columns], once for all heads of the group. Rows are the tokens
that a grid program owns, columns those of the listed tiles.
"""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.pallas_tpu_plan import word_rows
from pallas_kernels.pallas_tpu_walk import EXCLUDED, Stream, word_stream

__all__ = ["BitMask"]


class BitMask:
    """Packed bits, fetched for every listed tile of a step that needs a mask.

    words   int32 [b or 1, heads, slots, word rows, columns] of `row_bits`.
    rows    tokens of the program's own tile; tiles, columns: listed tiles per step, tokens in each.
    """

    def __init__(self, words: Array, *, rows: int, tiles: int, columns: int):
        self.operands = (words,)
        self.specs = (pl.BlockSpec(memory_space=pl.ANY),)
        self.scratch = (
            pltpu.VMEM((2, word_rows(rows), tiles * columns), jnp.int32),
            pltpu.VMEM((rows, tiles * columns), jnp.float32),
        )
        self.columns = columns
        self.shared_batch = words.shape[0] == 1

    def streams(self, operands: Any, scratch: Any, batch: Any, head: Any) -> Sequence[Stream]:
        """Copies of a step's tiles."""
        source = operands[0].at[0 if self.shared_batch else batch, head]
        return [word_stream(source, scratch[0], self.columns)]

    def start(self, operands: Any, scratch: Any) -> None:
        """Once per grid program: nothing to do."""

    def evaluate(self, scratch: Any, buffer: Array) -> None:
        """Bias of a step's tiles from the fetched words."""
        words, bias = scratch
        packed = words[buffer]
        group = packed.shape[0]
        for bit in range(bias.shape[0] // group):
            chosen = jnp.int32(1 << bit if bit < 31 else -(1 << 31))
            allowed = lax.bitwise_and(packed, chosen) != 0
            bias[pl.ds(bit * group, group), :] = jnp.where(allowed, 0.0, EXCLUDED)

    def bias(self, scratch: Any, head: Any) -> Array:
        """Added to the logits (in powers of two) of a head."""
        return scratch[1][...]
