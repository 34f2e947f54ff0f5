"""Small layers that the models share: linear, norms, patch embedding, feed-forward, sinusoids.

Parameters are float32; matrix products run in `dtype`, norms and modulation in float32.
"""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.typing import PrecisionLike
from jax.typing import DTypeLike

from worldstereo_jax.array_types import Array, Float

LINEAR_INIT = nn.initializers.xavier_uniform()
EMBEDDING_INIT = nn.initializers.normal(0.02)
ZERO_INIT = nn.initializers.zeros_init()


ADAPTER, DOWN, UP = "adapter", "a", "b"
"""Names of a linear layer's low-rank adapter and of its two factors among the parameters."""


class LowRank(nn.Module):
    """The product of two thin matrices, (x A) B: an adapter of a linear layer.

    Its parameters are never drawn with the model's: `training.lora` makes them. A module of its
    own, so that rules for the layer's weight (its type in `quantised.py`) are none for the factors.

    Attributes:
        dtype: compute type.
        precision: of its products, None for the one in force.
    """

    dtype: DTypeLike = jnp.float32
    precision: PrecisionLike = None

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch o"]:
        """Apply A [c, r], then B [r, o]."""
        down, up = (self.get_variable("params", name).astype(self.dtype) for name in (DOWN, UP))
        thin = jnp.matmul(x.astype(self.dtype), down, precision=self.precision)
        return jnp.matmul(thin, up, precision=self.precision)


# The fields of nn.Dense have types that cannot be checked while running.
@typing.no_type_check
class Linear(nn.Dense):
    """A linear map, and where its parameters hold an adapter, the adapter's output added to it.

    Hu et al. 2021, "LoRA". Without one this is `nn.Dense` and nothing else.
    """

    @nn.compact
    def __call__(self, inputs: Float[Array, "*batch c"]) -> Float[Array, "*batch o"]:
        """Map the last axis."""
        y = super().__call__(inputs)
        if self.has_variable("params", ADAPTER):
            y = y + LowRank(y.dtype, self.precision, name=ADAPTER)(inputs)
        return y


def linear(
    features: int,
    *,
    dtype: DTypeLike,
    name: str | None = None,
    use_bias: bool = True,
    init: Callable = LINEAR_INIT,
    precision: PrecisionLike = None,
) -> Linear:
    """A linear layer with float32 parameters that computes in `dtype`.

    Accelerators round the factors of float32 products to fewer bits, unless `precision` or the
    one in force (`jax.default_matmul_precision`) says otherwise.
    """
    return Linear(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=init,
        param_dtype=jnp.float32,
        precision=precision,
        name=name,
    )


def exact_linear(features: int, *, name: str, init: Callable = LINEAR_INIT) -> Linear:
    """A linear layer in float32 whose products no device rounds: for vectors, not for tokens."""
    return linear(
        features, dtype=jnp.float32, name=name, init=init, precision=jax.lax.Precision.HIGHEST
    )


class LayerNorm(nn.Module):
    """Normalisation over the channels in float32, optionally followed by scale and bias.

    Attributes:
        epsilon: added to the variance.
        affine: whether `scale` and `bias` parameters exist.
    """

    epsilon: float = 1e-6
    affine: bool = False

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalise `x`; the result is float32."""
        x = x.astype(jnp.float32)
        centred = x - x.mean(-1, keepdims=True)
        variance = jnp.square(centred).mean(-1, keepdims=True)
        x = centred * jax.lax.rsqrt(variance + self.epsilon)
        if self.affine:
            scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
            bias = self.param("bias", ZERO_INIT, (x.shape[-1],))
            scale, bias = (along_channels(part.astype(x.dtype), x) for part in (scale, bias))
            x = x * scale + bias
        return x


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + epsilon) * scale over the last axis, in float32.

    On queries and keys it runs over the channels of all heads at once, before they are split.
    """

    epsilon: float = 1e-6

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalise `x`; the result has the type of `x`."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.square(y).mean(-1, keepdims=True) + self.epsilon)
        return (y * along_channels(scale.astype(y.dtype), y)).astype(x.dtype)


class GroupNorm(nn.Module):
    """Normalisation over groups of channels and all positions of a video, in float32.

    Attributes:
        num_groups: groups that the channels fall into, neighbours together.
        epsilon: added to the variance.
    """

    num_groups: int
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """Normalise `x` per sample; the result is float32."""
        b, f, h, w, c = x.shape
        scale = self.param("scale", nn.initializers.ones_init(), (c,))
        bias = self.param("bias", ZERO_INIT, (c,))
        grouped = x.astype(jnp.float32).reshape(b, f * h * w, self.num_groups, c // self.num_groups)
        centred = grouped - grouped.mean((1, 3), keepdims=True)
        variance = jnp.square(centred).mean((1, 3), keepdims=True)
        y = (centred * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        scale, bias = (along_channels(part.astype(y.dtype), y) for part in (scale, bias))
        return y * scale + bias


def along_channels(vector: Float[Array, " c"] | Float[np.ndarray, " c"], like: Array) -> Array:
    """Reshape a vector so that it broadcasts along the last axis of `like`."""
    return jnp.asarray(vector).reshape((1,) * (like.ndim - 1) + vector.shape)


def add_gated(
    x: Float[Array, "b n c"], gate: Float[Array, "b #n c"], update: Float[Array, "b n c"]
) -> Float[Array, "b n c"]:
    """`x` and the gated update of it, added in the gate's type (float32), in the type of `x`."""
    return (x.astype(gate.dtype) + gate * update.astype(gate.dtype)).astype(x.dtype)


class PatchEmbedding(nn.Module):
    """A 3D convolution whose stride equals its kernel: one linear map per patch of a video.

    Attributes:
        features: output channels.
        patch: frames, rows and columns of a patch.
        dtype: compute type.
        kernel_init: initialiser of the linear map.
    """

    features: int
    patch: tuple[int, int, int]
    dtype: DTypeLike = jnp.float32
    kernel_init: Callable = LINEAR_INIT

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b pf ph pw o"]:
        """Embed every patch; frames, rows and columns are multiples of the patch."""
        size = int(np.prod(self.patch)) * x.shape[-1]
        shape = (*self.patch, x.shape[-1], self.features)
        # Initialised as the linear map that it is: fan-in is the whole patch.
        kernel = self.param(
            "kernel", lambda key: self.kernel_init(key, (size, self.features)).reshape(shape)
        )
        bias = self.param("bias", ZERO_INIT, (self.features,))
        patches = patchify(x, self.patch).astype(self.dtype)
        y = patches @ kernel.reshape(size, self.features).astype(self.dtype)
        return y + along_channels(bias.astype(self.dtype), y)


def patchify(
    x: Float[Array, "b f h w c"], patch: tuple[int, int, int]
) -> Float[Array, "b pf ph pw k"]:
    """Cut a video into patches, each flattened as (frame, row, column, channel)."""
    b, f, h, w, c = x.shape
    pf, ph, pw = patch
    x = x.reshape(b, f // pf, pf, h // ph, ph, w // pw, pw, c)
    x = x.transpose(0, 1, 3, 5, 2, 4, 6, 7)
    return x.reshape(b, f // pf, h // ph, w // pw, pf * ph * pw * c)


def unpatchify(
    x: Float[Array, "b pf ph pw k"], patch: tuple[int, int, int]
) -> Float[Array, "b f h w c"]:
    """The inverse of `patchify`."""
    b, f, h, w, k = x.shape
    pf, ph, pw = patch
    c = k // (pf * ph * pw)
    x = x.reshape(b, f, h, w, pf, ph, pw, c).transpose(0, 1, 4, 2, 5, 3, 6, 7)
    return x.reshape(b, f * pf, h * ph, w * pw, c)


class FeedForward(nn.Module):
    """Linear, tanh-GELU, linear."""

    hidden: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Map every token by itself."""
        y = linear(self.hidden, dtype=self.dtype, name="up")(x)
        return linear(x.shape[-1], dtype=self.dtype, name="down")(nn.gelu(y, approximate=True))


def sinusoids(timestep: Float[Array, " b"], size: int) -> Float[Array, "b size"]:
    """[cos | sin] of `timestep` at frequencies exp(-ln(10000) i / half), i = 0 .. half - 1."""
    half = size // 2
    frequencies = jnp.asarray(np.exp(-np.log(10000.0) * np.arange(half) / half), jnp.float32)
    angles = timestep.astype(jnp.float32)[:, None] * frequencies[None, :]
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
