"""What the image encoders share: patch embedding, transformer layer, resizing by fixed matrices."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.attention import split_heads
from worldstereo_jax.models.dense_attention import dense_attention
from worldstereo_jax.models.layers import (
    LINEAR_INIT,
    ZERO_INIT,
    LayerNorm,
    along_channels,
    linear,
)

ACTIVATIONS = {
    "gelu": lambda x: nn.gelu(x, approximate=False),
    "quick_gelu": lambda x: x * nn.sigmoid(1.702 * x),
}
"""Activations by their names in the official configs."""


class ImagePatches(nn.Module):
    """A convolution whose stride equals its kernel; what does not fill a patch is left out.

    Attributes:
        features: output channels.
        patch: rows and columns of a patch.
        use_bias: whether there is a bias.
        dtype: compute type.
    """

    features: int
    patch: int
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ph pw o"]:
        """Embed every patch."""
        b, h, w, c = x.shape
        size = self.patch
        kernel = self.param("kernel", LINEAR_INIT, (size, size, c, self.features))
        ph, pw = h // size, w // size
        patches = x[:, : ph * size, : pw * size].reshape(b, ph, size, pw, size, c)
        patches = patches.transpose(0, 1, 3, 2, 4, 5).reshape(b, ph, pw, -1)
        y = patches.astype(self.dtype) @ kernel.reshape(-1, self.features).astype(self.dtype)
        if self.use_bias:
            bias = self.param("bias", ZERO_INIT, (self.features,))
            y = y + along_channels(bias.astype(self.dtype), y)
        return y


class VisionLayer(nn.Module):
    """Pre-norm transformer layer of a vision encoder.

    Attributes:
        num_heads: attention heads.
        hidden: hidden channels of the feed-forward layers.
        activation: a name of `ACTIVATIONS`.
        epsilon: of the layer norms.
        layer_scale: whether each branch has a factor per channel.
        dtype: compute type.
    """

    num_heads: int
    hidden: int
    activation: str
    epsilon: float
    layer_scale: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b n c"]) -> Float[Array, "b n c"]:
        """Advance the stream."""
        width = x.shape[-1]
        y = LayerNorm(self.epsilon, affine=True, name="attention_norm")(x)
        q, k, v = (
            split_heads(linear(width, dtype=self.dtype, name=name)(y), self.num_heads)
            for name in ("query", "key", "value")
        )
        y = linear(width, dtype=self.dtype, name="out")(dense_attention(q, k, v))
        x = x + self._scaled(y, "attention_scale")
        y = LayerNorm(self.epsilon, affine=True, name="ffn_norm")(x)
        y = ACTIVATIONS[self.activation](linear(self.hidden, dtype=self.dtype, name="up")(y))
        y = linear(width, dtype=self.dtype, name="down")(y)
        return x + self._scaled(y, "ffn_scale")

    def _scaled(self, y: Array, name: str) -> Array:
        if not self.layer_scale:
            return y
        scale = self.param(name, nn.initializers.ones_init(), (y.shape[-1],))
        return y * along_channels(scale.astype(y.dtype), y)


def check_activation(name: str) -> None:
    """Raise InputError for an activation that is not known."""
    if name not in ACTIVATIONS:
        raise InputError(f"hidden_act is {name!r}, expected one of {', '.join(ACTIVATIONS)}")


def resize_matrix(
    size: int, new: int, method: str, *, align_corners: bool = False
) -> Float[ndarray, "new size"]:
    """The linear map that resizes one axis, as PyTorch's `interpolate` without antialiasing.

    Args:
        size: entries before.
        new: entries after.
        method: "bilinear" or "bicubic" (a = -0.75); beyond the ends the last entry repeats.
        align_corners: whether first and last entries stay in place, or the axis's borders.
    """
    out = np.arange(new, dtype=np.float64)
    if align_corners:
        position = out * ((size - 1) / (new - 1) if new > 1 else 0.0)
    else:
        position = (out + 0.5) * (size / new) - 0.5
        if method == "bilinear":
            position = np.maximum(position, 0.0)
    base = np.floor(position).astype(int)
    matrix = np.zeros((new, size), np.float64)
    taps = (0, 1) if method == "bilinear" else (-1, 0, 1, 2)
    for tap in taps:
        distance = np.abs(position - (base + tap))
        weight = 1 - distance if method == "bilinear" else _cubic(distance)
        np.add.at(matrix, (np.arange(new), np.clip(base + tap, 0, size - 1)), weight)
    return matrix.astype(np.float32)


def _cubic(distance: np.ndarray, a: float = -0.75) -> np.ndarray:
    near = (a + 2) * distance**3 - (a + 3) * distance**2 + 1
    far = a * distance**3 - 5 * a * distance**2 + 8 * a * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


def resize_image(
    x: Float[Array, "b h w c"],
    size: tuple[int, int],
    method: str,
    *,
    align_corners: bool = False,
) -> Float[Array, "b ho wo c"]:
    """Resize rows, then columns, by `resize_matrix`; float32 inside, the type of `x` outside."""
    if x.shape[1:3] == size:
        return x
    rows = resize_matrix(x.shape[1], size[0], method, align_corners=align_corners)
    columns = resize_matrix(x.shape[2], size[1], method, align_corners=align_corners)
    y = jnp.einsum(
        "ih,jw,bhwc->bijc",
        rows,
        columns,
        x.astype(jnp.float32),
        precision=jax.lax.Precision.HIGHEST,
    )
    return y.astype(x.dtype)
