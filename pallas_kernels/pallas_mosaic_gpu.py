"""Block-sparse attention for Hopper by Mosaic GPU: TMA copies, wgmma, warp specialisation.

A program owns a row of 128 queries (for dk and dv: keys), reads the length of the row's list from
memory, and visits its listed tiles only: those with a mask first, by bits or by a soft constraint's
numbers, then the full ones without. Rows start longest first. Two warpgroups compute, taking turns
at the tensor cores, and a third copies.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu
from jaxtyping import Float

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.compat import output_like, reduce_like
from pallas_kernels.folding import fold_vmap
from pallas_kernels.kernel_tables import strength_numbers, strength_slope
from pallas_kernels.mosaic_backward import backward_kv_body, backward_q_body
from pallas_kernels.mosaic_kernels import COMPUTE, HALF, Rows, Static, forward_body
from pallas_kernels.mosaic_tables import TILE, MosaicTables, mosaic_tables

__all__ = ["cannot_take_mosaic_gpu", "interpreted_attention", "mosaic_gpu_attention"]

HEAD_DIMS = (64, 128)


def cannot_take_mosaic_gpu(q: Any, k: Any, mask: BlockMask) -> str:
    """Why these operands cannot run, by their shapes and the mask's kind; empty when they can."""
    if TILE % mask.tile_q or TILE % mask.tile_k:
        return f"the mask's tiles must divide {TILE}, and they are {mask.tile_q}x{mask.tile_k}"
    if q.shape[-1] not in HEAD_DIMS:
        return f"the head size must be one of {HEAD_DIMS}, and it is {q.shape[-1]}"
    if str(q.dtype) not in ("bfloat16", "float16"):
        return f"the tensor cores take bfloat16 or float16, not {q.dtype}"
    return ""


def mosaic_gpu_attention(
    q: Float[Array, "b tq heads d"],
    k: Float[Array, "b tk heads d"],
    v: Float[Array, "b tk heads d"],
    mask: BlockMask,
    scale: float,
) -> tuple[Float[Array, "b tq heads d"], Float[Array, "b tq heads"]]:
    """Attention and LSE as `reference_attention` defines them.

    Smaller tiles are coarsened and partial tiles packed first (see `mosaic_tables`). Raises
    ValueError for what `cannot_take_mosaic_gpu` names.
    """
    reason = cannot_take_mosaic_gpu(q, k, mask)
    if not reason and v.shape[-1] != q.shape[-1]:
        reason = f"v needs the head size of q, {q.shape[-1]}, and it has {v.shape[-1]}"
    if reason:
        raise ValueError(f"implementation 'pallas_mosaic_gpu' cannot run: {reason}")
    return _attention((Static(float(scale)), False), q, k, v, mask.strength, mosaic_tables(mask))


def interpreted_attention(
    q: Float[Array, "b tq heads d"],
    k: Float[Array, "b tk heads d"],
    v: Float[Array, "b tk heads dv"],
    mask: BlockMask,
    scale: float,
) -> tuple[Float[Array, "b tq heads dv"], Float[Array, "b tq heads"]]:
    """The same kernels in the GPU interpreter, for tests: on any device, slow, needs jax 0.12.

    Takes float32 and any head size too, by padding; tokens are padded to whole tiles, because the
    interpreter has no reads beyond an array's end, which TMA answers with zeros.
    """
    size = next(d for d in HEAD_DIMS if d >= max(q.shape[-1], v.shape[-1]))

    def pad(x: Array) -> Array:
        extra = -x.shape[1] % TILE
        return jnp.pad(x, ((0, 0), (0, extra), (0, 0), (0, size - x.shape[-1])))

    static = Static(float(scale), through_smem=True), True
    out, lse = _attention(static, pad(q), pad(k), pad(v), mask.strength, mosaic_tables(mask))
    return out[:, : q.shape[1], :, : v.shape[-1]], lse[:, : q.shape[1]]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _attention(static, q, k, v, strength, tables):
    return _attention_forward(static, q, k, v, strength, tables)[0]


def _attention_forward(static, q, k, v, strength, tables):
    run = fold_vmap(functools.partial(_forward, *static))
    out, lse = run(q, k, v, strength, tables[0])
    shown = jnp.swapaxes(lse[..., : q.shape[1]], 1, 2)
    return (out, shown), (q, k, v, strength, tables, out, lse)


def _attention_backward(static, saved, cotangents):
    q, k, v, strength, (query_tables, key_tables), out, lse = saved
    d_out, d_lse = cotangents
    delta = jnp.einsum("bthd,bthd->bht", d_out.astype(jnp.float32), out.astype(jnp.float32))
    delta = delta - jnp.swapaxes(d_lse, 1, 2)
    # Whole tiles: rows past the end, like those that see nothing, get exp(logit - inf) = 0.
    extra = lse.shape[-1] - delta.shape[-1]
    padding = ((0, 0), (0, 0), (0, extra))
    some = (lse > -jnp.inf) & (jnp.arange(lse.shape[-1]) < delta.shape[-1])[None, None]
    delta = jnp.where(some, jnp.pad(delta, padding), 0.0)
    rows = (q, k, v, d_out.astype(q.dtype), jnp.where(some, lse, jnp.inf), delta, strength)
    dq, *slope = fold_vmap(functools.partial(_backward_q, *static))(*rows, query_tables)
    dk, dv = fold_vmap(functools.partial(_backward_kv, *static))(*rows, key_tables)
    dq, dk, dv = (reduce_like(*pair) for pair in ((dq, q), (dk, k), (dv, v)))
    return dq, dk, dv, None if strength is None else strength_slope(slope[0], strength), None


_attention.defvjp(_attention_forward, _attention_backward)


def _tiles(shape: tuple[int, ...], dtype: Any) -> Any:
    """Shared memory for rows of tokens, as TMA writes and wgmma reads it."""
    tiling = plgpu.TilingTransform((8, 128 // jnp.dtype(dtype).itemsize))
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(128)))


def _forward(static: Static, interpret: bool, q, k, v, strength, tables: MosaicTables):
    """Output, and LSE of whole tiles [b, heads, t]."""
    b, _, heads, d = q.shape
    n, dtype, count = static.stages, q.dtype, tables.rows.count.shape[2]
    scratch = (
        (
            _tiles((COMPUTE, HALF, d), dtype),
            _tiles((n, TILE, d), dtype),
            _tiles((n, TILE, d), dtype),
            plgpu.SMEM((COMPUTE, HALF), jnp.float32),
            _words(tables, n),
            _tiles((COMPUTE, HALF, TILE), dtype) if static.through_smem else None,
        ),
        (plgpu.Barrier(num_barriers=COMPUTE), *(plgpu.Barrier(num_barriers=n),) * 3),
        (plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=n),) * 2,
        plgpu.Barrier(num_arrivals=COMPUTE),
    )
    outputs = [(q.shape, dtype), ((b, heads, count * TILE), jnp.float32)]
    return _run(forward_body, static, interpret, tables, strength, (q, k, v), outputs, scratch)


def _backward_scratch(
    static: Static, tables: MosaicTables, d: int, dtype: Any, *, inverse: bool
) -> Any:
    """Shared memory and barriers of both backward kernels.

    LSE and delta come with the program's own rows, or, in the inverse walk, with the visited ones.
    """
    n = static.backward_stages
    own, visited = _tiles((COMPUTE, HALF, d), dtype), _tiles((n, HALF, d), dtype)
    per_row = plgpu.SMEM((n if inverse else COMPUTE, HALF), jnp.float32)
    weights = _tiles((COMPUTE, HALF, HALF), dtype) if static.through_smem else None
    some = tables.pairs is not None and not inverse
    slope = plgpu.SMEM((COMPUTE, HALF), jnp.float32) if some else None
    own_copies, copies = (2, 2) if inverse else (4, 1)
    return (
        (own, own, visited, visited, per_row, per_row, _words(tables, n), weights, slope),
        (
            plgpu.Barrier(num_arrivals=own_copies, num_barriers=COMPUTE),
            plgpu.Barrier(num_arrivals=copies, num_barriers=n),
            plgpu.Barrier(num_arrivals=copies, num_barriers=n),
            plgpu.Barrier(num_barriers=n),
        ),
        (plgpu.Barrier(num_arrivals=COMPUTE, num_barriers=n),) * 2,
    )


def _backward_q(static, interpret, q, k, v, d_out, lse, delta, strength, tables):
    scratch = _backward_scratch(static, tables, q.shape[-1], q.dtype, inverse=False)
    operands, outputs = (q, k, v, d_out, lse, delta), [(q.shape, q.dtype)]
    if strength is not None:
        outputs.append((lse.shape, jnp.float32))
    return _run(backward_q_body, static, interpret, tables, strength, operands, outputs, scratch)


def _backward_kv(static, interpret, q, k, v, d_out, lse, delta, strength, tables):
    scratch = _backward_scratch(static, tables, q.shape[-1], q.dtype, inverse=True)
    operands, outputs = (q, k, v, d_out, lse, delta), [(k.shape, k.dtype), (v.shape, v.dtype)]
    return _run(backward_kv_body, static, interpret, tables, strength, operands, outputs, scratch)


def _words(tables: MosaicTables, stages: int) -> Any:
    return (
        None if tables.words is None else plgpu.SMEM((stages, *tables.words.shape[3:]), jnp.int32)
    )


def _run(
    body: Callable[..., None],
    static: Static,
    interpret: bool,
    tables: MosaicTables,
    strength: Array | None,
    operands: tuple[Array, ...],
    outputs: list[Any],
    scratch: Any,
) -> tuple[Array, ...]:
    """Run a kernel body; outputs: shapes and dtypes."""
    rows = tables.rows
    lists = (rows.order, rows.index, rows.slot, rows.count, rows.partial)
    given: dict[str, Array] = {}
    if tables.words is not None:
        given["words"] = tables.words
    if tables.pairs is not None and strength is not None:
        given |= {"pairs": tables.pairs, "numbers": strength_numbers(strength)}

    def kernel(*refs):
        rest = refs[len(lists) + len(given) :]
        masks = dict(zip(given, refs[len(lists) :], strict=False))

        def run(*scoped):
            body(static, Rows(refs[: len(lists)], **masks), *rest, scoped)

        pl.run_scoped(run, *scratch, collective_axes="wg")

    # The interpreter came with jax 0.11.
    mode = getattr(plgpu, "InterpretGPUParams")() if interpret else None  # noqa: B009
    kernel.__name__ = body.__name__.removesuffix("_body")
    batch, _, heads, _ = operands[0].shape
    call = plgpu.kernel(
        kernel,
        out_type=[output_like(*each, operands, lists, given) for each in outputs],
        grid=(rows.count.shape[2], heads, batch),
        grid_names=("rows", "heads", "batch"),
        num_threads=COMPUTE + 1,
        thread_name="wg",
        compiler_params=plgpu.CompilerParams(approx_math=True),
        interpret=mode,
    )
    return tuple(call(*lists, *given.values(), *operands))
