"""The CLIP vision encoder whose second-to-last hidden state conditions the image-to-video model."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.clip_preparation import ClipPreparation, prepare_clip
from worldstereo_jax.models.layers import EMBEDDING_INIT, LayerNorm
from worldstereo_jax.models.vision_layers import (
    ImagePatches,
    VisionLayer,
    check_activation,
)


@dataclasses.dataclass(frozen=True)
class CLIPVisionConfig:
    """Sizes of the encoder; the defaults are those of ViT-H/14.

    Attributes:
        hidden_size: channels of a token.
        intermediate_size: hidden channels of the feed-forward layers.
        num_layers: layers.
        num_heads: attention heads.
        image_size: rows and columns of the image.
        patch_size: rows and columns of a patch.
        activation: a name of `vision_layers.ACTIVATIONS`.
        epsilon: of the layer norms.
        channels: colours.
        dtype: compute type; parameters and norms are float32.
        preparation: how `clip_pixels` brings images to this size; None for the published way, by
            the shorter side and a cut.

    Raises:
        InputError: for an unknown activation, or a preparation that gives another size.
    """

    hidden_size: int = 1280
    intermediate_size: int = 5120
    num_layers: int = 32
    num_heads: int = 16
    image_size: int = 224
    patch_size: int = 14
    activation: str = "gelu"
    epsilon: float = 1e-5
    channels: int = 3
    dtype: str = "float32"
    preparation: ClipPreparation | None = None

    def __post_init__(self) -> None:
        check_activation(self.activation)
        given = self.preparation
        if given is not None and given.size != (self.image_size,) * 2:
            raise InputError(
                f"images are prepared as {given.size or 'of any size'}, expected the encoder's "
                f"{self.image_size} x {self.image_size} pixels"
            )

    @property
    def num_tokens(self) -> int:
        """Patches of an image and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1


@struct.dataclass
@typing.no_type_check
class VisionStates:
    """What the encoder computes.

    Attributes:
        penultimate: tokens before the last layer [b, n, c]: what the video model receives.
        last: tokens after the last layer [b, n, c].
        pooled: the class token after the last layer and a norm [b, c].
    """

    penultimate: jax.Array
    last: jax.Array
    pooled: jax.Array


class _ScannedLayer(nn.Module):
    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, carry, _):
        config = self.config
        x, _ = carry
        layer = VisionLayer(
            config.num_heads,
            config.intermediate_size,
            config.activation,
            config.epsilon,
            False,
            jnp.dtype(config.dtype),
            name="layer",
        )
        return (layer(x).astype(x.dtype), x), None


class CLIPVision(nn.Module):
    """Images to tokens: the class token, then the patches row by row.

    Attributes:
        config: sizes.
    """

    config: CLIPVisionConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w c"]) -> VisionStates:
        """Encode images prepared by `clip_pixels`.

        Raises:
            InputError: when an image is not of the config's size.
        """
        config: CLIPVisionConfig = self.config
        if pixels.shape[1:3] != (config.image_size,) * 2:
            raise InputError(
                f"image has {pixels.shape[1]} x {pixels.shape[2]} pixels, expected "
                f"{config.image_size} x {config.image_size}"
            )
        dtype = jnp.dtype(config.dtype)
        patches = ImagePatches(
            config.hidden_size, config.patch_size, use_bias=False, dtype=dtype, name="patches"
        )(pixels)
        b = pixels.shape[0]
        first = self.param("class_token", EMBEDDING_INIT, (config.hidden_size,))
        position = self.param("position", EMBEDDING_INIT, (config.num_tokens, config.hidden_size))
        first = jnp.broadcast_to(first[None, None], (b, 1, config.hidden_size))
        x = jnp.concatenate(
            [first.astype(dtype), patches.reshape(b, -1, config.hidden_size)], axis=1
        )
        x = x + position[None].astype(dtype)
        x = LayerNorm(config.epsilon, affine=True, name="norm_in")(x)
        layers = nn.scan(
            _ScannedLayer,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=config.num_layers,
        )
        (last, penultimate), _ = layers(config, name="layers")((x, x), None)
        pooled = LayerNorm(config.epsilon, affine=True, name="norm_out")(last[:, 0])
        return VisionStates(penultimate=penultimate, last=last, pooled=pooled)


def clip_pixels(
    image: Float[Array, "b h w c"], config: CLIPVisionConfig, *, pixel_range: str = "official"
) -> Float[Array, "b s s c"]:
    """Images in [-1, 1] as the encoder takes them; arguments and errors as of `prepare_clip`."""
    side = config.image_size
    preparation = config.preparation or ClipPreparation(resize=side, crop=(side, side))
    return prepare_clip(image, preparation, pixel_range=pixel_range)
