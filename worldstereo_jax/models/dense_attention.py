"""Attention of every query to every key, by what is fastest where the program will run.

On a CPU one head at a time; on an NVIDIA GPU cuDNN's kernel; on TPUs, and where some keys are not
there, this project's kernels, which look at no mask in tiles that need none; elsewhere XLA's
products, queries in turns.
"""

import typing

import jax
import jax.numpy as jnp

from pallas_kernels import (
    AttentionSharding,
    BlockMask,
    best_tiles,
    block_sparse_attention,
    dense_pattern,
    explain_choice,
    restrict_keys,
    sharded_attention,
    target_of,
)
from worldstereo_jax.array_types import Array, Bool, Float

LOGIT_BYTES = 1 << 30
"""What the float32 logits of dense attention may take at once; beyond it, queries go in turns."""

# So few logits are left to XLA on every device.
_SMALL_LOGITS = 1 << 22
# Head sizes that the kernels are tested and compiled for.
_HEAD_SIZES = (64, 128)
_KERNELS = ("pallas_tpu", "pallas_mosaic_gpu", "pallas_triton")
_AMPERE = (8, 0)


def dense_attention(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    key_valid: Bool[Array, "b m"] | None = None,
    *,
    sharding: AttentionSharding | None = None,
) -> Float[Array, "b n c"]:
    """Softmax attention of every query to every key, in float32 logits.

    Args:
        q: queries.
        k: keys.
        v: values.
        key_valid: keys that may be attended to, None for all. A row without any gives something
            finite that nothing should read.
        sharding: how kernels are split over the chips of a mesh. Without it a program for several
            chips leaves the attention to XLA, which splits its own products.

    Returns:
        The heads side by side, c = heads * d.
    """
    way = dense_way(q, k, key_valid, sharding)
    if way == "cudnn":
        out = _in_even_lengths(q, k, v, "cudnn")
    elif way == "products":
        out = _by_products(q, k, v, key_valid)
    else:
        mask = _dense_mask(q, k, sharding)
        if key_valid is not None:
            mask = restrict_keys(mask, key_valid)
        if sharding is None:
            out = block_sparse_attention(q, k, v, mask, implementation=way)
        else:
            out = sharded_attention(q, k, v, mask, sharding, implementation=way)
    return jnp.asarray(out).reshape(*q.shape[:2], -1)


def dense_way(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    key_valid: Bool[Array, "b m"] | None = None,
    sharding: AttentionSharding | None = None,
) -> str:
    """What `dense_attention` runs: "products", "cudnn", or the name of one of our kernels.

    By shapes and by the device that the program is compiled for, never by contents.
    """
    b, n, heads, d = q.shape
    if b * heads * n * k.shape[1] <= _SMALL_LOGITS or d not in _HEAD_SIZES:
        return "products"
    if sharding is None and jax.typeof(q).sharding.mesh.size > 1:
        return "products"
    target = target_of(q if sharding is None else sharding.mesh)
    sixteen_bits = q.dtype in (jnp.bfloat16, jnp.float16)
    if key_valid is None and sixteen_bits and (target.capability or (0, 0)) >= _AMPERE:
        return "cudnn"
    chosen = explain_choice(q, k, _dense_mask(q, k, sharding)).implementation
    return chosen if chosen in _KERNELS else "products"


def _dense_mask(q: Array, k: Array, sharding: AttentionSharding | None) -> BlockMask:
    kind = target_of(q if sharding is None else sharding.mesh).kind
    tiles = best_tiles(kind)
    return dense_pattern(q.shape[1], k.shape[1], tile_q=tiles.tile_q, tile_k=tiles.tile_k)


def _jax_attention(q: Array, k: Array, v: Array, **options: typing.Any) -> Array:
    """`jax.nn.dot_product_attention`, which promotes half types itself, whatever a user forbids."""
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(q, k, v, **options)


def _in_even_lengths(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    implementation: typing.Literal["cudnn", "xla"],
) -> Float[Array, "b n heads d"]:
    """jax's own attention, with a token that no one sees where there is an odd number of them.

    As jax calls cuDNN's backward pass, it refuses odd lengths, such as that of 257 image tokens.
    """
    (b, n), m = q.shape[:2], k.shape[1]
    if n % 2 == m % 2 == 0:
        return _jax_attention(q, k, v, implementation=implementation)
    q, k, v = (jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0))) for x in (q, k, v))
    out = _jax_attention(
        q,
        k,
        v,
        query_seq_lengths=jnp.full(b, n, jnp.int32),
        key_value_seq_lengths=jnp.full(b, m, jnp.int32),
        implementation=implementation,
    )
    return jnp.asarray(out)[:, :n]


def _by_products(q: Array, k: Array, v: Array, key_valid: Array | None) -> Array:
    """By XLA's products."""
    if key_valid is None:
        key_valid = jnp.ones(k.shape[:2], bool)
        fused = _fused_attention
    else:
        fused = _fused_masked_attention
    return jax.lax.platform_dependent(q, k, v, key_valid, cpu=_attention_by_head, default=fused)


def _fused_attention(q: Array, k: Array, v: Array, key_valid: Array) -> Array:
    del key_valid
    return _in_turns(q, k, v, None)


def _fused_masked_attention(q: Array, k: Array, v: Array, key_valid: Array) -> Array:
    return _in_turns(q, k, v, key_valid[:, None, None, :])


def _in_turns(
    q: Array, k: Array, v: Array, mask: Array | None, logit_bytes: int = LOGIT_BYTES
) -> Array:
    """All queries at once where their logits are small, else as many at a time as fit.

    At 45,240 tokens and 40 heads the logits would take 327 GB.
    """
    b, n, heads, _ = q.shape
    rows = max(1, logit_bytes // (4 * b * heads * k.shape[1]))
    if rows >= n:
        return _jax_attention(q, k, v, mask=mask)
    turns = -(-n // rows)
    rows = -(-n // turns)
    padded = jnp.pad(q, ((0, 0), (0, turns * rows - n), (0, 0), (0, 0)))
    chunks = padded.reshape(b, turns, rows, *q.shape[2:]).swapaxes(0, 1)

    @jax.checkpoint
    def attend(chunk: Array) -> Array:
        return _jax_attention(chunk, k, v, mask=mask)

    out = jax.lax.map(attend, chunks)
    return out.swapaxes(0, 1).reshape(padded.shape)[:, :n]


def _attention_by_head(q: Array, k: Array, v: Array, key_valid: Array) -> Array:
    """One head of one sample at a time, logits computed again on the way back.

    On a CPU the logits of one head stay in the cache: four times faster forward and backward
    than all heads at once (780 tokens, 6 heads of 32, batch 4).
    """
    b, n, heads, d = q.shape

    def by_head(x: Array) -> Array:
        return x.transpose(0, 2, 1, 3).reshape(b * heads, x.shape[1], d)

    @jax.checkpoint
    def one_head(operands: tuple[Array, Array, Array, Array]) -> Array:
        q, k, v, bias = operands
        logits = jnp.dot(q, k.T, preferred_element_type=jnp.float32) * d**-0.5 + bias[None]
        weights = jnp.exp(logits - jax.lax.stop_gradient(logits.max(-1, keepdims=True)))
        out = jnp.dot(weights.astype(v.dtype), v, preferred_element_type=jnp.float32)
        return (out / weights.sum(-1, keepdims=True)).astype(v.dtype)

    # A large negative number, not -inf: a row without any key must not become NaN.
    bias = jnp.repeat(jnp.where(key_valid, 0.0, -1e30), heads, axis=0)
    out = jax.lax.map(one_head, (by_head(q), by_head(k), by_head(v), bias))
    return out.reshape(b, heads, n, d).transpose(0, 2, 1, 3)
