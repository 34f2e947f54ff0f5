"""A small image autoencoder: every frame alone, 8x8 pixels to one latent of 16 channels.

It stands in for the Wan VAE in the shipped preset and keeps its shapes ("keyframe mode": no
temporal compression). Encoder and decoder are each a linear map between 8x8 patches and codes,
which sees the eight neighbours too (a lapped transform), plus a convolutional residual network
whose last layer starts at zero: training starts from the best linear maps that are known in
closed form (`worldstereo_jax.training.patch_pca`).
"""

import dataclasses
import typing
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from einops import rearrange

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.config import config_fields
from worldstereo_jax.errors import InputError

PATCH = 8
"""Image pixels per latent pixel, along each axis."""


@dataclasses.dataclass(frozen=True)
class TinyVaeConfig:
    """Widths and depths of the networks, and the statistics that normalise the latent.

    Widths and block counts are listed from fine to coarse: 1/2, 1/4 and 1/8 of the image's
    resolution. `latents_mean` and `latents_std` hold one number per latent channel.
    """

    latent_channels: int = 16
    encoder_widths: tuple[int, int, int] = (32, 64, 128)
    encoder_blocks: tuple[int, int, int] = (1, 1, 2)
    decoder_widths: tuple[int, int, int] = (32, 64, 128)
    decoder_blocks: tuple[int, int, int] = (1, 2, 3)
    latents_mean: tuple[float, ...] = (0.0,) * 16
    latents_std: tuple[float, ...] = (1.0,) * 16

    def __post_init__(self) -> None:
        """Check the statistics' lengths."""
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.latent_channels:
                raise InputError(f"{name}: expected {self.latent_channels} numbers, one a channel")

    @classmethod
    def from_dict(cls, values: dict[str, typing.Any]) -> "TinyVaeConfig":
        """Build a config from the JSON form of `dataclasses.asdict`; unknown keys are an error."""
        return cls(**config_fields(cls, values, "config of the VAE"))


def to_patches(image: Float[Array, "b h w c"], size: int) -> Float[Array, "b ph pw p"]:
    """Gather each size x size patch into channels, rows first, then columns, then colours."""
    return rearrange(image, "b (h y) (w x) c -> b h w (y x c)", y=size, x=size)


def from_patches(patches: Float[Array, "b ph pw p"], size: int) -> Float[Array, "b h w c"]:
    """Inverse of `to_patches`."""
    return rearrange(patches, "b h w (y x c) -> b (h y) (w x) c", y=size, x=size)


class ResidualBlock(nn.Module):
    """x + scale * conv(relu(conv(x))), without normalisation, as is usual in image restoration."""

    width: int
    dtype: typing.Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Apply the block; the number of channels stays."""
        hidden = nn.Conv(self.width, (3, 3), dtype=self.dtype, name="conv_in")(nn.relu(x))
        # A tenth of the usual variance keeps the sum of many blocks near its input at the start.
        small = nn.initializers.variance_scaling(0.2, "fan_in", "truncated_normal")
        return x + nn.Conv(
            self.width, (3, 3), dtype=self.dtype, kernel_init=small, name="conv_out"
        )(nn.relu(hidden))


class ResidualEncoder(nn.Module):
    """Correction to the linear code: image [b, h, w, 3] to [b, h/8, w/8, latent_channels]."""

    widths: Sequence[int]
    blocks: Sequence[int]
    latent_channels: int
    dtype: typing.Any = jnp.float32

    @nn.compact
    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b lh lw c"]:
        """Compute the correction."""
        x = image
        for level, (width, count) in enumerate(zip(self.widths, self.blocks, strict=True)):
            # The first step sees each pixel's surroundings; the later ones only mix channels.
            size = (3, 3) if level == 0 else (1, 1)
            x = nn.Conv(width, size, dtype=self.dtype, name=f"down_{level}")(to_patches(x, 2))
            for index in range(count):
                x = ResidualBlock(width, self.dtype, name=f"block_{level}_{index}")(x)
        return nn.Conv(
            self.latent_channels,
            (3, 3),
            dtype=self.dtype,
            kernel_init=nn.initializers.zeros,
            name="out",
        )(nn.relu(x))


class ResidualDecoder(nn.Module):
    """Correction to the linear image: code [b, lh, lw, c] to [b, 8 lh, 8 lw, 3]."""

    widths: Sequence[int]
    blocks: Sequence[int]
    dtype: typing.Any = jnp.float32

    @nn.compact
    def __call__(self, code: Float[Array, "b lh lw c"]) -> Float[Array, "b h w 3"]:
        """Compute the correction."""
        x = nn.Conv(self.widths[-1], (3, 3), dtype=self.dtype, name="in")(code)
        for level in reversed(range(len(self.widths))):
            for index in range(self.blocks[level]):
                x = ResidualBlock(self.widths[level], self.dtype, name=f"block_{level}_{index}")(x)
            if level:
                x = nn.Conv(
                    4 * self.widths[level - 1], (1, 1), dtype=self.dtype, name=f"up_{level}"
                )(x)
                x = from_patches(x, 2)
        x = nn.Conv(12, (3, 3), dtype=self.dtype, kernel_init=nn.initializers.zeros, name="out")(
            nn.relu(x)
        )
        return from_patches(x, 2)


class TinyVae(nn.Module):
    """Deterministic autoencoder with normalised latents; `encode`, `decode`, and both in a row.

    The latent is the mode (nothing is sampled): per channel about zero mean and unit variance
    over natural images, by `latents_mean` and `latents_std` of the config.
    """

    config: TinyVaeConfig = TinyVaeConfig()
    dtype: typing.Any = jnp.float32

    def setup(self) -> None:
        """Build the four parts."""
        config = self.config
        self.linear_encoder = nn.Conv(config.latent_channels, (3, 3), dtype=self.dtype)
        self.linear_decoder = nn.Conv(PATCH * PATCH * 3, (3, 3), dtype=self.dtype)
        self.residual_encoder = ResidualEncoder(
            config.encoder_widths, config.encoder_blocks, config.latent_channels, self.dtype
        )
        self.residual_decoder = ResidualDecoder(
            config.decoder_widths, config.decoder_blocks, self.dtype
        )

    def encode_raw(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b lh lw c"]:
        """Encode without the final normalisation (what training sees)."""
        height, width = image.shape[1:3]
        if height % PATCH or width % PATCH:
            raise InputError(
                f"image: height and width must be multiples of 8, got {height}x{width}"
            )
        return self.linear_encoder(to_patches(image, PATCH)) + self.residual_encoder(image)

    def decode_raw(self, code: Float[Array, "b lh lw c"]) -> Float[Array, "b h w 3"]:
        """Decode a code that was not normalised (what training sees)."""
        return from_patches(self.linear_decoder(code), PATCH) + self.residual_decoder(code)

    def encode(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b lh lw c"]:
        """Encode images in [-1, 1], height and width multiples of 8, to normalised latents.

        Raises InputError for other sizes.
        """
        code = self.encode_raw(image).astype(jnp.float32)
        return (code - self._row(self.config.latents_mean)) / self._row(self.config.latents_std)

    def decode(self, latent: Float[Array, "b lh lw c"]) -> Float[Array, "b h w 3"]:
        """Decode normalised latents to images; values may leave [-1, 1] a little."""
        code = latent * self._row(self.config.latents_std) + self._row(self.config.latents_mean)
        return self.decode_raw(code).astype(jnp.float32)

    def __call__(self, image: Float[Array, "b h w 3"]) -> Float[Array, "b h w 3"]:
        """Reconstruct images: decode(encode(image))."""
        return self.decode(self.encode(image))

    @staticmethod
    def _row(values: Sequence[float]) -> Float[Array, "1 1 1 c"]:
        return jnp.asarray(values, jnp.float32)[None, None, None, :]


def encode_frames(
    vae: TinyVae, params: typing.Any, video: Float[Array, "b f h w 3"]
) -> Float[Array, "b f lh lw c"]:
    """Encode each frame of each clip by itself (images in [-1, 1]) to normalised latents."""
    batch = video.shape[0]
    latent = vae.apply(
        {"params": params}, rearrange(video, "b f h w c -> (b f) h w c"), method=TinyVae.encode
    )
    return rearrange(typing.cast(jax.Array, latent), "(b f) h w c -> b f h w c", b=batch)


def decode_frames(
    vae: TinyVae, params: typing.Any, latent: Float[Array, "b f lh lw c"]
) -> Float[Array, "b f h w 3"]:
    """Decode each latent frame by itself to images, about in [-1, 1]."""
    batch = latent.shape[0]
    video = vae.apply(
        {"params": params}, rearrange(latent, "b f h w c -> (b f) h w c"), method=TinyVae.decode
    )
    return rearrange(typing.cast(jax.Array, video), "(b f) h w c -> b f h w c", b=batch)
