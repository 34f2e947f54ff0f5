"""UMT5, CLIP vision, DINOv2 and Depth Anything: names of transformers and ours."""

import jax
import jax.numpy as jnp

from worldstereo_jax.interop.components import ComponentTable, component_table
from worldstereo_jax.interop.official_names import MATRIX, SAME, Layout, Rule, layer, norm
from worldstereo_jax.interop.wan_vae_names import CONVOLUTION_2D, POINTWISE_2D
from worldstereo_jax.models.clip_vision import CLIPVision, CLIPVisionConfig
from worldstereo_jax.models.depth_anything import DepthAnything, DepthAnythingConfig
from worldstereo_jax.models.dinov2 import Dinov2, Dinov2Config
from worldstereo_jax.models.umt5 import UMT5Config, UMT5Encoder

TRANSPOSED_2D = Layout(
    lambda x: x.transpose(0, 2, 3, 1),
    lambda x: x.transpose(0, 3, 1, 2),
    lambda s: (s[0], s[3], s[1], s[2]),
)
"""A transposed convolution: [in, out, h, w] there, [in, h, w, out] here."""


_T5 = "encoder.block.{i}.layer"

UMT5_RULES: tuple[Rule, ...] = (
    Rule("shared.weight", "embedding", SAME),
    Rule("encoder.final_layer_norm.weight", "norm_out/scale", SAME),
    Rule(f"{_T5}.0.layer_norm.weight", "layers/attention_norm/scale", SAME),
    Rule(f"{_T5}.0.SelfAttention.q.weight", "layers/query/kernel", MATRIX),
    Rule(f"{_T5}.0.SelfAttention.k.weight", "layers/key/kernel", MATRIX),
    Rule(f"{_T5}.0.SelfAttention.v.weight", "layers/value/kernel", MATRIX),
    Rule(f"{_T5}.0.SelfAttention.o.weight", "layers/out/kernel", MATRIX),
    Rule(f"{_T5}.0.SelfAttention.relative_attention_bias.weight", "layers/position_bias", SAME),
    Rule(f"{_T5}.1.layer_norm.weight", "layers/ffn_norm/scale", SAME),
    Rule(f"{_T5}.1.DenseReluDense.wi_0.weight", "layers/gate/kernel", MATRIX),
    Rule(f"{_T5}.1.DenseReluDense.wi_1.weight", "layers/up/kernel", MATRIX),
    Rule(f"{_T5}.1.DenseReluDense.wo.weight", "layers/down/kernel", MATRIX),
)

_CLIP = "vision_model"
_CLIP_LAYER = f"{_CLIP}.encoder.layers.{{i}}"

CLIP_VISION_RULES: tuple[Rule, ...] = (
    Rule(f"{_CLIP}.embeddings.class_embedding", "class_token", SAME),
    Rule(f"{_CLIP}.embeddings.patch_embedding.weight", "patches/kernel", CONVOLUTION_2D),
    Rule(f"{_CLIP}.embeddings.position_embedding.weight", "position", SAME),
    # Spelt so in the library.
    *norm(f"{_CLIP}.pre_layrnorm", "norm_in"),
    *norm(f"{_CLIP}.post_layernorm", "norm_out"),
    *norm(f"{_CLIP_LAYER}.layer_norm1", "layers/layer/attention_norm"),
    *layer(f"{_CLIP_LAYER}.self_attn.q_proj", "layers/layer/query"),
    *layer(f"{_CLIP_LAYER}.self_attn.k_proj", "layers/layer/key"),
    *layer(f"{_CLIP_LAYER}.self_attn.v_proj", "layers/layer/value"),
    *layer(f"{_CLIP_LAYER}.self_attn.out_proj", "layers/layer/out"),
    *norm(f"{_CLIP_LAYER}.layer_norm2", "layers/layer/ffn_norm"),
    *layer(f"{_CLIP_LAYER}.mlp.fc1", "layers/layer/up"),
    *layer(f"{_CLIP_LAYER}.mlp.fc2", "layers/layer/down"),
)


def _dinov2(official: str, ours: str) -> tuple[Rule, ...]:
    there, here = f"{official}encoder.layer.{{i}}", f"{ours}layer_{{i}}"
    return (
        Rule(f"{official}embeddings.cls_token", f"{ours}class_token", SAME),
        Rule(f"{official}embeddings.position_embeddings", f"{ours}position", SAME),
        *layer(
            f"{official}embeddings.patch_embeddings.projection", f"{ours}patches", CONVOLUTION_2D
        ),
        *norm(f"{official}layernorm", f"{ours}norm_out"),
        *norm(f"{there}.norm1", f"{here}/attention_norm"),
        *layer(f"{there}.attention.attention.query", f"{here}/query"),
        *layer(f"{there}.attention.attention.key", f"{here}/key"),
        *layer(f"{there}.attention.attention.value", f"{here}/value"),
        *layer(f"{there}.attention.output.dense", f"{here}/out"),
        Rule(f"{there}.layer_scale1.lambda1", f"{here}/attention_scale", SAME),
        *norm(f"{there}.norm2", f"{here}/ffn_norm"),
        *layer(f"{there}.mlp.fc1", f"{here}/up"),
        *layer(f"{there}.mlp.fc2", f"{here}/down"),
        Rule(f"{there}.layer_scale2.lambda1", f"{here}/ffn_scale", SAME),
    )


DINOV2_RULES: tuple[Rule, ...] = _dinov2("", "")

_FUSION = "neck.fusion_stage.layers.{i}"
_REASSEMBLE = "neck.reassemble_stage.layers.{i}"

DEPTH_ANYTHING_RULES: tuple[Rule, ...] = (
    *_dinov2("backbone.", "backbone/"),
    *layer(f"{_REASSEMBLE}.projection", "reassemble_{i}", POINTWISE_2D),
    Rule("neck.convs.{i}.weight", "neck_{i}/kernel", CONVOLUTION_2D),
    *layer(f"{_FUSION}.projection", "fusion_{i}/project", POINTWISE_2D),
    *layer(f"{_FUSION}.residual_layer{{j}}.convolution1", "fusion_{i}/residual_{j}/conv_1",
           CONVOLUTION_2D),
    *layer(f"{_FUSION}.residual_layer{{j}}.convolution2", "fusion_{i}/residual_{j}/conv_2",
           CONVOLUTION_2D),
    *layer("head.conv1", "head_1", CONVOLUTION_2D),
    *layer("head.conv2", "head_2", CONVOLUTION_2D),
    *layer("head.conv3", "head_3", POINTWISE_2D),
)  # fmt: skip


def _resize_rules(config: DepthAnythingConfig) -> tuple[Rule, ...]:
    """Enlarging and shrinking maps have one official name but different layouts."""
    rules: list[Rule] = []
    for index, factor in enumerate(config.factors):
        layout = TRANSPOSED_2D if factor > 1 else CONVOLUTION_2D
        official = f"neck.reassemble_stage.layers.{index}.resize"
        rules += layer(official, f"resize_{index}", layout)
    return tuple(rules)


def umt5_table(config: UMT5Config) -> ComponentTable:
    """Places of all tensors of `UMT5Encoder(config)`."""

    def init():
        tokens = jnp.zeros((1, 2), jnp.int32)
        return UMT5Encoder(config).init(jax.random.key(0), tokens, jnp.ones((1, 2), bool))

    return component_table(init, UMT5_RULES)


def clip_vision_table(config: CLIPVisionConfig) -> ComponentTable:
    """Places of all tensors of `CLIPVision(config)`."""
    shape = (1, config.image_size, config.image_size, config.channels)
    return component_table(
        lambda: CLIPVision(config).init(jax.random.key(0), jnp.zeros(shape, jnp.float32)),
        CLIP_VISION_RULES,
    )


def dinov2_table(config: Dinov2Config) -> ComponentTable:
    """Places of all tensors of `Dinov2(config)`."""
    shape = (1, config.patch_size, config.patch_size, config.channels)
    return component_table(
        lambda: Dinov2(config).init(jax.random.key(0), jnp.zeros(shape, jnp.float32)), DINOV2_RULES
    )


def depth_anything_table(config: DepthAnythingConfig) -> ComponentTable:
    """Places of all tensors of `DepthAnything(config)`."""
    side = 2 * config.backbone.patch_size
    return component_table(
        lambda: DepthAnything(config).init(
            jax.random.key(0), jnp.zeros((1, side, side, 3), jnp.float32)
        ),
        (*DEPTH_ANYTHING_RULES, *_resize_rules(config)),
    )
