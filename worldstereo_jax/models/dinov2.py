"""The DINOv2 image encoder without register tokens, for retrieval features and depth."""

import dataclasses
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.models.layers import EMBEDDING_INIT, LayerNorm, along_channels
from worldstereo_jax.models.vision_layers import (
    ImagePatches,
    VisionLayer,
    check_activation,
    resize_image,
)

RETRIEVAL_EDGE, RETRIEVAL_CROP = 256, 224
"""Sides, in pixels, that the encoder's own processor scales and cuts images to."""
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """Sizes of the encoder; the defaults are those of DINOv2-base.

    Attributes:
        hidden_size: channels of a token.
        num_layers: layers.
        num_heads: attention heads.
        mlp_ratio: hidden channels of the feed-forward layers over `hidden_size`.
        image_size: rows and columns of the images of training, which the positions are of.
        patch_size: rows and columns of a patch.
        activation: a name of `vision_layers.ACTIVATIONS`.
        epsilon: of the layer norms.
        channels: colours.
        dtype: compute type; parameters and norms are float32.
    """

    hidden_size: int = 768
    num_layers: int = 12
    num_heads: int = 12
    mlp_ratio: int = 4
    image_size: int = 518
    patch_size: int = 14
    activation: str = "gelu"
    epsilon: float = 1e-6
    channels: int = 3
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_activation(self.activation)


@struct.dataclass
@typing.no_type_check
class Dinov2States:
    """What the encoder computes.

    Attributes:
        last: normed tokens after the last layer [b, 1 + n, c], the class token first.
        layers: normed tokens after the layers asked for, in their order, each [b, 1 + n, c].
        pooled: the class token of `last` [b, c]: the image's feature in retrieval.
    """

    last: jax.Array
    layers: tuple[jax.Array, ...]
    pooled: jax.Array


class Dinov2(nn.Module):
    """Images of any size to tokens: the class token, then the patches row by row.

    Attributes:
        config: sizes.
        keep: layers, counted from 1, whose normed tokens are returned.
    """

    config: Dinov2Config
    keep: tuple[int, ...] = ()

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w c"]) -> Dinov2States:
        """Encode standardised images; rows and columns that fill no patch are left out."""
        config: Dinov2Config = self.config
        dtype = jnp.dtype(config.dtype)
        patches = ImagePatches(config.hidden_size, config.patch_size, dtype=dtype, name="patches")(
            pixels
        )
        b, rows, columns, width = patches.shape
        side = config.image_size // config.patch_size
        first = self.param("class_token", EMBEDDING_INIT, (1, 1, width))
        position = self.param("position", EMBEDDING_INIT, (1, 1 + side * side, width))
        grid = resize_image(
            position[:, 1:].reshape(1, side, side, width), (rows, columns), "bicubic"
        )
        position = jnp.concatenate([position[:, :1], grid.reshape(1, -1, width)], axis=1)
        first = jnp.broadcast_to(first, (b, 1, width)).astype(dtype)
        x = jnp.concatenate([first, patches.reshape(b, -1, width)], axis=1)
        x = x + position.astype(dtype)
        norm = LayerNorm(config.epsilon, affine=True, name="norm_out")
        kept: dict[int, Array] = {}
        for index in range(config.num_layers):
            x = VisionLayer(
                config.num_heads,
                config.mlp_ratio * width,
                config.activation,
                config.epsilon,
                True,
                dtype,
                name=f"layer_{index}",
            )(x)
            if index + 1 in self.keep:
                kept[index + 1] = norm(x)
        last = norm(x)
        return Dinov2States(
            last=last, layers=tuple(kept[layer] for layer in self.keep), pooled=last[:, 0]
        )


def imagenet_pixels(image: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
    """Images in [-1, 1] standardised with ImageNet's mean and deviation of 0..1."""
    unit = image / 2 + 0.5
    mean, std = (np.asarray(x, np.float32) for x in (MEAN, STD))
    return (unit - along_channels(mean, unit)) / along_channels(std, unit)


def retrieval_features(
    params: PyTree, images: Float[Array, "v h w 3"], config: Dinov2Config
) -> Float[Array, "v c"]:
    """Pooled features of images in [-1, 1], by which retrieval tells views apart.

    As the encoder's own processor prepares them: the shorter side scaled to 256 pixels, the middle
    224 x 224 cut out. One image at a time, so that a large bank needs no more memory.
    """
    height, width = images.shape[1:3]
    scale = RETRIEVAL_EDGE / min(height, width)
    size = tuple(int(side * scale + 0.5) for side in (height, width))
    top, left = ((side - RETRIEVAL_CROP) // 2 for side in size)

    def describe(image: Array) -> Array:
        # With antialiasing, as the image library of the official processor.
        scaled = jnp.clip(jax.image.resize(image, (*size, 3), "cubic"), -1, 1)
        cut = scaled[top : top + RETRIEVAL_CROP, left : left + RETRIEVAL_CROP]
        states = Dinov2(config).apply({"params": params}, imagenet_pixels(cut[None]))
        return typing.cast(typing.Any, states).pooled[0]

    return jax.lax.map(describe, images)
