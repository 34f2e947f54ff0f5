"""The UMT5 text encoder: T5 with a relative position bias of its own in every layer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from worldstereo_jax.array_types import Array, Bool, Float, Int, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.attention import split_heads
from worldstereo_jax.models.layers import EMBEDDING_INIT, RMSNorm, linear

ACTIVATIONS = ("gated-gelu",)


@dataclasses.dataclass(frozen=True)
class UMT5Config:
    """Sizes of the encoder; the defaults are those of UMT5-XXL.

    Attributes:
        vocab_size: tokens known.
        d_model: channels of a token.
        d_kv: channels of an attention head.
        d_ff: hidden channels of the feed-forward layers.
        num_layers: layers.
        num_heads: attention heads; heads x d_kv need not be d_model.
        num_buckets: classes of distance that share a bias, half of them for each direction.
        max_distance: distance in tokens from which all share one class.
        epsilon: of the RMS norms.
        feed_forward: one of `ACTIVATIONS`.
        dtype: compute type; parameters, norms and softmax are float32.
    """

    vocab_size: int = 256384
    d_model: int = 4096
    d_kv: int = 64
    d_ff: int = 10240
    num_layers: int = 24
    num_heads: int = 64
    num_buckets: int = 32
    max_distance: int = 128
    epsilon: float = 1e-6
    feed_forward: str = "gated-gelu"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if self.feed_forward not in ACTIVATIONS:
            raise InputError(
                f"feed_forward_proj is {self.feed_forward!r}, expected one of "
                f"{', '.join(ACTIVATIONS)}"
            )


def distance_buckets(length: int, num_buckets: int, max_distance: int) -> Int[ndarray, "l l"]:
    """The class of every (query, key) distance: small ones alone, larger ones by logarithm.

    Keys behind the query take the lower half of the classes, those ahead the upper half.
    """
    positions = np.arange(length)
    offset = positions[None, :] - positions[:, None]
    half = num_buckets // 2
    exact = half // 2
    distance = np.abs(offset)
    # float32 as in the official code: the logarithm decides at the borders of classes.
    scale = np.float32(np.log(max_distance / exact))
    ratio = np.log(np.maximum(distance, 1).astype(np.float32) / np.float32(exact)) / scale
    larger = exact + (ratio * np.float32(half - exact)).astype(np.int64)
    bucket = np.where(distance < exact, distance, np.minimum(larger, half - 1))
    return (bucket + half * (offset > 0)).astype(np.int32)


class UMT5Layer(nn.Module):
    """Self-attention without scaling, with a position bias; then the gated feed-forward layer."""

    config: UMT5Config

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b l c"],
        buckets: Int[Array, "l l"],
        valid: Bool[Array, "b l"],
    ) -> tuple[Float[Array, "b l c"], None]:
        """Advance the stream; the second result is what a scan would gather, nothing."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        inner = config.num_heads * config.d_kv

        def project(features: int, name: str, y: Array) -> Array:
            return linear(features, dtype=dtype, use_bias=False, name=name)(y)

        y = RMSNorm(config.epsilon, name="attention_norm")(x)
        q, k, v = (
            split_heads(project(inner, name, y), config.num_heads)
            for name in ("query", "key", "value")
        )
        bias = self.param("position_bias", EMBEDDING_INIT, (config.num_buckets, config.num_heads))
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, preferred_element_type=jnp.float32)
        logits = logits + bias[buckets].transpose(2, 0, 1)[None].astype(jnp.float32)
        logits = jnp.where(valid[:, None, None, :], logits, jnp.finfo(jnp.float32).min)
        weights = jax.nn.softmax(logits, axis=-1).astype(dtype)
        gathered = jnp.einsum("bhqk,bkhd->bqhd", weights, v)
        x = x + project(config.d_model, "out", gathered.reshape(*x.shape[:2], inner))
        y = RMSNorm(config.epsilon, name="ffn_norm")(x)
        gate = nn.gelu(project(config.d_ff, "gate", y), approximate=True)
        x = x + project(config.d_model, "down", gate * project(config.d_ff, "up", y))
        return x, None


class UMT5Encoder(nn.Module):
    """Token numbers to hidden states.

    Attributes:
        config: sizes.
    """

    config: UMT5Config

    @nn.compact
    def __call__(
        self, tokens: Int[Array, "b l"], valid: Bool[Array, "b l"]
    ) -> Float[Array, "b l c"]:
        """Hidden states after the last norm, float32.

        Args:
            tokens: numbers of the vocabulary; those not valid may be anything known.
            valid: which tokens belong to the prompt (its end mark included); no other is
                attended to. Hidden states of the others are left as computed: see
                `zero_past_prompt`.
        """
        config: UMT5Config = self.config
        shape = (config.vocab_size, config.d_model)
        table = self.param("embedding", EMBEDDING_INIT, shape)
        x = table[tokens].astype(jnp.dtype(config.dtype))
        buckets = distance_buckets(tokens.shape[1], config.num_buckets, config.max_distance)
        layers = nn.scan(
            UMT5Layer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,  # pyright: ignore[reportArgumentType]
            length=config.num_layers,
        )
        x, _ = layers(config, name="layers")(x, jnp.asarray(buckets), valid)
        return RMSNorm(config.epsilon, name="norm_out")(x).astype(jnp.float32)


def zero_past_prompt(
    hidden: Float[Array, "b l c"], valid: Bool[Array, "b l"]
) -> Float[Array, "b l c"]:
    """What the video model receives: positions past the prompt's length set to 0."""
    return jnp.where(valid[..., None], hidden, jnp.zeros((), hidden.dtype))
