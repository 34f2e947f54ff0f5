"""A small network that decides, pixel by pixel, how far to show the memory's own pixels.

A latent cannot hold the finest texture; the stereo memory's warp has it, but is wrong where the
geometry is, and smooth or old where it was filled. From the decoded frame, the warp, and the warp
as the autoencoder shows it (so that a difference between frames is not mistaken for a difference
between codes) the network corrects a given mixing weight and adds what neither picture has.
"""

import dataclasses
import typing

import flax.linen as nn
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.vae_tiny import ResidualBlock, config_fields, from_patches, to_patches

STRIDE = 8
"""Height and width of the input must be multiples of this."""

# Mixing weights are kept this far from 0 and 1 before their logit is taken.
_MARGIN = 0.02
# Largest colour that is added, in [-1, 1] image units.
_ADDED = 0.5


@dataclasses.dataclass(frozen=True)
class DetailMixerConfig:
    """Channels and residual blocks at 1/2, 1/4 and 1/8 of the resolution, down and up again."""

    widths: tuple[int, int, int] = (24, 48, 64)
    blocks: tuple[int, int, int] = (1, 1, 2)

    @classmethod
    def from_dict(cls, values: dict[str, typing.Any]) -> "DetailMixerConfig":
        """Build a config from the JSON form of `dataclasses.asdict`; unknown keys are an error."""
        return cls(**config_fields(cls, values))


class DetailMixer(nn.Module):
    """Frames of a clip, mixed from what was generated and what the memory shows (row S21).

    Its last layer starts at zero: untrained, it mixes by the weight it is given and adds nothing.
    """

    config: DetailMixerConfig = DetailMixerConfig()
    dtype: typing.Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        video: Float[Array, "f h w 3"],
        warp: Float[Array, "f h w 3"],
        coded_warp: Float[Array, "f h w 3"],
        hole: Float[Array, "f h w"],
        weight: Float[Array, "f h w"],
    ) -> Float[Array, "f h w 3"]:
        """Mix frame by frame.

        Args:
            video: decoded frames in [-1, 1].
            warp: the stereo memory's warp into the same cameras, holes filled.
            coded_warp: the warp after encoding and decoding.
            hole: 1 where no stored view falls, 0 where one does.
            weight: share of the warp, in [0, 1], that the network corrects.

        Returns:
            Frames, not clipped.

        Raises:
            InputError: when height or width is no multiple of 8.
        """
        config, dtype = self.config, self.dtype
        height, width = hole.shape[1:]
        if height % STRIDE or width % STRIDE:
            raise InputError(f"video: height and width must be multiples of 8: {height}x{width}")
        x = jnp.concatenate(
            [
                video,
                warp,
                warp - coded_warp,
                video - coded_warp,
                hole[..., None],
                weight[..., None],
            ],
            axis=-1,
        ).astype(dtype)
        skips = []
        for level, (channels, count) in enumerate(zip(config.widths, config.blocks, strict=True)):
            size = (3, 3) if level == 0 else (1, 1)
            x = nn.Conv(channels, size, dtype=dtype, name=f"down_{level}")(to_patches(x, 2))
            for index in range(count):
                x = ResidualBlock(channels, dtype, name=f"encode_{level}_{index}")(x)
            skips.append(x)
        for level in (1, 0):
            channels = config.widths[level]
            x = nn.Conv(4 * channels, (1, 1), dtype=dtype, name=f"up_{level}")(x)
            x = from_patches(x, 2) + skips[level]
            for index in range(config.blocks[level]):
                x = ResidualBlock(channels, dtype, name=f"decode_{level}_{index}")(x)
        out = nn.Conv(16, (3, 3), dtype=dtype, kernel_init=nn.initializers.zeros, name="out")(
            nn.relu(x)
        )
        out = from_patches(out, 2).astype(jnp.float32)
        given = weight.clip(_MARGIN, 1.0 - _MARGIN)
        mixed = nn.sigmoid(jnp.log(given) - jnp.log1p(-given) + out[..., 0])
        return video + mixed[..., None] * (warp - video) + _ADDED * jnp.tanh(out[..., 1:])
