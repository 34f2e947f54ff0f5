"""The retrieval encoder: its positions at any size, and transformers' Dinov2Model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.official_modules import (
    as_torch,
    assert_close,
    assert_round_trip,
    channels_first,
    from_torch,
    load_theirs,
    normal,
    our_params,
    random_tensors,
)
from worldstereo_jax.interop.encoder_names import dinov2_table
from worldstereo_jax.models.dinov2 import Dinov2, Dinov2Config, imagenet_pixels
from worldstereo_jax.models.vision_layers import resize_matrix

CONFIG = Dinov2Config(
    hidden_size=16, num_layers=2, num_heads=2, mlp_ratio=2, image_size=12, patch_size=4
)


@pytest.fixture(scope="module")
def official():
    return random_tensors(dinov2_table(CONFIG))


@pytest.fixture(scope="module")
def params(official):
    return our_params(dinov2_table(CONFIG), official)


@jax.jit
def encode(params, pixels):
    return Dinov2(CONFIG, keep=(2, 1)).apply({"params": params}, pixels)


def test_layers_come_in_the_order_asked_for(params):
    states = encode(params, normal(0, 1, 12, 12, 3))
    np.testing.assert_array_equal(states.layers[0], states.last)
    assert np.abs(np.asarray(states.layers[1] - states.last)).max() > 1e-2
    np.testing.assert_array_equal(states.pooled, states.last[:, 0])


def test_bfloat16_stays_within_a_few_percent(params):
    pixels = normal(0, 1, 12, 12, 3)
    low = Dinov2(dataclasses.replace(CONFIG, dtype="bfloat16"))
    found = jax.jit(low.apply)({"params": params}, pixels)
    assert_close(found.last, np.asarray(encode(params, pixels).last), bound=0.03)


def test_names_and_values_round_trip(official, params):
    assert_round_trip(dinov2_table(CONFIG), official, params)


def test_pixels_are_standardised():
    pixels = imagenet_pixels(jnp.zeros((1, 1, 1, 3)))
    expected = [(0.5 - 0.485) / 0.229, (0.5 - 0.456) / 0.224, (0.5 - 0.406) / 0.225]
    np.testing.assert_allclose(pixels[0, 0, 0], expected, rtol=1e-5)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
def test_resizing_keeps_constants_and_ends(method):
    for size, new in ((5, 9), (7, 3), (4, 4), (1, 3)):
        for align in (False, True):
            matrix = resize_matrix(size, new, method, align_corners=align)
            np.testing.assert_allclose(matrix.sum(1), 1, atol=1e-6)
        if new > 1:
            assert matrix[0, 0] == matrix[-1, -1] == 1, "the ends stay in place"
    np.testing.assert_array_equal(resize_matrix(6, 6, method), np.eye(6))


@pytest.mark.parametrize("size", [(12, 12), (8, 20), (13, 18)])
def test_equals_transformers(official, params, size):
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=12,
        patch_size=4,
    )  # fmt: skip
    unused = ["embeddings.mask_token"]
    theirs = load_theirs(transformers.Dinov2Model(config), official, unused)
    pixels = normal(2, 2, *size, 3)
    expected = theirs(channels_first(pixels), output_hidden_states=True)
    ours = encode(params, pixels)
    assert_close(ours.last, from_torch(expected.last_hidden_state))
    assert_close(ours.pooled, from_torch(expected.pooler_output))
    middle = from_torch(theirs.layernorm(expected.hidden_states[1]))
    assert_close(ours.layers[1], middle)


@pytest.mark.parametrize("method", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align_corners", [False, True])
def test_resizing_equals_torch(method, align_corners):
    torch = pytest.importorskip("torch", reason="the parity extra is not installed")
    x = np.random.default_rng(0).normal(size=(1, 1, 5, 7)).astype(np.float32)
    for rows, columns in ((9, 4), (3, 7), (1, 16)):
        expected = torch.nn.functional.interpolate(
            as_torch(x), size=(rows, columns), mode=method, align_corners=align_corners
        )
        a = resize_matrix(5, rows, method, align_corners=align_corners)
        b = resize_matrix(7, columns, method, align_corners=align_corners)
        np.testing.assert_allclose(a @ x[0, 0] @ b.T, from_torch(expected)[0, 0], atol=1e-5)
