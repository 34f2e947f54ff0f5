"""The control branch: renders of the global-geometric memory and camera rays guide the backbone."""

import typing

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct
from jax.typing import DTypeLike

from pallas_kernels import AttentionSharding
from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.config import ControlConfig
from worldstereo_jax.models.attention import SelfAttention
from worldstereo_jax.models.layers import (
    FeedForward,
    GroupNorm,
    LayerNorm,
    PatchEmbedding,
    add_gated,
    exact_linear,
    linear,
)
from worldstereo_jax.models.rope import Rotary

LATENT_STRIDE = 8
"""Image pixels per latent pixel, along each axis."""


@struct.dataclass
@typing.no_type_check
class ControlInput:
    """What the control branch sees.

    Attributes:
        render_latent: latent of the global memory's render [b, f, lh, lw, 16].
        render_mask: holes of the render, 1 = hole [b, F, h, w, 1]; F = f for keyframes, 4 (f - 1)
            + 1 for clips encoded as video.
        plucker: rays of the target cameras [b, F, h, w, 6].
        enabled: factor on the branch's residuals [b], bool or float; None for 1. A sample with 0
            is computed as if it had no control input.
    """

    render_latent: jax.Array
    render_mask: jax.Array
    plucker: jax.Array
    enabled: jax.Array | None = None


class MaskEmbedding(nn.Module):
    """Render mask and rays at pixel resolution, as tokens of the control branch.

    Convolution with kernel = stride = (mask_downsample, 8, 8), group norm of 8 channels each,
    SiLU, then a patch embedding. With mask_downsample above 1, `mask_downsample - 1` empty frames
    stand in front, so that frame 0 makes a latent frame of its own.

    Attributes:
        features: channels of a token.
        mid_channels: channels between the two convolutions, a multiple of 8.
        mask_downsample: frames per latent frame.
        patch: latent frames, rows and columns in a token.
        dtype: compute type.
    """

    features: int
    mid_channels: int
    mask_downsample: int
    patch: tuple[int, int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b F h w c"]) -> Float[Array, "b f th tw features"]:
        """Embed [mask | rays]; h and w are multiples of 16, F of mask_downsample, plus one."""
        stride = (self.mask_downsample, LATENT_STRIDE, LATENT_STRIDE)
        pad = self.mask_downsample - 1
        x = jnp.pad(x, ((0, 0), (pad, 0), (0, 0), (0, 0), (0, 0)))
        x = PatchEmbedding(self.mid_channels, stride, self.dtype, name="project")(x)
        x = nn.silu(GroupNorm(self.mid_channels // 8, name="norm")(x))
        return PatchEmbedding(self.features, self.patch, self.dtype, name="patch_embedding")(x)


class AdaptiveNorm(nn.Module):
    """LayerNorm with shift and scale from the time embedding, and the gate that goes with them."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, x: Float[Array, "b n c"], temb: Float[Array, "b ct"]
    ) -> tuple[Float[Array, "b n c"], Float[Array, "b 1 c"]]:
        """Return the modulated norm of `x`, in `dtype`, and the gate, float32."""
        modulation = exact_linear(3 * x.shape[-1], name="modulation")(nn.silu(temb))
        shift, scale, gate = jnp.split(modulation[:, None], 3, axis=-1)
        x = LayerNorm(1e-5, affine=True, name="norm")(x)
        return (x * (1 + scale) + shift).astype(self.dtype), gate


class ControlBlock(nn.Module):
    """A block of the control branch: gated self-attention, then gated feed-forward.

    Attributes:
        num_heads: attention heads.
        ffn_width: hidden channels of the feed-forward layers.
        dtype: compute type.
    """

    num_heads: int
    ffn_width: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b n c"],
        temb: Float[Array, "b ct"],
        rotary: Rotary,
        sharding: AttentionSharding | None = None,
    ) -> Float[Array, "b n c"]:
        """Apply the block to tokens `x` at the time embedding `temb` (float32)."""
        y, gate = AdaptiveNorm(self.dtype, name="attention_norm")(x, temb)
        y = SelfAttention(self.num_heads, dtype=self.dtype, name="attention")(
            y, rotary, sharding=sharding
        )
        x = add_gated(x, gate, y)
        y, gate = AdaptiveNorm(self.dtype, name="ffn_norm")(x, temb)
        y = FeedForward(self.ffn_width, dtype=self.dtype, name="ffn")(y)
        return add_gated(x, gate, y)


class ControlEmbedding(nn.Module):
    """The branch's entrance: latents and pixels to tokens of its own width.

    Attributes:
        config: sizes of the branch.
        patch: latent frames, rows and columns in a token.
        dtype: compute type.
    """

    config: ControlConfig
    patch: tuple[int, int, int]
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self, latent: Float[Array, "b f lh lw c"], control: ControlInput
    ) -> Float[Array, "b t cc"]:
        """Embed the clip's noisy latent and mask (the first 20 channels) with the control input."""
        config = self.config
        own = config.latent_channels - control.render_latent.shape[-1]
        x = jnp.concatenate([latent[..., :own], control.render_latent], axis=-1)
        x = PatchEmbedding(config.embed_width, self.patch, self.dtype, name="patch_embedding")(x)
        pixels = jnp.concatenate([control.render_mask, control.plucker], axis=-1)
        x = x + MaskEmbedding(
            config.embed_width,
            config.mid_channels,
            config.mask_downsample,
            self.patch,
            self.dtype,
            name="mask_embedding",
        )(pixels)
        x = x.reshape(x.shape[0], -1, x.shape[-1])
        if config.embed_width != config.width:
            x = linear(config.width, dtype=self.dtype, name="project")(x)
        return x
