"""Depth Anything V2: monocular depth from DINOv2 features through a DPT head.

The metric form gives metres, so that one photograph becomes a point cloud.
"""

import dataclasses
import typing

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.typing import DTypeLike

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.dinov2 import Dinov2, Dinov2Config, imagenet_pixels
from worldstereo_jax.models.layers import LINEAR_INIT, ZERO_INIT, along_channels, linear
from worldstereo_jax.models.vision_layers import resize_image


@dataclasses.dataclass(frozen=True)
class DepthAnythingConfig:
    """Sizes of the network; the defaults are those of the base model.

    Attributes:
        backbone: the image encoder.
        keep: its layers, counted from 1, that the head reads.
        neck_widths: channels of each of them in the head.
        factors: size of each over the grid of patches: 4, 2, 1 or 0.5.
        fusion_width: channels of the fused maps.
        head_width: channels before the last map.
        metric: metres below `max_depth`, or relative inverse depth without unit.
        max_depth: greatest depth, metres, of a metric model; a plain factor otherwise.
    """

    backbone: Dinov2Config = dataclasses.field(default_factory=Dinov2Config)
    keep: tuple[int, ...] = (3, 6, 9, 12)
    neck_widths: tuple[int, ...] = (96, 192, 384, 768)
    factors: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)
    fusion_width: int = 128
    head_width: int = 32
    metric: bool = True
    max_depth: float = 20.0

    def __post_init__(self) -> None:
        if not len(self.keep) == len(self.neck_widths) == len(self.factors):
            raise InputError(
                f"{len(self.keep)} layers, {len(self.neck_widths)} neck_hidden_sizes and "
                f"{len(self.factors)} reassemble_factors are given, expected as many of each"
            )
        for factor in self.factors:
            if factor not in (4, 2, 1, 0.5):
                raise InputError(f"reassemble_factors has {factor}, expected 4, 2, 1 or 0.5")


class Conv(nn.Module):
    """A convolution of images with a border of zeros.

    Attributes:
        features: output channels.
        kernel: rows and columns, odd.
        stride: step of rows and columns.
        use_bias: whether there is a bias.
        dtype: compute type.
    """

    features: int
    kernel: int = 3
    stride: int = 1
    use_bias: bool = True
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ho wo o"]:
        """Convolve."""
        shape = (self.kernel, self.kernel, x.shape[-1], self.features)
        kernel = self.param("kernel", LINEAR_INIT, shape).astype(self.dtype)
        side = self.kernel // 2
        y = jax.lax.conv_general_dilated(
            x.astype(self.dtype),
            kernel,
            (self.stride,) * 2,
            [(side, side), (side, side)],
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            bias = self.param("bias", ZERO_INIT, (self.features,))
            y = y + along_channels(bias.astype(self.dtype), y)
        return y


class Enlarge(nn.Module):
    """A transposed convolution whose stride equals its kernel: a block of pixels of each pixel."""

    factor: int
    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b ho wo c"]:
        """Enlarge rows and columns by the factor."""
        b, h, w, c = x.shape
        size = self.factor
        kernel = self.param("kernel", LINEAR_INIT, (c, size, size, c)).astype(self.dtype)
        bias = self.param("bias", ZERO_INIT, (c,))
        y = jnp.einsum("bhwc,cijo->bhiwjo", x.astype(self.dtype), kernel)
        y = y.reshape(b, h * size, w * size, c)
        return y + along_channels(bias.astype(self.dtype), y)


class ResidualUnit(nn.Module):
    """ReLU, convolution, twice, beside the identity."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """Refine a map."""
        y = Conv(x.shape[-1], dtype=self.dtype, name="conv_1")(nn.relu(x))
        return x + Conv(x.shape[-1], dtype=self.dtype, name="conv_2")(nn.relu(y))


class Fusion(nn.Module):
    """Add a finer map to a coarser one and enlarge the sum."""

    dtype: DTypeLike = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: Float[Array, "b h w c"],
        finer: Float[Array, "b hf wf c"] | None,
        size: tuple[int, int],
    ) -> Float[Array, "b ho wo c"]:
        """Fuse; the coarsest map has nothing finer to add."""
        if finer is not None:
            finer = resize_image(finer, (x.shape[1], x.shape[2]), "bilinear")
            x = x + ResidualUnit(self.dtype, name="residual_1")(finer)
        x = ResidualUnit(self.dtype, name="residual_2")(x)
        x = resize_image(x, size, "bilinear", align_corners=True)
        return linear(x.shape[-1], dtype=self.dtype, name="project")(x)


class DepthAnything(nn.Module):
    """Standardised images to depth.

    Attributes:
        config: sizes.
    """

    config: DepthAnythingConfig

    @nn.compact
    def __call__(self, pixels: Float[Array, "b h w 3"]) -> Float[Array, "b ho wo"]:
        """Depth (metres) or relative inverse depth, float32, of the pixels that fill patches."""
        config: DepthAnythingConfig = self.config
        dtype = jnp.dtype(config.backbone.dtype)
        patch = config.backbone.patch_size
        rows, columns = pixels.shape[1] // patch, pixels.shape[2] // patch
        states = Dinov2(config.backbone, config.keep, name="backbone")(pixels)
        maps = []
        for index, tokens in enumerate(states.layers):
            x = tokens[:, 1:].reshape(tokens.shape[0], rows, columns, -1)
            x = self._reassemble(x, index, dtype)
            maps.append(
                Conv(config.fusion_width, use_bias=False, dtype=dtype, name=f"neck_{index}")(x)
            )
        fused = maps[-1]
        for index in range(len(maps)):
            finer = maps[-1 - index] if index else None
            target = maps[-2 - index] if index + 1 < len(maps) else None
            doubled = (2 * fused.shape[1], 2 * fused.shape[2])
            size = doubled if target is None else (target.shape[1], target.shape[2])
            fused = Fusion(dtype, name=f"fusion_{index}")(fused, finer, size)
        x = Conv(config.fusion_width // 2, dtype=dtype, name="head_1")(fused)
        x = resize_image(x, (rows * patch, columns * patch), "bilinear", align_corners=True)
        x = nn.relu(Conv(config.head_width, dtype=dtype, name="head_2")(x))
        x = linear(1, dtype=dtype, name="head_3")(x)[..., 0].astype(jnp.float32)
        return (nn.sigmoid(x) if config.metric else nn.relu(x)) * config.max_depth

    def _reassemble(self, x: Array, index: int, dtype: DTypeLike) -> Array:
        width, factor = self.config.neck_widths[index], self.config.factors[index]
        x = linear(width, dtype=dtype, name=f"reassemble_{index}")(x)
        if factor > 1:
            return Enlarge(int(factor), dtype, name=f"resize_{index}")(x)
        if factor < 1:
            return Conv(width, stride=int(1 / factor), dtype=dtype, name=f"resize_{index}")(x)
        return x


def depth_input_size(height: int, width: int, config: DepthAnythingConfig) -> tuple[int, int]:
    """The size an image is resized to: its shorter side near the training size, whole patches.

    As the official processor: both sides scale by the factor that changes the image least.
    """
    target, patch = config.backbone.image_size, config.backbone.patch_size
    factor = min(target / height, target / width, key=lambda scale: abs(1 - scale))

    def whole(side: int) -> int:
        return max(patch, round(side * factor / patch) * patch)

    return whole(height), whole(width)


def metric_depth(
    params: PyTree, image: Float[Array, "b h w 3"], config: DepthAnythingConfig
) -> Float[Array, "b h w"]:
    """Depth of images in [-1, 1] at their own size, metres for a metric model."""
    height, width = image.shape[1:3]
    size = depth_input_size(height, width, config)
    # With antialiasing, as the image library of the official processor.
    resized = jax.image.resize(image, (image.shape[0], *size, 3), "cubic")
    depth = DepthAnything(config).apply({"params": params}, imagenet_pixels(resized))
    depth = typing.cast(Array, depth)
    return resize_image(depth[..., None], (height, width), "bicubic")[..., 0]
