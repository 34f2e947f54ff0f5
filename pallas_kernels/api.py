"""The public functions: attention under a block mask, choice of implementation, merging."""

import dataclasses
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.gpu_device import cannot_run_mosaic_gpu, cannot_run_triton
from pallas_kernels.pallas_tpu import (
    tpu_attention,
    tpu_cannot_run,
    tpu_cannot_take,
    tpu_note,
)
from pallas_kernels.pallas_triton import cannot_take_triton, triton_attention
from pallas_kernels.patterns import dense_pattern
from pallas_kernels.reference import reference_attention
from pallas_kernels.target_device import Target, target_of
from pallas_kernels.xla_chunked import chunked_attention

__all__ = [
    "IMPLEMENTATIONS",
    "Choice",
    "Implementation",
    "available_implementations",
    "block_sparse_attention",
    "explain_choice",
    "merge_attention",
]

Operand = Float[Array, "b _ heads d"] | jax.ShapeDtypeStruct
Attended = (
    Float[Array, "b tq heads dv"] | tuple[Float[Array, "b tq heads dv"], Float[Array, "b tq heads"]]
)
"""An attention's output, or with its LSE."""
NORMALISATIONS = ("allowed", "multiply")
DTYPES = ("float32", "bfloat16", "float16")
# Below this many logits one dense product is faster than a loop over tiles, and they fit anywhere.
SMALL_LOGITS = 2**19


@dataclasses.dataclass(frozen=True)
class Implementation:
    """How one implementation runs, and what stands in its way.

    attend         the function (q, k, v, mask, scale) -> (out, lse).
    cannot_run     why it cannot run on a device; empty when it can.
    cannot_take    why it cannot take such q, k and mask, by shape and dtype; empty when it can.
    """

    attend: Callable
    cannot_run: Callable[[Target], str] = lambda target: ""
    cannot_take: Callable[[Operand, Operand, BlockMask], str] = lambda q, k, mask: ""


def _of_mosaic_gpu(name: str) -> Callable[..., Any]:
    """A function of the Hopper kernels, imported at its first call: they take half a second."""

    def call(*operands: Any) -> Any:
        return getattr(importlib.import_module("pallas_kernels.pallas_mosaic_gpu"), name)(*operands)

    return call


IMPLEMENTATIONS: dict[str, Implementation] = {
    "reference": Implementation(reference_attention),
    "xla_chunked": Implementation(chunked_attention),
    "pallas_tpu": Implementation(tpu_attention, tpu_cannot_run, tpu_cannot_take),
    "pallas_mosaic_gpu": Implementation(
        _of_mosaic_gpu("mosaic_gpu_attention"),
        cannot_run_mosaic_gpu,
        _of_mosaic_gpu("cannot_take_mosaic_gpu"),
    ),
    "pallas_triton": Implementation(triton_attention, cannot_run_triton, cannot_take_triton),
}
# Kernels that are better than the portable implementations where they run, best first.
KERNELS = ("pallas_tpu", "pallas_mosaic_gpu", "pallas_triton")


@dataclasses.dataclass(frozen=True)
class Choice:
    """An implementation's name, and why it was chosen."""

    implementation: str
    reason: str


def available_implementations(*operands: Operand) -> dict[str, str]:
    """Every implementation's name, and why it cannot run: empty when it can.

    On the device that the operands stand on, or that a program over them is compiled for (see
    `target_of`); without operands, on the mesh in context or jax's default device.
    """
    target = target_of(*operands)
    return {name: each.cannot_run(target) for name, each in IMPLEMENTATIONS.items()}


def obstacle(name: str, q: Operand, k: Operand, mask: BlockMask) -> str:
    """Why an implementation cannot run on operands like these, where they are; empty if it can."""
    implementation = IMPLEMENTATIONS[name]
    return implementation.cannot_run(target_of(q, k)) or implementation.cannot_take(q, k, mask)


def explain_choice(
    q: Operand,
    k: Operand,
    mask: BlockMask,
) -> Choice:
    """What `implementation=None` runs for arrays of these shapes, and why.

    Depends on shapes, on the kind of mask and on the device that the program is compiled for
    (`target_of`), never on the mask's contents, so that it is the same under jit.
    """
    logits = q.shape[0] * q.shape[2] * q.shape[1] * k.shape[1]
    obstacles = {name: obstacle(name, q, k, mask) for name in IMPLEMENTATIONS}
    missing = ", ".join(name for name, reason in obstacles.items() if reason)
    if logits <= SMALL_LOGITS:
        return Choice(
            "reference",
            f"{logits} logits in all are few: one dense product beats a loop over "
            f"{mask.q_tiles}x{mask.k_tiles} tiles",
        )
    for name in KERNELS:
        if not obstacles[name]:
            note = tpu_note(mask) if name == "pallas_tpu" else ""
            return Choice(
                name,
                f"{logits} logits would not be cheap densely, and it is the best kernel for this "
                f"device and these operands{note}; cannot run: {missing}",
            )
    return Choice(
        "xla_chunked",
        f"{logits} logits would not be cheap densely, and it runs on any device; "
        f"cannot run: {missing}",
    )


def _check(q: Array, k: Array, v: Array, mask: BlockMask) -> None:
    b, tq, heads, d = q.shape
    if k.shape[0] != b or k.shape[2:] != (heads, d) or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"q {q.shape}, k {k.shape} and v {v.shape} must agree in batch, heads and head size, "
            "k and v also in length"
        )
    if (mask.q_len, mask.k_len) != (tq, k.shape[1]):
        raise ValueError(
            f"the mask is for {mask.q_len} queries and {mask.k_len} keys, "
            f"q and k have {tq} and {k.shape[1]}"
        )
    if mask.batch not in (1, b) or mask.heads not in (1, heads):
        raise ValueError(
            f"the mask has batch {mask.batch} and {mask.heads} heads; it needs batch 1 or {b} and "
            f"heads 1 or {heads}"
        )
    if mask.strength is not None and not (
        mask.strength.shape[0] in (1, b) and mask.strength.shape[1] in (1, heads)
    ):
        raise ValueError(
            f"the mask's strength has shape {mask.strength.shape}; it needs (1 or {b}, "
            f"1 or {heads})"
        )
    if q.dtype != k.dtype or k.dtype != v.dtype or str(q.dtype) not in DTYPES:
        raise ValueError(
            f"q, k and v must share one dtype of {DTYPES}, got {q.dtype}, {k.dtype}, {v.dtype}"
        )


def block_sparse_attention(
    q: Float[Array, "b tq heads d"],
    k: Float[Array, "b tk heads d"],
    v: Float[Array, "b tk heads dv"],
    mask: BlockMask,
    *,
    scale: float | None = None,
    implementation: str | None = None,
    return_lse: bool = False,
    normalisation: str = "allowed",
) -> Attended:
    """Softmax attention in which query i sees the keys that the mask allows.

    q [b, tq, heads, d], k and v [b, tk, heads, d] in float32, bfloat16 or float16, accumulated in
    float32; scale defaults to 1 / sqrt(d). Differentiable in q, k, v and `mask.strength`. With
    `return_lse` also the log of the softmax's denominator, float32 [b, tq, heads]. A query with no
    allowed key gives exactly zero, an LSE of -inf, and zero gradient.

    normalisation (row S16): "allowed" is the softmax over the allowed keys; "multiply" the softmax
    over all keys, multiplied by the mask (and by the soft constraint's factor); its LSE is the one
    over all keys, and it costs a dense pass.

    implementation: a name of `available_implementations()`, or None for the best that can run
    (`explain_choice` tells which and why). What can run is asked of the device that the program is
    compiled for, here or elsewhere: that of the operands' mesh, of `jax.set_mesh` or of
    `jax.shard_map`, else jax's default one. Raises ValueError for a name that is unknown or cannot
    run there, and for shapes or dtypes that do not fit.
    """
    _check(q, k, v, mask)
    if normalisation not in NORMALISATIONS:
        raise ValueError(f"normalisation must be one of {NORMALISATIONS}, got {normalisation!r}")
    name = explain_choice(q, k, mask).implementation if implementation is None else implementation
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"implementation must be one of {tuple(IMPLEMENTATIONS)}, got {name!r}")
    function, reason = IMPLEMENTATIONS[name].attend, obstacle(name, q, k, mask)
    if reason:
        raise ValueError(f"implementation {name!r} cannot run: {reason}")
    scale = q.shape[-1] ** -0.5 if scale is None else scale
    out, lse = function(q, k, v, mask, scale)
    if normalisation == "multiply":
        everything = dense_pattern(mask.q_len, mask.k_len, tile_q=mask.tile_q, tile_k=mask.tile_k)
        _, total = function(q, k, v, everything, scale)
        share = jnp.exp(lse - jnp.where(total > -jnp.inf, total, 0.0))
        out, lse = (out.astype(jnp.float32) * share[..., None]).astype(out.dtype), total
    return (out, lse) if return_lse else out


def merge_attention(
    first: tuple[Float[Array, "b tq heads d"], Float[Array, "b tq heads"]],
    second: tuple[Float[Array, "b tq heads d"], Float[Array, "b tq heads"]],
) -> tuple[Float[Array, "b tq heads d"], Float[Array, "b tq heads"]]:
    """One softmax from two attentions of the same queries over disjoint keys.

    Takes and returns (out, lse). A side without keys (LSE -inf) contributes nothing; when neither
    has any, the result is zero with an LSE of -inf. Differentiable.
    """
    (out_a, lse_a), (out_b, lse_b) = first, second
    top = jax.lax.stop_gradient(jnp.maximum(lse_a, lse_b))
    top = jnp.where(top > -jnp.inf, top, 0.0)
    weight_a, weight_b = jnp.exp(lse_a - top), jnp.exp(lse_b - top)
    total = weight_a + weight_b
    some = total > 0
    total = jnp.where(some, total, 1.0)
    share_a, share_b = (weight_a / total)[..., None], (weight_b / total)[..., None]
    out = out_a.astype(jnp.float32) * share_a + out_b.astype(jnp.float32) * share_b
    lse = jnp.where(some, top + jnp.log(total), -jnp.inf)
    return out.astype(out_a.dtype), lse
