"""A small monocular depth network, so that a photograph without depth can be used.

A convolutional encoder-decoder with skip connections; self-attention at 1/16 of the resolution
gives every place the context of the whole image, which absolute depth needs.
"""

import dataclasses
import math
import typing

import flax.linen as nn
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.config import config_fields
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.vae_tiny import from_patches, to_patches

STRIDE = 16
"""Height and width of the input must be multiples of this."""


@dataclasses.dataclass(frozen=True)
class TinyDepthConfig:
    """Widths and block counts from fine to coarse: 1/2, 1/4, 1/8 and 1/16 of the resolution.

    `attention_blocks` of `heads` heads follow the convolutions at the coarsest level. Depth comes
    out between `nearest` and `farthest` metres.
    """

    widths: tuple[int, int, int, int] = (24, 48, 96, 160)
    encoder_blocks: tuple[int, int, int, int] = (0, 1, 1, 1)
    decoder_blocks: tuple[int, int, int] = (1, 1, 1)
    attention_blocks: int = 2
    heads: int = 4
    nearest: float = 0.05
    farthest: float = 200.0

    @classmethod
    def from_dict(cls, values: dict[str, typing.Any]) -> "TinyDepthConfig":
        """Build a config from the JSON form of `dataclasses.asdict`; unknown keys are an error."""
        return cls(**config_fields(cls, values, "config of the depth network"))


class ConvBlock(nn.Module):
    """x + conv(relu(conv(norm(x)))); the norm is over channels, pixel by pixel."""

    width: int
    dtype: typing.Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Apply the block; the number of channels stays."""
        hidden = nn.LayerNorm(dtype=self.dtype, name="norm")(x)
        hidden = nn.relu(nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv_in")(hidden))
        return x + nn.Conv(
            self.width, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="conv_out"
        )(hidden)


class ContextBlock(nn.Module):
    """Pre-norm transformer block over all pixels of a coarse feature map."""

    heads: int
    dtype: typing.Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Apply attention and a two-layer perceptron; the number of channels stays."""
        b, h, w, c = x.shape
        tokens = x.reshape(b, h * w, c)
        normed = nn.LayerNorm(dtype=self.dtype, name="norm_attention")(tokens)
        tokens = tokens + nn.MultiHeadDotProductAttention(
            num_heads=self.heads, dtype=self.dtype, name="attention"
        )(normed, normed)
        normed = nn.LayerNorm(dtype=self.dtype, name="norm_mlp")(tokens)
        hidden = nn.gelu(nn.Dense(2 * c, dtype=self.dtype, name="mlp_in")(normed))
        tokens = tokens + nn.Dense(c, dtype=self.dtype, name="mlp_out")(hidden)
        return tokens.reshape(b, h, w, c)


class TinyDepth(nn.Module):
    """Image [b, h, w, 3] in [-1, 1] to camera-z depth [b, h, w] in metres, always positive."""

    config: TinyDepthConfig = TinyDepthConfig()
    dtype: typing.Any = jnp.float32

    @nn.compact
    def log_depth(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h w"]:
        """Predict the natural logarithm of depth in metres, without the bounds.

        Raises InputError when height or width is no multiple of 16.
        """
        config = self.config
        b, height, width = image.shape[:3]
        if height % STRIDE or width % STRIDE:
            raise InputError(
                f"image: height and width must be multiples of 16, got {height}x{width}"
            )
        # Where a pixel lies tells much about its depth: floors are below, ceilings above.
        y = jnp.broadcast_to(
            jnp.linspace(-1.0, 1.0, height, dtype=jnp.float32)[None, :, None, None],
            (b, height, width, 1),
        )
        x = jnp.broadcast_to(
            jnp.linspace(-1.0, 1.0, width, dtype=jnp.float32)[None, None, :, None],
            (b, height, width, 1),
        )
        features = jnp.concatenate([image, y, x], axis=-1).astype(self.dtype)
        skips = []
        for level, channels in enumerate(config.widths):
            size = (3, 3) if level == 0 else (1, 1)
            features = nn.Conv(channels, size, dtype=self.dtype, name=f"down_{level}")(
                to_patches(features, 2)
            )
            for index in range(config.encoder_blocks[level]):
                features = ConvBlock(channels, self.dtype, name=f"encode_{level}_{index}")(features)
            skips.append(features)
        for index in range(config.attention_blocks):
            features = ContextBlock(config.heads, self.dtype, name=f"context_{index}")(features)
        for level in reversed(range(3)):
            channels = config.widths[level]
            features = nn.Conv(4 * channels, (1, 1), dtype=self.dtype, name=f"up_{level}")(features)
            features = from_patches(features, 2) + skips[level]
            for index in range(config.decoder_blocks[level]):
                features = ConvBlock(channels, self.dtype, name=f"decode_{level}_{index}")(features)
        out = nn.Conv(
            4,
            (3, 3),
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            bias_init=nn.initializers.constant(math.log(3.0)),
            name="out",
        )(nn.relu(features))
        return from_patches(out, 2)[..., 0].astype(jnp.float32)

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h w"]:
        """Predict depth in metres, within the config's bounds; sizes as for `log_depth`."""
        bounds = math.log(self.config.nearest), math.log(self.config.farthest)
        return jnp.exp(jnp.clip(self.log_depth(image), *bounds))
