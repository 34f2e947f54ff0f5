"""Depth of one photograph, and transformers' DepthAnythingForDepthEstimation."""

import dataclasses

import jax
import numpy as np
import pytest

from tests.models.official_modules import (
    assert_close,
    assert_round_trip,
    channels_first,
    from_torch,
    load_theirs,
    normal,
    our_params,
    random_tensors,
)
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.encoder_names import depth_anything_table
from worldstereo_jax.models.depth_anything import (
    DepthAnything,
    DepthAnythingConfig,
    depth_input_size,
    metric_depth,
)
from worldstereo_jax.models.dinov2 import Dinov2Config

BACKBONE = Dinov2Config(
    hidden_size=12, num_layers=4, num_heads=2, mlp_ratio=2, image_size=16, patch_size=4
)
CONFIG = DepthAnythingConfig(
    backbone=BACKBONE,
    keep=(1, 2, 3, 4),
    neck_widths=(4, 6, 8, 10),
    fusion_width=8,
    head_width=5,
    max_depth=20.0,
)


@pytest.fixture(scope="module")
def official():
    return random_tensors(depth_anything_table(CONFIG))


@pytest.fixture(scope="module")
def params(official):
    return our_params(depth_anything_table(CONFIG), official)


def test_depth_has_the_size_of_the_image_and_lies_in_its_range(params):
    image = np.clip(normal(0, 1, 20, 30, 3), -1, 1)
    depth = jax.jit(lambda params, image: metric_depth(params, image, CONFIG))(params, image)
    assert depth.shape == (1, 20, 30)
    assert 0 < float(depth.min()) < float(depth.max()) < 20.5


def test_names_and_values_round_trip(official, params):
    assert_round_trip(depth_anything_table(CONFIG), official, params)


def test_images_keep_their_shape_in_whole_patches():
    config = DepthAnythingConfig()
    assert depth_input_size(480, 832, config) == (518, 896)
    assert depth_input_size(518, 518, config) == (518, 518)
    assert depth_input_size(1000, 600, config) == (868, 518)


def test_faults_are_named():
    with pytest.raises(InputError, match="4 layers, 3 neck_hidden_sizes"):
        DepthAnythingConfig(neck_widths=(1, 2, 3))
    with pytest.raises(InputError, match="reassemble_factors has 3"):
        DepthAnythingConfig(factors=(4.0, 3.0, 1.0, 0.5))


@pytest.mark.parametrize(("kind", "size"), [("metric", (16, 24)), ("relative", (16, 16))])
def test_equals_transformers(official, params, kind, size):
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    backbone = transformers.Dinov2Config(
        hidden_size=12, num_hidden_layers=4, num_attention_heads=2, mlp_ratio=2, image_size=16,
        patch_size=4, out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False,
    )  # fmt: skip
    config = transformers.DepthAnythingConfig(
        backbone_config=backbone, patch_size=4, reassemble_hidden_size=12,
        neck_hidden_sizes=[4, 6, 8, 10], fusion_hidden_size=8, head_hidden_size=5,
        depth_estimation_type=kind, max_depth=20 if kind == "metric" else 1,
    )  # fmt: skip
    unused = ["backbone.embeddings.mask_token"]
    for layer in ("convolution1", "convolution2"):
        for part in ("weight", "bias"):
            unused.append(f"neck.fusion_stage.layers.0.residual_layer1.{layer}.{part}")
    theirs = load_theirs(transformers.DepthAnythingForDepthEstimation(config), official, unused)
    pixels = normal(2, 1, *size, 3)
    expected = from_torch(theirs(channels_first(pixels)).predicted_depth)
    ours = CONFIG
    if kind == "relative":
        ours = dataclasses.replace(CONFIG, metric=False, max_depth=1.0)
    found = jax.jit(DepthAnything(ours).apply)({"params": params}, pixels)
    assert_close(found, expected)
