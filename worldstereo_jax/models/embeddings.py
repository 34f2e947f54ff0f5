"""Entrances and exit of the transformer: time, text, image tokens, cameras; the output head."""

import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.models.layers import (
    EMBEDDING_INIT,
    ZERO_INIT,
    LayerNorm,
    exact_linear,
    linear,
    sinusoids,
)


class TimeEmbedding(nn.Module):
    """Sinusoids, linear, SiLU, linear; and a 6-way projection of SiLU of that. All exact float32.

    Attributes:
        width: channels of the embedding.
        freq_dim: sinusoids.
    """

    width: int
    freq_dim: int

    @nn.compact
    def __call__(
        self, timestep: Float[Array, " b"]
    ) -> tuple[Float[Array, "b c"], Float[Array, "b 6 c"]]:
        """Return the embedding and its 6-way projection."""
        x = sinusoids(timestep, self.freq_dim)
        x = exact_linear(self.width, name="linear_1", init=EMBEDDING_INIT)(x)
        temb = exact_linear(self.width, name="linear_2", init=EMBEDDING_INIT)(nn.silu(x))
        six = exact_linear(6 * self.width, name="project")(nn.silu(temb))
        return temb, six.reshape(-1, 6, self.width)


class TextEmbedding(nn.Module):
    """Linear, tanh-GELU, linear."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, text: Float[Array, "b l ct"]) -> Float[Array, "b l c"]:
        """Embed every text token; zeroed positions become tokens like the others."""
        x = linear(self.width, dtype=self.dtype, name="linear_1", init=EMBEDDING_INIT)(text)
        x = nn.gelu(x, approximate=True)
        return linear(self.width, dtype=self.dtype, name="linear_2", init=EMBEDDING_INIT)(x)


class ImageEmbedding(nn.Module):
    """LayerNorm, linear, exact GELU, linear, LayerNorm; the norms with epsilon 1e-5."""

    width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b m ci"]) -> Float[Array, "b m c"]:
        """Embed every image token."""
        x = LayerNorm(1e-5, affine=True, name="norm_in")(image).astype(self.dtype)
        x = linear(image.shape[-1], dtype=self.dtype, name="linear_1")(x)
        x = linear(self.width, dtype=self.dtype, name="linear_2")(nn.gelu(x, approximate=False))
        return LayerNorm(1e-5, affine=True, name="norm_out")(x).astype(self.dtype)


class CameraEmbedding(nn.Module):
    """Linear, SiLU, linear, SiLU, zero-initialised linear, exactly in float32.

    Its input is a unit quaternion wxyz and a translation; its output is added to every token of
    the frame.
    """

    width: int

    @nn.compact
    def __call__(self, camera: Float[Array, "b f 7"]) -> Float[Array, "b f c"]:
        """Embed the camera of every frame."""
        x = exact_linear(self.width // 2, name="linear_1")(camera)
        x = exact_linear(self.width, name="linear_2")(nn.silu(x))
        return exact_linear(self.width, name="linear_3", init=ZERO_INIT)(nn.silu(x))


class Head(nn.Module):
    """Modulated norm and the linear map from a token to its latent pixels.

    Attributes:
        channels: channels of the predicted latent.
        patch: latent frames, rows and columns in a token.
        dtype: compute type of the linear map.
    """

    channels: int
    patch: tuple[int, int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b t c"], temb: Float[Array, "b c"]
    ) -> Float[Array, "b t k"]:
        """Map tokens to (frame, row, column, channel) of their patch."""
        width = x.shape[-1]
        table = self.param("modulation", nn.initializers.normal(width**-0.5), (2, width))
        table = table[None].astype(temb.dtype)
        shift, scale = table[:, :1] + temb[:, None], table[:, 1:] + temb[:, None]
        x = (LayerNorm()(x) * (1 + scale) + shift).astype(self.dtype)
        size = self.channels * self.patch[0] * self.patch[1] * self.patch[2]
        return linear(size, dtype=self.dtype, name="linear", init=ZERO_INIT)(x)
