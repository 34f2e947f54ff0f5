"""Block-sparse attention by the Triton route of Pallas, for Ampere and later.

A program takes one block of queries, reads the length of its row's list from memory, and loops
over the listed key tiles only: first the partial ones, masked by their bits or by a soft
constraint's numbers, then the full ones without a mask. Rows start longest first. The backward
pass walks the same lists for dq and the inverse lists for dk and dv; nothing is added atomically,
so that every sum has one fixed order.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Float

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.compat import output_like, reduce_like
from pallas_kernels.folding import fold_vmap
from pallas_kernels.kernel_tables import (
    KernelTables,
    RowTables,
    kernel_tables,
    strength_numbers,
    strength_slope,
)
from pallas_kernels.triton_kernels import (
    KernelShape,
    Masks,
    backward_kv_kernel,
    backward_q_kernel,
    forward_kernel,
)

__all__ = ["TritonBlocks", "TritonConfig", "cannot_take_triton", "triton_attention"]


@dataclasses.dataclass(frozen=True)
class TritonBlocks:
    """One kernel's block sizes (at most; the mask's tiles bound them), warps and load stages."""

    block_q: int
    block_k: int
    num_warps: int
    num_stages: int


@dataclasses.dataclass(frozen=True)
class TritonConfig:
    """Block sizes of the three kernels."""

    forward: TritonBlocks
    backward_q: TritonBlocks
    backward_kv: TritonBlocks


def choose_blocks(head_dim: int, dtype: Any, *, soft: bool = False) -> TritonConfig:
    """Block sizes by head size and dtype: large ones that stay in registers, compiled for sm_90.

    A soft constraint's numbers need registers too.
    """
    if dtype == jnp.float32:  # exact products run outside the tensor cores, and need registers
        each = TritonBlocks(32, 32, 4 if head_dim <= 64 else 8, 2)
        return TritonConfig(each, each, each)
    if soft:
        wide = TritonBlocks(64, 64, 8, 2)
        last = wide if head_dim <= 64 else TritonBlocks(32, 64, 4, 2)
        return TritonConfig(TritonBlocks(128, 64, 8, 2), wide, last)
    if head_dim <= 64:
        small = TritonBlocks(64, 64, 4, 3)
        return TritonConfig(TritonBlocks(128, 64, 4, 3), small, small)
    small = TritonBlocks(64, 64, 8, 2)
    return TritonConfig(TritonBlocks(128, 64, 8, 2), small, small)


def cannot_take_triton(q: Any, k: Any, mask: BlockMask) -> str:
    """Why these operands cannot run, by their shapes and the mask's kind; empty when they can."""
    for name, tile in (("tile_q", mask.tile_q), ("tile_k", mask.tile_k)):
        if tile < 16 or tile & (tile - 1):
            return f"the mask's tiles must be powers of two from 16, and {name} is {tile}"
    if mask.fill is not None and not mask.soft and mask.tile_k < 32:
        return f"masks with partial tiles need tile_k from 32, and it is {mask.tile_k}"
    return ""


def triton_attention(
    q: Float[Array, "b tq heads d"],
    k: Float[Array, "b tk heads d"],
    v: Float[Array, "b tk heads dv"],
    mask: BlockMask,
    scale: float,
    config: TritonConfig | None = None,
    *,
    interpret: bool = False,
) -> tuple[Float[Array, "b tq heads dv"], Float[Array, "b tq heads"]]:
    """Attention and LSE as `reference_attention` defines them.

    A mask whose partial tiles are not packed yet is packed first (see `kernel_tables.packed`).
    `config` sets the block sizes; `interpret` runs the kernels' arithmetic on any device, slowly,
    for tests.
    Raises ValueError for what `cannot_take_triton` names.
    """
    reason = cannot_take_triton(q, k, mask)
    if reason:
        raise ValueError(f"implementation 'pallas_triton' cannot run: {reason}")
    size = max(q.shape[-1], v.shape[-1])
    config = config or choose_blocks(size, q.dtype, soft=mask.soft)
    static = (float(scale), config, interpret)
    # Triton's arrays have powers of two in every axis; zeros add nothing to a product.
    padded = (_pad_heads(x) for x in (q, k, v))
    out, lse = _attention(static, *padded, mask.strength, kernel_tables(mask))
    return out[..., : v.shape[-1]], lse


def _pad_heads(x: Array) -> Array:
    size = max(16, pl.next_power_of_2(x.shape[-1]))
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, size - x.shape[-1])))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q, k, v, strength, tables):
    return _attention_forward(static, q, k, v, strength, tables)[0]


def _attention_forward(static, q, k, v, strength, tables):
    out, lse = fold_vmap(functools.partial(_forward, *static))(q, k, v, strength, tables)
    return (out, jnp.swapaxes(lse, 1, 2)), (q, k, v, strength, tables, out, lse)


def _attention_backward(static, saved, cotangents):
    q, k, v, strength, tables, out, lse = saved
    d_out, d_lse = cotangents
    some = lse > -jnp.inf
    delta = jnp.einsum("bthd,bthd->bht", d_out.astype(jnp.float32), out.astype(jnp.float32))
    delta = jnp.where(some, delta - jnp.swapaxes(d_lse, 1, 2), 0.0)
    # exp(logit - inf) = 0: rows that see nothing get nothing.
    rows = (q, k, v, d_out, jnp.where(some, lse, jnp.inf), delta, strength, tables)
    dq, *slope = fold_vmap(functools.partial(_backward_q, *static))(*rows)
    dk, dv = fold_vmap(functools.partial(_backward_kv, *static))(*rows)
    dq, dk, dv = (reduce_like(*pair) for pair in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, None if strength is None else strength_slope(slope[0], strength), None


_attention.defvjp(_attention_forward, _attention_backward)


def _forward(scale, config, interpret, q, k, v, strength, tables):
    b, tq, heads, _ = q.shape
    outputs = [((b, tq, heads, v.shape[-1]), q.dtype), ((b, heads, tq), jnp.float32)]
    run = _kernel(forward_kernel, tables.keys, tables, config.forward, scale, interpret)
    return run((q, k, v), outputs, strength)


def _backward_q(scale, config, interpret, q, k, v, d_out, lse, delta, strength, tables):
    run = _kernel(backward_q_kernel, tables.keys, tables, config.backward_q, scale, interpret)
    outputs = [(q.shape, q.dtype)]
    if strength is not None:
        outputs.append((lse.shape, jnp.float32))
    return run((q, k, v, d_out, lse, delta), outputs, strength)


def _backward_kv(scale, config, interpret, q, k, v, d_out, lse, delta, strength, tables):
    run = _kernel(backward_kv_kernel, tables.queries, tables, config.backward_kv, scale, interpret)
    outputs = [(x.shape, x.dtype) for x in (k, v)]
    return run((q, k, v, d_out, lse, delta), outputs, strength)


def _kernel(
    body: Callable[..., None],
    rows: RowTables,
    tables: KernelTables,
    blocks: TritonBlocks,
    scale: float,
    interpret: bool,
) -> Callable[..., Any]:
    """The kernel as a function of operands, shapes and dtypes of outputs, and the strength."""
    shape = KernelShape(
        tile_q=tables.tile_q,
        tile_k=tables.tile_k,
        block_q=min(blocks.block_q, tables.tile_q),
        block_k=min(blocks.block_k, tables.tile_k),
        q_len=tables.q_len,
        k_len=tables.k_len,
        scale=scale,
        inverse=rows is tables.queries,
    )
    lists = (rows.order, rows.index, rows.slot, rows.count, rows.partial)

    def by_row(x: Array) -> Array:
        """[b, heads, slots, tile_q, n] -> [b, heads, slots * tile_q, n]."""
        return x.reshape(*x.shape[:2], -1, x.shape[-1])

    def run(
        operands: tuple[Array, ...], outputs: list[Any], strength: Array | None
    ) -> tuple[Array, ...]:
        given: dict[str, Array] = {}
        if tables.words is not None:
            given["words"] = by_row(tables.words)
        if tables.pairs is not None and strength is not None:
            given |= {"pairs": by_row(tables.pairs), "numbers": strength_numbers(strength)}

        def kernel(*refs):
            first, rest = refs[: len(lists)], refs[len(lists) + len(given) :]
            masks = Masks(**dict(zip(given, refs[len(lists) :], strict=False)))
            body(shape, first, masks, *rest)

        batch, _, heads, _ = operands[0].shape
        call = pl.pallas_call(
            kernel,
            out_shape=[output_like(*each, operands, lists, given) for each in outputs],
            grid=(rows.count.shape[2] * shape.row_parts, heads, batch),
            compiler_params=plgpu.CompilerParams(
                num_warps=blocks.num_warps, num_stages=blocks.num_stages
            ),
            interpret=interpret,
            name=body.__name__,
        )
        return tuple(call(*lists, *given.values(), *operands))

    return run
