"""The text encoder: its distance classes, its mask, and transformers' UMT5EncoderModel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.official_modules import (
    as_torch,
    assert_close,
    assert_round_trip,
    from_torch,
    load_theirs,
    our_params,
    random_tensors,
)
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.encoder_names import umt5_table
from worldstereo_jax.models.umt5 import (
    UMT5Config,
    UMT5Encoder,
    distance_buckets,
    zero_past_prompt,
)

CONFIG = UMT5Config(
    vocab_size=50, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=3, num_buckets=8,
    max_distance=20,
)  # fmt: skip
TOKENS = jnp.asarray(np.random.default_rng(0).integers(0, 50, (2, 30)), jnp.int32)
VALID = jnp.arange(30)[None] < jnp.array([[30], [11]])


@pytest.fixture(scope="module")
def official():
    return random_tensors(umt5_table(CONFIG))


@pytest.fixture(scope="module")
def params(official):
    return our_params(umt5_table(CONFIG), official)


@functools.partial(jax.jit, static_argnames="config")
def encode(params, tokens, valid, config=CONFIG):
    return UMT5Encoder(config).apply({"params": params}, tokens, valid)


def test_padding_changes_nothing_in_the_prompt(params):
    out = encode(params, TOKENS, VALID)
    other = encode(params, jnp.where(VALID, TOKENS, 7), VALID)
    np.testing.assert_allclose(out[1, :11], other[1, :11], atol=1e-5)
    assert np.abs(np.asarray(out - other)[1, 11:]).max() > 1e-2
    zeroed = zero_past_prompt(out, VALID)
    np.testing.assert_array_equal(zeroed[1, 11:], 0)
    np.testing.assert_array_equal(zeroed[0], out[0])


def test_names_and_values_round_trip(official, params):
    assert_round_trip(umt5_table(CONFIG), official, params)


def test_distance_classes():
    buckets = distance_buckets(200, 32, 128)
    assert buckets.min() == 0
    assert buckets.max() == 31
    # Up to 7 tokens behind each has its class; ahead the same, 16 classes on.
    np.testing.assert_array_equal(buckets[50, 50:42:-1], np.arange(8))
    np.testing.assert_array_equal(buckets[50, 51:58], 16 + np.arange(1, 8))
    assert buckets[199, 199 - 128] == 15
    assert buckets[199, 0] == 15
    assert np.all(np.diff(buckets[199, ::-1].astype(int)) >= 0)


def test_unknown_feed_forward_is_named():
    with pytest.raises(InputError, match="feed_forward_proj is 'relu'"):
        UMT5Config(feed_forward="relu")


def test_equals_transformers(official, params):
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    config = transformers.UMT5Config(
        vocab_size=50, d_model=12, d_kv=5, d_ff=20, num_layers=2, num_heads=3,
        relative_attention_num_buckets=8, relative_attention_max_distance=20,
    )  # fmt: skip
    unused = ["encoder.embed_tokens.weight"]
    model = transformers.UMT5EncoderModel(config)
    theirs = load_theirs(model, official, unused)
    ids, mask = as_torch(TOKENS).long(), as_torch(VALID).long()
    expected = from_torch(theirs(input_ids=ids, attention_mask=mask).last_hidden_state)
    out = encode(params, TOKENS, VALID)
    assert_close(out, expected)
    low = encode(params, TOKENS, VALID, UMT5Config(**{**vars(CONFIG), "dtype": "bfloat16"}))
    # In bfloat16 the unscaled logits lose much; ours may lose no more than the library.
    coarse = theirs.bfloat16()(input_ids=ids, attention_mask=mask).last_hidden_state.float()
    loss = np.square(from_torch(coarse) - expected).mean()
    assert np.square(np.asarray(low) - expected).mean() < 2 * loss
    full = transformers.UMT5EncoderModel(
        transformers.UMT5Config(vocab_size=9, d_model=4, num_layers=1)
    )
    buckets = full.encoder.block[0].layer[0].SelfAttention._relative_position_bucket
    positions = as_torch(np.arange(512))
    theirs_buckets = buckets(positions[None, :] - positions[:, None]).numpy()
    np.testing.assert_array_equal(distance_buckets(512, 32, 128), theirs_buckets)
