"""The image encoder: what it gives the video model, and transformers' CLIPVisionModel."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
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
from worldstereo_jax.interop.encoder_names import clip_vision_table
from worldstereo_jax.models.clip_preparation import ClipPreparation
from worldstereo_jax.models.clip_vision import CLIPVision, CLIPVisionConfig, clip_pixels

CONFIG = CLIPVisionConfig(
    hidden_size=16, intermediate_size=24, num_layers=3, num_heads=2, image_size=12, patch_size=4
)
TABLE = functools.cache(clip_vision_table)


@pytest.fixture(scope="module")
def official():
    return random_tensors(TABLE(CONFIG))


@pytest.fixture(scope="module")
def params(official):
    return our_params(TABLE(CONFIG), official)


@functools.partial(jax.jit, static_argnames="config")
def encode(params, pixels, config=CONFIG):
    return CLIPVision(config).apply({"params": params}, pixels)


def test_the_video_model_sees_nothing_of_the_last_layer(params):
    pixels = normal(1, 2, 12, 12, 3)
    states = encode(params, pixels)
    assert states.penultimate.shape == (2, 10, 16)
    changed = jax.tree.map(lambda x: x, params)
    kernel = changed["layers"]["layer"]["down"]["kernel"]
    changed["layers"]["layer"]["down"]["kernel"] = kernel.at[-1].add(1.0)
    other = encode(changed, pixels)
    np.testing.assert_array_equal(other.penultimate, states.penultimate)
    assert np.abs(np.asarray(other.last - states.last)).max() > 1e-2


def test_bfloat16_stays_within_a_few_percent(params):
    pixels = normal(1, 2, 12, 12, 3)
    low = encode(params, pixels, dataclasses.replace(CONFIG, dtype="bfloat16"))
    assert_close(low.penultimate, np.asarray(encode(params, pixels).penultimate), bound=0.03)


def test_names_and_values_round_trip(official, params):
    assert_round_trip(TABLE(CONFIG), official, params)


def test_pixels_come_to_the_encoders_size():
    image = jnp.full((1, 5, 9, 3), 0.5)
    pixels = clip_pixels(image, CONFIG, pixel_range="unit")
    assert pixels.shape == (1, 12, 12, 3)
    squeezed = ClipPreparation(resize=(12, 12), crop=None, mean=(0.5,) * 3, std=(0.5,) * 3)
    config = dataclasses.replace(CONFIG, preparation=squeezed)
    found = clip_pixels(image, config, pixel_range="unit")
    np.testing.assert_allclose(found[0, 3, 4], 2 * 191 / 255 - 1, rtol=1e-5)
    with pytest.raises(InputError, match="prepared as of any size, expected the encoder's 12 x 12"):
        dataclasses.replace(CONFIG, preparation=ClipPreparation(crop=None))


def test_faults_are_named(params):
    with pytest.raises(InputError, match="8 x 12 pixels, expected 12 x 12"):
        encode(params, jnp.zeros((1, 8, 12, 3)))
    with pytest.raises(InputError, match="hidden_act is 'mish'"):
        CLIPVisionConfig(activation="mish")


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_equals_transformers(official, params, activation):
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    config = transformers.CLIPVisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2,
        image_size=12, patch_size=4, hidden_act=activation,
    )  # fmt: skip
    theirs = load_theirs(transformers.CLIPVisionModel(config), official)
    pixels = normal(2, 2, 12, 12, 3)
    expected = theirs(channels_first(pixels), output_hidden_states=True)
    ours = encode(params, pixels, CLIPVisionConfig(**{**vars(CONFIG), "activation": activation}))
    assert_close(ours.penultimate, from_torch(expected.hidden_states[-2]))
    assert_close(ours.last, from_torch(expected.last_hidden_state))
    assert_close(ours.pooled, from_torch(expected.pooler_output))
