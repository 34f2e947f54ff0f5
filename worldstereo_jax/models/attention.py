"""Attention layers: joint self-attention under a pattern, cross-attention, memory.

Layouts: tokens [b, n, c]; queries, keys and values [b, n, heads, d].
"""

import typing
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from pallas_kernels import (
    AttentionSharding,
    BlockMask,
    block_sparse_attention,
    sharded_attention,
)
from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.dense_attention import dense_attention
from worldstereo_jax.models.layers import ZERO_INIT, RMSNorm, linear
from worldstereo_jax.models.rope import Rotary, apply_rotary

DENSE = "dense"
"""The pattern that never masks: what the official model computes."""


def split_heads(x: Float[Array, "b n c"], heads: int) -> Float[Array, "b n heads d"]:
    """Cut the channels into heads."""
    return x.reshape(*x.shape[:2], heads, x.shape[-1] // heads)


def joint_attention(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b n heads d"],
    v: Float[Array, "b n heads d"],
    *,
    masks: Mapping[str, BlockMask] | None,
    patterns: tuple[str, ...],
    pattern: Int[Array, ""] | None,
    key_valid: Bool[Array, "b n"] | None,
    implementation: str | None,
    sharding: AttentionSharding | None = None,
    normalisation: str = "allowed",
) -> Float[Array, "b n c"]:
    """Self-attention over [references ; target] under the layer's pattern (row S20).

    Args:
        q: queries of both streams, references first.
        k: keys in the same order.
        v: values in the same order.
        masks: block masks by pattern name, over the same tokens; None makes every layer dense.
        patterns: names that `pattern` chooses among; a single one is taken without a switch.
        pattern: index into `patterns`, an array because scanned layers share one trace.
        key_valid: False for the tokens of references that are not there. Only the dense pattern
            reads it: `masks` are already restricted to the same tokens.
        implementation: backend of the masked attention, None for the best available.
        sharding: how attention is split over the chips of a mesh, None for one chip.
        normalisation: of masked patterns, see `block_sparse_attention` (row S16).

    Raises:
        InputError: when no mask is given for a pattern that a layer asks for.
    """

    def attend(name: str) -> Float[Array, "b n c"]:
        if masks is None or name == DENSE:
            return dense_attention(q, k, v, key_valid, sharding=sharding)
        if name not in masks:
            raise InputError(
                f"block_mask has no pattern {name!r}, expected it beside {sorted(masks)}"
            )
        out = _masked_attention(
            q,
            k,
            v,
            masks[name],
            implementation=implementation,
            sharding=sharding,
            normalisation=normalisation,
        )
        return out.reshape(*q.shape[:2], -1)

    if masks is None or len(patterns) == 1:
        return attend(patterns[0])
    return jax.lax.switch(pattern, [lambda name=name: attend(name) for name in patterns])


def _masked_attention(
    q: Float[Array, "b n heads d"],
    k: Float[Array, "b m heads d"],
    v: Float[Array, "b m heads d"],
    mask: BlockMask,
    *,
    implementation: str | None,
    sharding: AttentionSharding | None,
    normalisation: str,
) -> Float[Array, "b n heads d"]:
    """Attention under a block mask, on one chip or split over those of a mesh."""
    choices = {"implementation": implementation, "normalisation": normalisation}
    if sharding is None:
        out = block_sparse_attention(q, k, v, mask, **choices)
    else:
        out = sharded_attention(q, k, v, mask, sharding, **choices)
    return typing.cast(Array, out)


class SelfAttention(nn.Module):
    """Queries, keys and values with RMS norm over all heads at once and rotary positions.

    Attributes:
        num_heads: attention heads.
        patterns: see `joint_attention`.
        implementation: see `joint_attention`.
        dtype: compute type.
        normalisation: see `joint_attention`.
    """

    num_heads: int
    patterns: tuple[str, ...] = (DENSE,)
    implementation: str | None = None
    dtype: DTypeLike = jnp.float32
    normalisation: str = "allowed"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        rotary: Rotary,
        *,
        pattern: Int[Array, ""] | None = None,
        masks: Mapping[str, BlockMask] | None = None,
        key_valid: Bool[Array, "b n"] | None = None,
        sharding: AttentionSharding | None = None,
    ) -> Float[Array, "b n c"]:
        """Attend among the tokens of `x`; all arguments as in `joint_attention`."""
        width = x.shape[-1]
        q = RMSNorm(name="query_norm")(linear(width, dtype=self.dtype, name="query")(x))
        k = RMSNorm(name="key_norm")(linear(width, dtype=self.dtype, name="key")(x))
        v = linear(width, dtype=self.dtype, name="value")(x)
        out = joint_attention(
            apply_rotary(split_heads(q, self.num_heads), rotary),
            apply_rotary(split_heads(k, self.num_heads), rotary),
            split_heads(v, self.num_heads),
            masks=masks,
            patterns=self.patterns,
            pattern=pattern,
            key_valid=key_valid,
            implementation=self.implementation,
            sharding=sharding,
            normalisation=self.normalisation,
        )
        return linear(width, dtype=self.dtype, name="out")(out)


class CrossAttention(nn.Module):
    """Attention to text and, by a softmax of its own, to image tokens; the two are summed.

    Attributes:
        num_heads: attention heads.
        image: whether the model has keys and values for image tokens.
        dtype: compute type.
    """

    num_heads: int
    image: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        text: Float[Array, "b l c"],
        image: Float[Array, "b m c"] | None,
        *,
        sharding: AttentionSharding | None = None,
    ) -> Float[Array, "b n_or_1 c"]:
        """Attend from `x`; a result with a single token stands for the same on every token.

        One text token without image tokens leaves nothing to choose: the softmax over one key is
        1, so the result is that token's value and the queries are not computed.
        """
        width, heads = x.shape[-1], self.num_heads
        value = linear(width, dtype=self.dtype, name="value")(text)
        out_linear = linear(width, dtype=self.dtype, name="out")
        if text.shape[1] == 1 and image is None and not self.is_initializing():
            return out_linear(value)
        q = RMSNorm(name="query_norm")(linear(width, dtype=self.dtype, name="query")(x))
        q = split_heads(q, heads)
        key = RMSNorm(name="key_norm")(linear(width, dtype=self.dtype, name="key")(text))
        key, value = split_heads(key, heads), split_heads(value, heads)
        out = dense_attention(q, key, value, sharding=sharding)
        if image is not None:
            key = linear(width, dtype=self.dtype, name="image_key")(image)
            key = split_heads(RMSNorm(name="image_key_norm")(key), heads)
            value = split_heads(linear(width, dtype=self.dtype, name="image_value")(image), heads)
            out = out + dense_attention(q, key, value, sharding=sharding)
        return out_linear(out)


class WarpedAttention(nn.Module):
    """Every target token attends to the memory features warped onto it (row S18).

    Keys and values are linear in the features, so both projections are moved to the query's and
    the output's side: a head's query has the features' width, its result is a weighted mean of
    features, and the cost does not grow with width times candidates.

    The output projection starts at zero and has no bias: an untrained slot and a token without
    any candidate both contribute exactly 0.

    Attributes:
        num_heads: attention heads.
        dtype: compute type of the two projections; the softmax is float32.
    """

    num_heads: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        features: Float[Array, "b t k cw"],
        log_weight: Float[Array, "b t k"],
    ) -> Float[Array, "b t c"]:
        """Attend from each token to its own candidates.

        Args:
            x: target tokens, normalised and modulated.
            features: candidates of each token; where `log_weight` is -inf they are not read.
            log_weight: added to the logits; -inf where a candidate does not exist.
        """
        b, t, _, cw = features.shape
        heads = self.num_heads
        query = linear(heads * cw, dtype=self.dtype, name="query")(x)
        query = RMSNorm(name="query_norm")(query).reshape(b, t, heads, cw)
        exists = log_weight > -jnp.inf
        features = jnp.where(exists[..., None], features, 0).astype(jnp.float32)
        logits = jnp.einsum("bthc,btkc->bthk", query.astype(jnp.float32), features)
        logits = logits / jnp.sqrt(jnp.float32(cw)) + jnp.where(exists, log_weight, 0.0)[:, :, None]
        weights = masked_softmax(logits, exists[:, :, None, :])
        mean = jnp.einsum("bthk,btkc->bthc", weights, features)
        return linear(x.shape[-1], dtype=self.dtype, name="out", use_bias=False, init=ZERO_INIT)(
            mean.reshape(b, t, heads * cw).astype(self.dtype)
        )


class EntryAttention(nn.Module):
    """Target tokens attend to surface entries, under a mask of their own (rows S14, S17, S28).

    Entries belong to no view, so they have keys and values beside those of the references, and a
    softmax of their own: what the other attention layers compute does not change with them.

    The output projection starts at zero and has no bias: an untrained slot and a token to which no
    entry corresponds both contribute exactly 0.

    Attributes:
        num_heads: attention heads.
        implementation: backend, None for the best available.
        dtype: compute type.
        normalisation: see `joint_attention`.
    """

    num_heads: int
    implementation: str | None = None
    dtype: DTypeLike = jnp.float32
    normalisation: str = "allowed"

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b t c"],
        features: Float[Array, "b e ce"],
        mask: BlockMask,
        rotary: Rotary,
        entry_rotary: Rotary,
        *,
        sharding: AttentionSharding | None = None,
    ) -> Float[Array, "b t c"]:
        """Attend from each token to the entries that the mask allows it.

        Args:
            x: target tokens, normalised and modulated.
            features: of the entries.
            mask: t target tokens by e entries, hard or soft (row S15).
            rotary, entry_rotary: places of the tokens and of the entries, on common axes.
            sharding: how attention is split over the chips of a mesh, None for one chip.
        """
        width = x.shape[-1]
        features = features.astype(self.dtype)
        q = RMSNorm(name="query_norm")(linear(width, dtype=self.dtype, name="query")(x))
        k = RMSNorm(name="key_norm")(linear(width, dtype=self.dtype, name="key")(features))
        v = linear(width, dtype=self.dtype, name="value")(features)
        out = _masked_attention(
            apply_rotary(split_heads(q, self.num_heads), rotary),
            apply_rotary(split_heads(k, self.num_heads), entry_rotary),
            split_heads(v, self.num_heads),
            mask,
            implementation=self.implementation,
            normalisation=self.normalisation,
            sharding=sharding,
        )
        return linear(width, dtype=self.dtype, name="out", use_bias=False, init=ZERO_INIT)(
            out.reshape(x.shape)
        )


def masked_softmax(
    logits: Float[Array, "*shape k"], allowed: Bool[Array, "*shape2 k"]
) -> Float[Array, "*shape k"]:
    """Softmax over the allowed entries of the last axis; rows without any are exactly 0.

    A large negative number stands for -inf, which would make such rows, and their gradients, NaN.
    """
    allowed = jnp.broadcast_to(allowed, logits.shape)
    weights = jax.nn.softmax(jnp.where(allowed, logits, -1e30), axis=-1)
    return jnp.where(allowed, weights, 0.0)
