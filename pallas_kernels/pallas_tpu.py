"""Block-sparse attention as Pallas kernels for TPUs.

Every grid program owns one tile of queries (keys for dk and dv) and a group of heads that share
the mask. It reads its row of the lists from scalar memory, fetches several listed tiles a step
ahead of their use, and computes them as one large tile; the mask is looked at in steps that hold a
partial tile, once for all heads of the group. Work is proportional to the listed tiles.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.custom_derivatives import CustomVJPPrimal, SymbolicZero
from jaxtyping import Float

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.compat import reduce_like
from pallas_kernels.fills import BitFill, GeometryFill
from pallas_kernels.folding import fold_vmap
from pallas_kernels.packing import pack_partial_tiles, pack_soft_tiles
from pallas_kernels.pallas_tpu_calls import backward_keys, backward_queries, forward
from pallas_kernels.pallas_tpu_plan import TpuConfig, choose_config
from pallas_kernels.soft_fill import SoftFill
from pallas_kernels.target_device import Target

__all__ = ["tpu_attention", "tpu_cannot_run", "tpu_cannot_take", "tpu_note"]


def tpu_cannot_run(target: Target) -> str:
    """Why the kernels cannot run on a device; empty when they can."""
    return "" if target.platform == "tpu" else f"it needs a TPU, and this is for {target.platform}"


def tpu_cannot_take(q: Any, k: Any, mask: BlockMask, *, least_tile: int = 128) -> str:
    """Why the kernels cannot take such operands; empty when they can.

    least_tile: what tiles must be multiples of; the interpreter takes 8.
    """
    if str(q.dtype) not in ("float32", "bfloat16"):
        return f"TPU kernels take float32 and bfloat16, not {q.dtype}"
    if mask.tile_q % least_tile or mask.tile_k % least_tile:
        return (
            f"tiles must be multiples of {least_tile} tokens, not {mask.tile_q}x{mask.tile_k}; "
            "`coarsen` makes a mask's larger"
        )
    return ""


def _packs(mask: BlockMask) -> bool:
    """Whether the mask's partial tiles are packed before the kernels run."""
    ready = BitFill | SoftFill | GeometryFill
    return mask.fill is not None and not isinstance(mask.fill, ready)


def tpu_note(mask: BlockMask) -> str:
    """What decides inside the mask's partial tiles, where it is worth knowing, as a clause."""
    held, pack = ("numbers", "pack_soft_tiles") if mask.soft else ("bits", "pack_partial_tiles")
    if _packs(mask):
        return f", once its partial tiles are packed into {held}"
    if isinstance(mask.fill, GeometryFill):
        return (
            f", which evaluates the predicate for every group of heads: {held} that `{pack}` makes "
            "once are faster"
        )
    return ""


def tpu_attention(
    q: Float[Array, "b tq heads d"],
    k: Float[Array, "b tk heads d"],
    v: Float[Array, "b tk heads dv"],
    mask: BlockMask,
    scale: float,
    *,
    config: TpuConfig | None = None,
    interpret: Any = False,
) -> tuple[Float[Array, "b tq heads dv"], Float[Array, "b tq heads"]]:
    """Attention and LSE as `reference_attention` defines them, by TPU kernels.

    What decides inside partial tiles is what the mask holds: packed bits (BitFill), a soft
    constraint's packed numbers (SoftFill), or the correspondence predicate (GeometryFill). Packed
    ones are what to ship: by the static schedule a partial tile costs about as much as a tile of
    jax's splash attention with them and about twice as much with the predicate, and
    `pack_partial_tiles` or `pack_soft_tiles` makes them once for all layers and heads. The
    predicate is for masks that serve one call. Other fills are packed first.
    config: sizes of the steps, by default `choose_config`'s. interpret: False, or
    `pltpu.InterpretParams` to interpret the kernels on another device, in tests.
    Raises ValueError for operands that the kernels cannot take.
    """
    reason = tpu_cannot_take(q, k, mask, least_tile=8 if interpret else 128)
    if reason:
        raise ValueError(reason)
    if _packs(mask):
        mask = pack_soft_tiles(mask) if mask.soft else pack_partial_tiles(mask)
    token_bytes = max(128, q.shape[3], v.shape[3]) * q.dtype.itemsize
    config = config or choose_config(mask, q.shape[2], token_bytes)
    config.check(mask, q.shape[2])
    # The kernels compare logits before they scale them.
    q, scale = (-q, -scale) if scale < 0 else (q, scale)
    plain = dataclasses.replace(mask, strength=None)
    return _attention(float(scale), config, interpret, q, k, v, mask.strength, plain)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attention(scale, config, interpret, q, k, v, strength, mask):
    return _run_forward(scale, config, interpret, q, k, v, strength, mask)


def _run_forward(scale, config, interpret, *operands):
    return fold_vmap(functools.partial(forward, scale, config, interpret))(*operands)


def _attention_forward(scale, config, interpret, *primals):
    operands = jax.tree.map(lambda x: x.value, primals, is_leaf=_is_primal)
    strength = primals[3]
    # Kept in the structure, and so static: whether the strength's gradient is asked for. It costs
    # a third of dq's time where it is.
    asked = () if strength is not None and strength.perturbed else None
    out, lse = _run_forward(scale, config, interpret, *operands)
    return (out, lse), (operands, out, lse, asked)


def _is_primal(x: Any) -> bool:
    return isinstance(x, CustomVJPPrimal)


def _attention_backward(scale, config, interpret, saved, cotangents):
    (q, k, v, strength, mask), out, lse, asked = saved
    d_out, d_lse = (
        jnp.zeros_like(like) if isinstance(x, SymbolicZero) else x
        for x, like in zip(cotangents, (out, lse), strict=True)
    )
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    delta = jnp.where(lse > -jnp.inf, delta - d_lse, 0.0)
    operands = (q, k, v, d_out, lse, delta, strength, mask)
    of_queries = functools.partial(
        backward_queries, scale, config, interpret, strength_asked=asked is not None
    )
    dq, d_strength = fold_vmap(of_queries)(*operands)
    dk, dv = fold_vmap(functools.partial(backward_keys, scale, config, interpret))(*operands)
    dq, dk, dv = (reduce_like(*pair) for pair in ((dq, q), (dk, k), (dv, v)))
    if d_strength is None:
        return dq, dk, dv, None, None
    for axis in (0, 1):
        if strength.shape[axis] == 1:
            d_strength = jnp.sum(d_strength, axis=axis, keepdims=True)
    return dq, dk, dv, reduce_like(d_strength, strength), None


_attention.defvjp(_attention_forward, _attention_backward, symbolic_zeros=True)
