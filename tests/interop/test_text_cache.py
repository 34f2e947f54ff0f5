"""The text encoder runs once for a prompt, and only for prompts not seen before."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers
from tokenizers import models, processors

from tests.lowered import coarse_products
from tests.models.official_modules import our_params, random_tensors
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.encoder_names import umt5_table
from worldstereo_jax.interop.text_cache import TextCache, compiled_encoder, make_text_encoder
from worldstereo_jax.interop.tokenizer import Tokenizer
from worldstereo_jax.models.umt5 import UMT5Config


def test_the_encoder_is_made_only_when_a_prompt_is_missing(tmp_path):
    calls = []

    def make_encode():
        calls.append("made")

        def encode(prompts):
            calls.append(list(prompts))
            return jnp.array([[[float(len(text))]] for text in prompts])

        return encode

    cache = TextCache(tmp_path / "text", "umt5", "float32", make_encode)
    np.testing.assert_array_equal(cache(["ab", "abc", "ab"])[:, 0, 0], [2, 3, 2])
    np.testing.assert_array_equal(cache(["abc", " ab ", "abcd"])[:, 0, 0], [3, 2, 4])
    assert calls == ["made", ["ab", "abc"], ["abcd"]]
    again = TextCache(tmp_path / "text", "umt5", "float32", make_encode)
    np.testing.assert_array_equal(again(["abcd"])[:, 0, 0], [4])
    assert len(calls) == 3
    TextCache(tmp_path / "text", "another", "float32", make_encode)(["ab"])
    TextCache(tmp_path / "text", "umt5", "bfloat16", make_encode)(["ab"])
    assert calls[3:] == ["made", ["ab"], "made", ["ab"]]
    for file in (tmp_path / "text").iterdir():
        file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(InputError, match="truncated"):
        again(["ab"])


def test_without_an_encoder_the_only_one_that_wrote_the_prompts_is_taken(tmp_path):
    def cache(encoder, value=0.0, dtype="float32"):
        def make_encode():
            if encoder is None:
                raise InputError("no encoder")
            return lambda prompts: jnp.full((len(prompts), 1, 1), value)

        return TextCache(tmp_path, encoder, dtype, make_encode)

    cache("a", 1.0)(["x", "y"])
    cache("b", 2.0)(["y", "z"])
    np.testing.assert_array_equal(cache(None)(["x", "y"])[:, 0, 0], [1, 1])
    np.testing.assert_array_equal(cache(None)(["z", "y"])[:, 0, 0], [2, 2])
    with pytest.raises(InputError, match="states of these prompts by 2 text encoders"):
        cache(None)(["y"])
    for prompts in (["x", "z"], ["x", "w"]):
        assert cache(None).missing(prompts)
        with pytest.raises(InputError, match="no encoder"):
            cache(None)(prompts)
    with pytest.raises(InputError, match="no encoder"):
        cache(None, dtype="bfloat16")(["x"])
    # Once chosen, it stays so for all prompts of a run.
    chosen = cache(None)
    chosen(["x"])
    np.testing.assert_array_equal(chosen(["y"])[:, 0, 0], [1])


def test_states_past_the_prompt_are_zero(tmp_path):
    tokenizer = tokenizers.Tokenizer(
        models.Unigram([("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("a", -1.0)], unk_id=2)
    )
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    config = UMT5Config(vocab_size=4, d_model=6, d_kv=3, d_ff=8, num_layers=1, num_heads=2)
    params = our_params(umt5_table(config), random_tensors(umt5_table(config)))
    encode = make_text_encoder(Tokenizer(tmp_path), params, config, length=8)
    hidden = np.asarray(encode(["a", "aaaaa"]))
    assert hidden.shape == (2, 8, 6)
    np.testing.assert_array_equal((hidden == 0).all(-1).sum(1), [6, 2])


def test_an_encoder_in_float32_rounds_nothing():
    config = UMT5Config(vocab_size=4, d_model=6, d_kv=3, d_ff=8, num_layers=1, num_heads=2)
    table = umt5_table(config)
    params = jax.eval_shape(lambda: our_params(table, random_tensors(table)))
    ids, valid = (jax.ShapeDtypeStruct((1, 8), kind) for kind in (jnp.int32, jnp.bool_))
    assert not coarse_products(compiled_encoder(config), params, ids, valid)
