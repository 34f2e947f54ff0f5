"""Backward kernel bodies for Hopper; how a program is split stands in mosaic_kernels.py.

Listed tiles are taken in halves of 64 tokens: the logits and their gradient then fit in registers
beside the sums. Nothing is added atomically, so that every sum has one fixed order.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels.mosaic_kernels import (
    COMPUTE,
    COMPUTE_REGISTERS,
    COPY_REGISTERS,
    HALF,
    LOG2_E,
    Rows,
    Static,
    constant,
    mask_logits,
    product,
    read,
    spread,
    stage_loop,
)
from pallas_kernels.mosaic_tables import TILE

__all__ = ["backward_kv_body", "backward_q_body"]

PARTS = TILE // HALF  # steps per listed tile


def _words(rows: Rows, buffer: Any, part: Array, warpgroup: Array) -> Array:
    """The words of the half tile at hand, shifted to bit 0."""
    words = read(buffer, plgpu.Layout.WGMMA)
    return lax.shift_right_logical(words, 16 * warpgroup + 8 * part)


def _walk(rows: Rows, stages: int, step: Callable[..., None]) -> None:
    """`step(entry, part, stage, masked)` for all listed half tiles, those with a mask first."""

    def loop(low, high, masked):
        def one(at, stage, _):
            step(lax.div(at, jnp.int32(PARTS)), lax.rem(at, jnp.int32(PARTS)), stage, masked)
            return _

        stage_loop(low * PARTS, high * PARTS, one, None, stages)

    if rows.masked:
        loop(jnp.int32(0), rows.partial, True)
    loop(rows.partial, rows.count, False)


def _fetch(
    rows: Rows, stages: int, words: tuple[Any, Any], first: Callable, second: Callable, released
) -> None:
    """Copy listed half tiles: `first` and `second` (start, stage), each once it was released."""
    buffer, ready = words

    def fetch(at, stage, _):
        entry, part = lax.div(at, jnp.int32(PARTS)), lax.rem(at, jnp.int32(PARTS))
        start = rows.tile(entry) * TILE + part * HALF

        @pl.when(at >= stages)
        def _():
            plgpu.barrier_wait(released[0].at[stage])

        first(start, stage)
        if rows.words is not None:

            @pl.when(entry < rows.partial)
            def _():
                plgpu.copy_gmem_to_smem(rows.bits(entry), buffer.at[stage], ready.at[stage])

        @pl.when(at >= stages)
        def _():
            plgpu.barrier_wait(released[1].at[stage])

        second(start, stage)
        return _

    stage_loop(jnp.int32(0), rows.count * PARTS, fetch, None, stages)


def _operand(static: Static, value: Array, buffer: Any) -> Any:
    """A left operand of a product: in registers, or in shared memory for the interpreter."""
    if not static.through_smem:
        return value
    buffer[...] = value
    plgpu.commit_smem()
    return buffer


def backward_q_body(static: Static, rows: Rows, q, k, v, d_out, lse, delta, dq, *rest: Any):
    """dq [b, t, heads, d] of a row of 128 queries; of a soft mask the strength's slope by row."""
    *slope, scoped = rest
    buffers, ready, released = scoped
    q_smem, d_smem, k_smem, v_smem, lse_smem, delta_smem, words_smem, weights_smem = buffers[:8]
    slope_smem = buffers[8]
    own_ready, k_ready, v_ready, words_ready = ready
    k_released, v_released = released
    warpgroup = lax.axis_index("wg")

    @pl.when(warpgroup < COMPUTE)
    def _():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        start = rows.row * TILE + warpgroup * HALF
        own_q, own_d = q_smem.at[warpgroup], d_smem.at[warpgroup]
        here = own_ready.at[warpgroup]
        plgpu.copy_gmem_to_smem(rows.tokens(q, start, HALF), own_q, here)
        plgpu.copy_gmem_to_smem(rows.tokens(d_out, start, HALF), own_d, here)
        plgpu.copy_gmem_to_smem(rows.values(lse, start, HALF), lse_smem.at[warpgroup], here)
        plgpu.copy_gmem_to_smem(rows.values(delta, start, HALF), delta_smem.at[warpgroup], here)
        plgpu.barrier_wait(here)
        per_row = plgpu.Layout.WGMMA.reduce(1)
        top = read(lse_smem.at[warpgroup], per_row) * LOG2_E
        offset = read(delta_smem.at[warpgroup], per_row)
        shape = (HALF, HALF)
        if rows.soft:
            slope_smem[warpgroup] = constant(0.0, (HALF,))

        def run(found):
            def step(entry, part, stage, masked):
                plgpu.barrier_wait(k_ready.at[stage])
                if masked and rows.soft:
                    bias, steep = rows.constraint(entry, warpgroup, part * HALF, HALF)
                logits = product(own_q, k_smem.at[stage].transpose((1, 0)), shape)
                factor = static.scale * LOG2_E
                if masked and rows.soft:
                    logits, factor = logits * factor + bias, 1.0
                elif masked:
                    plgpu.barrier_wait(words_ready.at[stage])
                    words = _words(rows, words_smem.at[stage], part, warpgroup)
                    logits = mask_logits(logits, words)
                weights = jnp.exp2(logits * factor - spread(top, shape))
                plgpu.barrier_wait(v_ready.at[stage])
                d_weights = product(own_d, v_smem.at[stage].transpose((1, 0)), shape)
                plgpu.barrier_arrive(v_released.at[stage])
                d_logits = weights * (d_weights - spread(offset, shape))
                if masked and rows.soft:
                    sums = read(slope_smem.at[warpgroup], per_row)
                    slope_smem[warpgroup] = sums + (d_logits * steep).sum(axis=1)
                d_logits = d_logits.astype(k.dtype)
                left = _operand(static, d_logits, weights_smem and weights_smem.at[warpgroup])
                plgpu.wgmma(found, left, k_smem.at[stage])
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(k_released.at[stage])

            _walk(rows, static.backward_stages, step)
            return found[...]

        found = pl.run_scoped(run, plgpu.WGMMAAccumulatorRef((HALF, q.shape[-1]), jnp.float32))
        own_q[...] = (found * static.scale).astype(dq.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own_q, rows.tokens(dq, start, HALF))
        for each in slope:
            plgpu.copy_smem_to_gmem(slope_smem.at[warpgroup], rows.values(each, start, HALF))
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == COMPUTE)
    def _():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")

        def keys(start, stage):
            source = rows.tokens(k, start, HALF)
            plgpu.copy_gmem_to_smem(source, k_smem.at[stage], k_ready.at[stage])

        def values(start, stage):
            source = rows.tokens(v, start, HALF)
            plgpu.copy_gmem_to_smem(source, v_smem.at[stage], v_ready.at[stage])

        _fetch(rows, static.backward_stages, (words_smem, words_ready), keys, values, released)


def backward_kv_body(static: Static, rows: Rows, q, k, v, d_out, lse, delta, dk, dv, scoped: Any):
    """dk and dv of a row of 128 keys, over the query tiles that see it.

    All matrices are keys by queries, so that the products take the weights as they are.
    """
    buffers, ready, released = scoped
    k_smem, v_smem, q_smem, d_smem, lse_smem, delta_smem, words_smem, weights_smem, _ = buffers
    own_ready, q_ready, d_ready, words_ready = ready
    q_released, d_released = released
    warpgroup = lax.axis_index("wg")

    @pl.when(warpgroup < COMPUTE)
    def _():
        plgpu.set_max_registers(COMPUTE_REGISTERS, action="increase")
        start = rows.row * TILE + warpgroup * HALF
        own_k, own_v = k_smem.at[warpgroup], v_smem.at[warpgroup]
        here = own_ready.at[warpgroup]
        plgpu.copy_gmem_to_smem(rows.tokens(k, start, HALF), own_k, here)
        plgpu.copy_gmem_to_smem(rows.tokens(v, start, HALF), own_v, here)
        plgpu.barrier_wait(here)
        per_column, shape = plgpu.Layout.WGMMA.reduce(0), (HALF, HALF)

        def run(found_k, found_v):
            def step(entry, part, stage, masked):
                plgpu.barrier_wait(q_ready.at[stage])
                logits = product(own_k, q_smem.at[stage].transpose((1, 0)), shape)
                if masked and not rows.soft:
                    plgpu.barrier_wait(words_ready.at[stage])
                    words = _words(rows, words_smem.at[stage], part, warpgroup)
                    logits = mask_logits(logits, words)
                top = read(lse_smem.at[stage], per_column) * LOG2_E
                logits = logits * (static.scale * LOG2_E) - spread(top, shape, 1)
                if masked and rows.soft:
                    # Only now: beside the sums of dk and dv registers are few.
                    bias, _ = rows.constraint(entry, warpgroup, part * HALF, HALF)
                    logits = logits + bias
                weights = jnp.exp2(logits)
                buffer = weights_smem and weights_smem.at[warpgroup]
                plgpu.barrier_wait(d_ready.at[stage])
                left = _operand(static, weights.astype(d_out.dtype), buffer)
                plgpu.wgmma(found_v, left, d_smem.at[stage])
                if rows.soft:  # frees the operand's registers, which are few
                    plgpu.wgmma_wait(0)
                d_weights = product(own_v, d_smem.at[stage].transpose((1, 0)), shape)
                offset = read(delta_smem.at[stage], per_column)
                plgpu.barrier_arrive(d_released.at[stage])
                d_logits = weights * (d_weights - spread(offset, shape, 1))
                left = _operand(static, d_logits.astype(q.dtype), buffer)
                plgpu.wgmma(found_k, left, q_smem.at[stage])
                plgpu.wgmma_wait(0)
                plgpu.barrier_arrive(q_released.at[stage])

            _walk(rows, static.backward_stages, step)
            return found_k[...], found_v[...]

        sums = (plgpu.WGMMAAccumulatorRef((HALF, x.shape[-1]), jnp.float32) for x in (k, v))
        found_k, found_v = pl.run_scoped(run, *sums)
        own_k[...] = (found_k * static.scale).astype(dk.dtype)
        own_v[...] = found_v.astype(dv.dtype)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(own_k, rows.tokens(dk, start, HALF))
        plgpu.copy_smem_to_gmem(own_v, rows.tokens(dv, start, HALF))
        plgpu.wait_smem_to_gmem(0)

    @pl.when(warpgroup == COMPUTE)
    def _():
        plgpu.set_max_registers(COPY_REGISTERS, action="decrease")

        def queries(start, stage):
            ready = q_ready.at[stage]
            plgpu.copy_gmem_to_smem(rows.tokens(q, start, HALF), q_smem.at[stage], ready)
            plgpu.copy_gmem_to_smem(rows.values(lse, start, HALF), lse_smem.at[stage], ready)

        def gradients(start, stage):
            ready = d_ready.at[stage]
            plgpu.copy_gmem_to_smem(rows.tokens(d_out, start, HALF), d_smem.at[stage], ready)
            plgpu.copy_gmem_to_smem(rows.values(delta, start, HALF), delta_smem.at[stage], ready)

        _fetch(
            rows, static.backward_stages, (words_smem, words_ready), queries, gradients, released
        )
