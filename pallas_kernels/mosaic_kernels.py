"""Kernel bodies for Hopper: two warpgroups compute, a third copies tiles ahead of them by TMA.

A program owns one tile of 128 rows, 64 for each computing warpgroup. The copying warpgroup walks
the row's list, read from memory, and keeps `stages` tiles in flight; the others wait on barriers.
Logits are kept in base 2 (scaled by log2 e), where the hardware's exponential is.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.kernel_tables import WEAKEST
from pallas_kernels.mosaic_tables import TILE
from pallas_kernels.soft_fill import decode

__all__ = ["COMPUTE", "LOG2_E", "Rows", "Static", "forward_body"]

COMPUTE = 2  # computing warpgroups
HALF = TILE // COMPUTE
LOG2_E = math.log2(math.e)
COMPUTE_REGISTERS, COPY_REGISTERS = 240, 24


@dataclasses.dataclass(frozen=True)
class Static:
    """What is fixed when a kernel is compiled.

    scale       of the logits.
    stages, backward_stages  listed tiles in flight, and half tiles in the backward pass.
    take_turns  the computing warpgroups alternate between tensor cores and softmax.
    through_smem  weights reach the second product through shared memory instead of registers: for
                the interpreter, which knows no products of registers.
    """

    scale: float
    stages: int = 2
    backward_stages: int = 4
    take_turns: bool = True
    through_smem: bool = False


class Rows:
    """The row of tiles that a program owns: which it is, and what it visits."""

    def __init__(self, tables: Any, words: Any = None, pairs: Any = None, numbers: Any = None):
        order, self._index, self._slot, count, partial = tables
        self.words, self._pairs = words, pairs
        self.soft = pairs is not None
        self.masked = words is not None or self.soft
        self.batch, self.head = lax.axis_index("batch"), lax.axis_index("heads")
        at = self._shared(order)
        self.row = order[(*at, lax.axis_index("rows"))]
        self.count = count[(*at, self.row)]
        self.partial = partial[(*at, self.row)] if self.masked else jnp.int32(0)
        if self.soft:
            # Once a row: within the loop the addresses would want registers.
            at = self._shared(numbers)
            self._numbers = [numbers[(*at, jnp.int32(i))] for i in range(3)]

    def _shared(self, table: Any) -> tuple[Any, Any]:
        """Sample and head of a table that may be shared by all samples or heads."""
        batch, heads = table.shape[:2]
        first = jnp.int32(0)
        return (self.batch if batch > 1 else first), (self.head if heads > 1 else first)

    def tile(self, entry: Array) -> Array:
        """The listed tile."""
        return self._index[(*self._shared(self._index), self.row, entry)]

    def tokens(self, ref: Any, start: Array, size: int) -> Any:
        """Tokens of ref [b, t, heads, d]; past its end they read zero and are not written."""
        return ref.at[self.batch, pl.ds(start, size), self.head]

    def values(self, ref: Any, start: Array, size: int) -> Any:
        """Values of ref [b, heads, t]."""
        return ref.at[self.batch, self.head, pl.ds(start, size)]

    def _slot_of(self, entry: Array) -> Array:
        return self._slot[(*self._shared(self._slot), self.row, entry)]

    def bits(self, entry: Array) -> Any:
        """Words [64, 8] of a listed partial tile."""
        return self.words.at[(*self._shared(self.words), self._slot_of(entry))]

    def constraint(self, entry: Array, warpgroup: Array, first: Any, n: int) -> tuple[Array, Array]:
        """A partial tile's constraint on the warpgroup's rows and n columns from `first`, [64, n].

        The bias of logits in base 2, -inf where a pair is excluded; and the slope of natural logits
        by the strength. To be asked for before the logits are there: both want registers.
        """
        rows, columns = pl.ds(warpgroup * HALF, HALF), pl.ds(first, n)
        source = self._pairs.at[(*self._shared(self._pairs), self._slot_of(entry), rows, columns)]
        # jax 0.10 has another signature; the kernels need 0.11.
        found = plgpu.load(source, layout=plgpu.Layout.WGMMA, optimized=False)  # pyright: ignore[reportCallIssue]
        attraction, penalty, allowed = decode(found)
        weight, factor, share = self._numbers
        bias = weight * attraction - factor * penalty
        bias = jnp.where(allowed & (bias > WEAKEST), bias, -jnp.inf)
        return bias, share * attraction - penalty


def product(a: Any, b: Any, shape: tuple[int, int]) -> Array:
    """a b in float32; a in shared memory or registers, b in shared memory."""

    def run(acc):
        plgpu.wgmma(acc, a, b)
        return acc[...]

    return pl.run_scoped(run, plgpu.WGMMAAccumulatorRef(shape, jnp.float32))


def mask_logits(logits: Array, words: Array, first: int = 0) -> Array:
    """-inf where the words [64, 8] of the own half, shifted to bit 0, do not allow."""
    columns = logits.shape[1] // words.shape[1]
    pieces = [lax.bitwise_and(words, jnp.int32(1 << (first + j))) for j in range(columns)]
    return jnp.where(jnp.concatenate(pieces, axis=1) != 0, logits, -jnp.inf)


def read(buffer: Any, layout: Any) -> Array:
    """Shared memory into registers, in a layout of the tensor cores."""
    # jax 0.10 has another signature; the kernels need 0.11.
    return plgpu.load(buffer, layout=layout)  # pyright: ignore[reportCallIssue]


def spread(x: Array, shape: tuple[int, ...], axis: int = 0) -> Array:
    """A value per row (axis 0) or column (axis 1), over a matrix."""
    return lax.broadcast_in_dim(x, shape, (axis,))


def constant(value: float, shape: tuple[int, ...]) -> Array:
    """A matrix, or a value per row of one, in the layout of the tensor cores' results."""
    layout = plgpu.Layout.WGMMA if len(shape) == 2 else plgpu.Layout.WGMMA.reduce(1)
    return plgpu.layout_cast(jnp.full(shape, value, jnp.float32), layout)


def stage_loop(low: Any, high: Any, step: Callable[[Array, Array, Any], Any], carry: Any, n: int):
    """Fold `step(entry, stage, carry)`."""

    def body(entry, carry):
        return step(entry, lax.rem(entry, jnp.int32(n)), carry)

    return lax.fori_loop(low, high, body, carry)


def forward_body(static: Static, rows: Rows, q, k, v, out, lse, scoped: Any) -> None:
    """Output [b, t, heads, d] and LSE [b, heads, whole tiles] of a row of 128 queries."""
    buffers, ready, released, turn = scoped
    q_smem, k_smem, v_smem, lse_smem, words_smem, weights_smem = buffers
    q_ready, k_ready, v_ready, words_ready = ready
    k_released, v_released = released
    warpgroup = lax.axis_index("wg")
    value_dim = v.shape[-1]

    def change_turn():
        if static.take_turns:
            plgpu.barrier_arrive(turn)
            plgpu.barrier_wait(turn)

    @pl.when(warpgroup < COMPUTE)
    def _():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        own = q_smem.at[warpgroup]
        start = rows.row * TILE + warpgroup * HALF
        plgpu.copy_gmem_to_smem(rows.tokens(q, start, HALF), own, q_ready.at[warpgroup])
        plgpu.barrier_wait(q_ready.at[warpgroup])
        pl.when(warpgroup == 1)(change_turn)

        def step(entry, stage, carry, *, masked):
            top, total, found = carry
            plgpu.barrier_wait(k_ready.at[stage])
            if masked and not rows.soft:
                plgpu.barrier_wait(words_ready.at[stage])
                words = read(words_smem.at[stage], plgpu.Layout.WGMMA)
                words = lax.shift_right_logical(words, 16 * warpgroup)
            if masked and rows.soft:
                bias, _ = rows.constraint(entry, warpgroup, 0, TILE)
            logits = product(own, k_smem.at[stage].transpose((1, 0)), (HALF, TILE))
            change_turn()
            plgpu.barrier_arrive(k_released.at[stage])
            factor = static.scale * LOG2_E
            if masked and rows.soft:
                logits, factor = logits * factor + bias, 1.0
            elif masked:
                logits = mask_logits(logits, words)
            new_top = jnp.maximum(top, logits.max(axis=1) * factor)
            # A row that has seen nothing keeps -inf, which must not meet itself in a difference.
            base = jnp.where(new_top > -jnp.inf, new_top, 0.0) if masked else new_top
            decay = jnp.exp2(top - base)
            weights = jnp.exp2(logits * factor - spread(base, logits.shape))
            total = total * decay + weights.sum(axis=1)
            weights = weights.astype(v.dtype)
            if static.take_turns:
                plgpu.barrier_arrive(turn)
            plgpu.barrier_wait(v_ready.at[stage])
            if static.take_turns:
                plgpu.barrier_wait(turn)
            if static.through_smem:
                weights_smem[warpgroup] = weights
                plgpu.commit_smem()
                weights = weights_smem.at[warpgroup]
            added = product(weights, v_smem.at[stage], (HALF, value_dim))
            plgpu.barrier_arrive(v_released.at[stage])
            return new_top, total, found * spread(decay, found.shape) + added

        carry = (
            constant(-jnp.inf, (HALF,)),
            constant(0.0, (HALF,)),
            constant(0.0, (HALF, value_dim)),
        )

        def walk(low, high, carry, *, masked):
            def one(entry, stage, carry):
                return step(entry, stage, carry, masked=masked)

            return stage_loop(low, high, one, carry, static.stages)

        if rows.masked:
            carry = walk(0, rows.partial, carry, masked=True)
        top, total, found = walk(rows.partial, rows.count, carry, masked=False)
        pl.when(warpgroup == 0)(change_turn)
        some = total > 0
        total = jnp.where(some, total, 1.0)
        own[...] = (found / spread(total, found.shape)).astype(out.dtype)
        lse_smem[warpgroup] = jnp.where(some, top / LOG2_E + jnp.log(total), -jnp.inf)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own, rows.tokens(out, start, HALF))
        plgpu.copy_smem_to_gmem(lse_smem.at[warpgroup], rows.values(lse, start, HALF))
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == COMPUTE)
    def _():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")

        def fetch(entry, stage, _):
            start = rows.tile(entry) * TILE
            again = entry >= static.stages

            @pl.when(again)
            def _():
                plgpu.barrier_wait(k_released.at[stage])

            plgpu.copy_gmem_to_smem(
                rows.tokens(k, start, TILE), k_smem.at[stage], k_ready.at[stage]
            )
            if rows.words is not None:

                @pl.when(entry < rows.partial)
                def _():
                    plgpu.copy_gmem_to_smem(
                        rows.bits(entry), words_smem.at[stage], words_ready.at[stage]
                    )

            @pl.when(again)
            def _():
                plgpu.barrier_wait(v_released.at[stage])

            plgpu.copy_gmem_to_smem(
                rows.tokens(v, start, TILE), v_smem.at[stage], v_ready.at[stage]
            )
            return _

        stage_loop(0, rows.count, fetch, None, static.stages)
