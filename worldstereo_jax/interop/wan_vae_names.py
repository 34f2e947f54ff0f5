"""AutoencoderKLWan: names of diffusers and ours."""

import jax
import jax.numpy as jnp

from worldstereo_jax.interop.components import ComponentTable, component_table
from worldstereo_jax.interop.official_names import CONVOLUTION, Layout, Rule, layer
from worldstereo_jax.models.wan_vae import WanVAE, WanVAEConfig

CONVOLUTION_2D = Layout(
    lambda x: x.transpose(2, 3, 1, 0),
    lambda x: x.transpose(3, 2, 0, 1),
    lambda s: (s[3], s[2], s[0], s[1]),
)
"""[out, in, h, w] there, [h, w, in, out] here."""


def _pointwise(axes: int) -> Layout:
    """A convolution of kernel 1 there, a linear map here."""
    ones = (1,) * axes
    return Layout(
        lambda x: x.reshape(x.shape[:2]).T,
        lambda x: x.T.reshape(*x.T.shape, *ones),
        lambda s: (s[1], s[0], *ones),
    )


POINTWISE_2D, POINTWISE_3D = _pointwise(2), _pointwise(3)


def _column(axes: int) -> Layout:
    """A vector with trailing axes of 1 there."""
    ones = (1,) * axes
    return Layout(lambda x: x.reshape(-1), lambda x: x.reshape(-1, *ones), lambda s: (*s, *ones))


def _residual(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        Rule(f"{official}.norm1.gamma", f"{ours}/norm_1/scale", _column(3)),
        *layer(f"{official}.conv1", f"{ours}/conv_1", CONVOLUTION),
        Rule(f"{official}.norm2.gamma", f"{ours}/norm_2/scale", _column(3)),
        *layer(f"{official}.conv2", f"{ours}/conv_2", CONVOLUTION),
        *layer(f"{official}.conv_shortcut", f"{ours}/shortcut", POINTWISE_3D),
    )


def _resample(official: str, ours: str) -> tuple[Rule, ...]:
    return (
        *layer(f"{official}.resample.1", f"{ours}/resample", CONVOLUTION_2D),
        *layer(f"{official}.time_conv", f"{ours}/time", CONVOLUTION),
    )


def _half(name: str) -> tuple[Rule, ...]:
    """What encoder and decoder have in common."""
    attention = f"{name}.mid_block.attentions.0"
    return (
        *layer(f"{name}.conv_in", f"{name}/conv_in", CONVOLUTION),
        *_residual(f"{name}.mid_block.resnets.{{j}}", f"{name}/middle/residual_{{j}}"),
        Rule(f"{attention}.norm.gamma", f"{name}/middle/attention/norm/scale", _column(2)),
        *layer(f"{attention}.to_qkv", f"{name}/middle/attention/query_key_value", POINTWISE_2D),
        *layer(f"{attention}.proj", f"{name}/middle/attention/project", POINTWISE_2D),
        Rule(f"{name}.norm_out.gamma", f"{name}/norm_out/scale", _column(3)),
        *layer(f"{name}.conv_out", f"{name}/conv_out", CONVOLUTION),
    )


_UP = "decoder.up_blocks.{i}"

WAN_VAE_RULES: tuple[Rule, ...] = (
    *_half("encoder"),
    *_half("decoder"),
    *_residual("encoder.down_blocks.{i}", "encoder/down_{i}"),
    *_resample("encoder.down_blocks.{i}", "encoder/down_{i}"),
    *_residual(f"{_UP}.resnets.{{j}}", "decoder/up_{i}_residual_{j}"),
    *_resample(f"{_UP}.upsamplers.0", "decoder/up_{i}_upsample"),
    *layer("quant_conv", "quant", POINTWISE_3D),
    *layer("post_quant_conv", "post_quant", POINTWISE_3D),
)


def wan_vae_table(config: WanVAEConfig) -> ComponentTable:
    """Places of all tensors of `WanVAE(config)`."""
    size = config.spatial_stride

    def init():
        image = jnp.zeros((1, 1, size, size, config.in_channels), jnp.float32)
        return WanVAE(config).init(jax.random.key(0), image)

    return component_table(init, WAN_VAE_RULES)
