"""The causal video autoencoder of Wan 2.1: its encoder and decoder, one chunk of frames at a time.

Every convolution over time sees its own frame and earlier ones only. What it needs of earlier
chunks is handed in and out as an explicit cache, so that a clip of any length runs through
`lax.scan` (`wan_vae_clips`). A cache of None stands for the clip's start, whose single frame is
neither halved nor doubled in time.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.dense_attention import dense_attention
from worldstereo_jax.models.layers import LINEAR_INIT, ZERO_INIT, along_channels, linear

Cache = PyTree
"""The frames that the causal convolutions of a module keep for the next chunk."""

_HISTORY = 2
"""Frames that a causal convolution of three frames looks back."""


@dataclasses.dataclass(frozen=True)
class WanVAEConfig:
    """Sizes of the autoencoder.

    Attributes:
        base_dim: channels of the first stage of the encoder.
        decoder_base_dim: channels of the last stage of the decoder, None for `base_dim`.
        z_dim: channels of the latent.
        dim_mult: channels of each stage as multiples of the base.
        num_res_blocks: residual blocks per stage of the encoder; the decoder has one more.
        temporal_downsample: for each step between stages whether it halves the frames too.
        latents_mean: mean of each latent channel, taken off by `encode`.
        latents_std: their standard deviation.
        in_channels: colours in.
        out_channels: colours out.
        dtype: compute type; parameters and norms are float32. In float32 too an accelerator
            rounds the factors of products, unless `jax.default_matmul_precision` asks it not to.
    """

    base_dim: int = 96
    decoder_base_dim: int | None = None
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temporal_downsample: tuple[bool, ...] = (False, True, True)
    latents_mean: tuple[float, ...] = (0.0,) * 16
    latents_std: tuple[float, ...] = (1.0,) * 16
    in_channels: int = 3
    out_channels: int = 3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if len(self.temporal_downsample) != len(self.dim_mult) - 1:
            raise InputError(
                f"temporal_downsample has {len(self.temporal_downsample)} entries, expected one "
                f"less than dim_mult's {len(self.dim_mult)}"
            )
        for name in ("latents_mean", "latents_std"):
            if len(getattr(self, name)) != self.z_dim:
                raise InputError(
                    f"{name} has {len(getattr(self, name))} entries, expected z_dim {self.z_dim}"
                )

    @property
    def spatial_stride(self) -> int:
        """Image pixels per latent pixel along each axis."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def temporal_stride(self) -> int:
        """Frames per latent frame, after the first."""
        return 2 ** sum(self.temporal_downsample)


def _convolve(
    x: Array, kernel: Array, bias: Array, stride: tuple[int, ...], padding: list[tuple[int, int]]
) -> Array:
    """Convolution of [b, ..., c] with a kernel [..., in, out]; frames are optional."""
    axes = "DHW"[-len(stride) :]
    out = jax.lax.conv_general_dilated(
        x,
        kernel.astype(x.dtype),
        stride,
        padding,
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )
    return out + along_channels(bias.astype(x.dtype), out)


class CausalConv(nn.Module):
    """A convolution over frames, rows and columns that looks back in time only.

    Attributes:
        features: output channels.
        kernel: frames, rows and columns it covers; rows and columns keep their number.
        dtype: compute type.
    """

    features: int
    kernel: tuple[int, int, int] = (3, 3, 3)
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], cache: Float[Array, "b k h w c"] | None
    ) -> tuple[Float[Array, "b f h w o"], Float[Array, "b k h w c"]]:
        """Convolve a chunk; `cache` holds the frames before it, None for zeros."""
        look_back, rows, columns = (size - 1 for size in self.kernel)
        weights = self.param("kernel", LINEAR_INIT, (*self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", ZERO_INIT, (self.features,))
        x = x.astype(self.dtype)
        before = cache
        if before is None:
            before = jnp.zeros((x.shape[0], look_back, *x.shape[2:]), x.dtype)
        joined = jnp.concatenate([before, x], axis=1)
        # All but the last of the kernel's frames would meet zeros: two thirds of the work.
        only_last = cache is None and x.shape[1] == 1
        seen, taps = (x, weights[look_back:]) if only_last else (joined, weights)
        edges = [(0, 0), (rows // 2, rows // 2), (columns // 2, columns // 2)]
        out = _convolve(seen, taps, bias, (1, 1, 1), edges)
        return out, joined[:, joined.shape[1] - look_back :]


class FrameConv(nn.Module):
    """A 3x3 convolution of every frame by itself.

    Attributes:
        features: output channels.
        halve: take every second row and column, with a border on the far side only.
        dtype: compute type.
    """

    features: int
    halve: bool = False
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f ho wo o"]:
        """Convolve every frame."""
        weights = self.param("kernel", LINEAR_INIT, (3, 3, x.shape[-1], self.features))
        bias = self.param("bias", ZERO_INIT, (self.features,))
        frames = x.astype(self.dtype).reshape(-1, *x.shape[2:])
        stride, border = ((2, 2), (0, 1)) if self.halve else ((1, 1), (1, 1))
        out = _convolve(frames, weights, bias, stride, [border, border])
        return out.reshape(*x.shape[:2], *out.shape[1:])


class UnitNorm(nn.Module):
    """x / |x| * sqrt(channels) * scale over the channels, in float32."""

    @nn.compact
    def __call__(self, x: Float[Array, "*batch c"]) -> Float[Array, "*batch c"]:
        """Normalise `x`; the result has its type."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],))
        y = x.astype(jnp.float32)
        length = jnp.sqrt(jnp.square(y).sum(-1, keepdims=True))
        y = y / jnp.maximum(length, 1e-12) * np.sqrt(x.shape[-1]).astype(np.float32)
        return (y * along_channels(scale, y)).astype(x.dtype)


class ResidualBlock(nn.Module):
    """Norm, SiLU, convolution, twice, beside an identity or a linear map.

    Attributes:
        features: output channels.
        dtype: compute type.
    """

    features: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], cache: Cache | None
    ) -> tuple[Float[Array, "b f h w o"], Cache]:
        """Advance a chunk and the cache of both convolutions."""
        first, second = (None, None) if cache is None else cache
        skip = x
        if x.shape[-1] != self.features:
            skip = linear(self.features, dtype=self.dtype, name="shortcut")(x)
        y = nn.silu(UnitNorm(name="norm_1")(x))
        y, first = CausalConv(self.features, dtype=self.dtype, name="conv_1")(y, first)
        y = nn.silu(UnitNorm(name="norm_2")(y))
        y, second = CausalConv(self.features, dtype=self.dtype, name="conv_2")(y, second)
        return y + skip, (first, second)


class FrameAttention(nn.Module):
    """Self-attention with one head among the pixels of each frame."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """Add what every pixel gathers from its frame."""
        b, f, h, w, c = x.shape
        y = UnitNorm(name="norm")(x).reshape(b * f, h * w, c)
        y = linear(3 * c, dtype=self.dtype, name="query_key_value")(y)
        q, k, v = (part[:, :, None] for part in jnp.split(y, 3, axis=-1))
        y = linear(c, dtype=self.dtype, name="project")(dense_attention(q, k, v))
        return x + y.reshape(x.shape)


class Middle(nn.Module):
    """Residual block, attention, residual block."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], cache: Cache | None
    ) -> tuple[Float[Array, "b f h w c"], Cache]:
        """Advance a chunk."""
        first, second = (None, None) if cache is None else cache
        x, first = ResidualBlock(x.shape[-1], self.dtype, name="residual_0")(x, first)
        x = FrameAttention(self.dtype, name="attention")(x)
        x, second = ResidualBlock(x.shape[-1], self.dtype, name="residual_1")(x, second)
        return x, (first, second)


class EverySecondFrame(nn.Module):
    """A convolution of three frames with stride two, without padding."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b g h w c"]:
        """Map 2g + 1 frames to g."""
        c = x.shape[-1]
        kernel = self.param("kernel", LINEAR_INIT, (3, 1, 1, c, c))
        bias = self.param("bias", ZERO_INIT, (c,))
        return _convolve(x, kernel, bias, (2, 1, 1), [(0, 0)] * 3)


class Downsample(nn.Module):
    """Halve rows and columns, and the frames of all chunks but the first when `temporal`."""

    temporal: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], cache: Cache | None
    ) -> tuple[Float[Array, "b g ho wo c"], Cache]:
        """Advance a chunk; the cache is the last frame of the chunk before, at the new size."""
        channels = x.shape[-1]
        x = FrameConv(channels, halve=True, dtype=self.dtype, name="resample")(x)
        if not self.temporal:
            return x, ()
        halve = EverySecondFrame(self.dtype, name="time")
        if cache is None:
            if self.is_initializing():
                halve(jnp.tile(x, (1, 3, 1, 1, 1)))
            return x, x[:, -1:]
        return halve(jnp.concatenate([cache, x], axis=1)), x[:, -1:]


class Upsample(nn.Module):
    """Double rows and columns and halve channels; double frames after the first if `temporal`."""

    temporal: bool
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], cache: Cache | None
    ) -> tuple[Float[Array, "b g ho wo o"], Cache]:
        """Advance a chunk; the clip's first frame leaves no trace in the cache."""
        b, f, h, w, c = x.shape
        if self.temporal:
            convolve = CausalConv(2 * c, (3, 1, 1), self.dtype, name="time")
            if cache is None:
                if self.is_initializing():
                    convolve(x, None)
                cache = jnp.zeros((b, _HISTORY, h, w, c), jnp.dtype(self.dtype))
            else:
                y, cache = convolve(x, cache)
                x = y.reshape(b, f, h, w, 2, c).transpose(0, 1, 4, 2, 3, 5)
                x = x.reshape(b, 2 * f, h, w, c)
        x = jnp.repeat(jnp.repeat(x, 2, axis=2), 2, axis=3)
        x = FrameConv(c // 2, dtype=self.dtype, name="resample")(x)
        return x, (cache if self.temporal else ())


class _Chain:
    """Runs modules one after the other, handing each its cache and gathering the new ones."""

    def __init__(self, cache: Cache | None) -> None:
        self._old = None if cache is None else iter(cache)
        self.cache: list[Cache] = []

    def __call__(self, module: nn.Module, x: Array) -> Array:
        given = None if self._old is None else next(self._old)
        x, new = typing.cast(typing.Any, module)(x, given)
        self.cache.append(new)
        return x


class WanEncoder(nn.Module):
    """Frames to the moments (mean, log variance) of their latent, before the quantising map."""

    config: WanVAEConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "b f h w c"], cache: Cache | None
    ) -> tuple[Float[Array, "b g lh lw z2"], Cache]:
        """Encode a chunk: the first frame alone (cache None), then `temporal_stride` frames."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        widths = [config.base_dim * multiple for multiple in config.dim_mult]
        chain = _Chain(cache)
        x = chain(CausalConv(config.base_dim, dtype=dtype, name="conv_in"), x)
        index = 0
        for stage, width in enumerate(widths):
            for _ in range(config.num_res_blocks):
                x = chain(ResidualBlock(width, dtype, name=f"down_{index}"), x)
                index += 1
            if stage < len(widths) - 1:
                halve_time = config.temporal_downsample[stage]
                x = chain(Downsample(halve_time, dtype, name=f"down_{index}"), x)
                index += 1
        x = chain(Middle(dtype, name="middle"), x)
        x = nn.silu(UnitNorm(name="norm_out")(x))
        x = chain(CausalConv(2 * config.z_dim, dtype=dtype, name="conv_out"), x)
        return x, tuple(chain.cache)


class WanDecoder(nn.Module):
    """Latent frames, after the map that undoes the quantising one, to images."""

    config: WanVAEConfig

    @nn.compact
    def __call__(
        self, z: Float[Array, "b f lh lw z"], cache: Cache | None
    ) -> tuple[Float[Array, "b g h w c"], Cache]:
        """Decode a chunk: the first latent frame alone (cache None), then any number."""
        config, dtype = self.config, jnp.dtype(self.config.dtype)
        base = config.decoder_base_dim or config.base_dim
        widths = [base * multiple for multiple in reversed(config.dim_mult)]
        chain = _Chain(cache)
        x = chain(CausalConv(widths[0], dtype=dtype, name="conv_in"), z)
        x = chain(Middle(dtype, name="middle"), x)
        for stage, width in enumerate(widths):
            for block in range(config.num_res_blocks + 1):
                name = f"up_{stage}_residual_{block}"
                x = chain(ResidualBlock(width, dtype, name=name), x)
            if stage < len(widths) - 1:
                double_time = config.temporal_downsample[-1 - stage]
                x = chain(Upsample(double_time, dtype, name=f"up_{stage}_upsample"), x)
        x = nn.silu(UnitNorm(name="norm_out")(x))
        x = chain(CausalConv(config.out_channels, dtype=dtype, name="conv_out"), x)
        return x, tuple(chain.cache)


class WanVAE(nn.Module):
    """Encoder and decoder with the linear maps around the latent.

    Attributes:
        config: sizes.
    """

    config: WanVAEConfig

    def setup(self) -> None:
        """Make the parts, which have their parameters."""
        dtype = jnp.dtype(self.config.dtype)
        self.encoder = WanEncoder(self.config)
        self.decoder = WanDecoder(self.config)
        self.quant = linear(2 * self.config.z_dim, dtype=dtype)
        self.post_quant = linear(self.config.z_dim, dtype=dtype)

    def __call__(self, x: Float[Array, "b f h w c"]) -> Float[Array, "b f h w c"]:
        """Encode and decode a first chunk of one frame; reaches every parameter."""
        moments, _ = self.encode_chunk(x, None)
        return self.decode_chunk(jnp.split(moments, 2, axis=-1)[0], None)[0]

    def encode_chunk(
        self, x: Float[Array, "b f h w c"], cache: Cache | None
    ) -> tuple[Float[Array, "b g lh lw z2"], Cache]:
        """Moments (mean | log variance) of a chunk, float32, and the cache for the next."""
        moments, cache = self.encoder(x, cache)
        return self.quant(moments).astype(jnp.float32), cache

    def decode_chunk(
        self, z: Float[Array, "b f lh lw z"], cache: Cache | None
    ) -> tuple[Float[Array, "b g h w c"], Cache]:
        """Images of a chunk of latents, float32 and not clipped, and the cache for the next."""
        x, cache = self.decoder(self.post_quant(z), cache)
        return x.astype(jnp.float32), cache
