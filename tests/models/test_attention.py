"""Attention layers against direct definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_model import apply, init, normal
from worldstereo_jax.models.attention import (
    CrossAttention,
    WarpedAttention,
    masked_softmax,
)
from worldstereo_jax.models.dense_attention import _in_turns, dense_attention


def softmax_attention(q, k, v, valid):
    logits = np.einsum("bnhd,bmhd->bhnm", q, k) / np.sqrt(q.shape[-1])
    logits = np.where(valid[:, None, None], logits, -np.inf)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("bhnm,bmhd->bnhd", weights, v).reshape(*q.shape[:2], -1)


@pytest.mark.parametrize("masked", [True, False])
def test_dense_attention_is_softmax_over_the_valid_keys(masked):
    q, k, v = normal(0, 2, 5, 3, 4), normal(1, 2, 7, 3, 4), normal(2, 2, 7, 3, 4)
    valid = np.random.default_rng(3).random((2, 7)) < 0.5 if masked else np.ones((2, 7), bool)
    out = dense_attention(q, k, v, jnp.asarray(valid) if masked else None)
    np.testing.assert_allclose(out, softmax_attention(q, k, v, valid), atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_queries_in_turns_give_the_same(masked):
    """Three turns of two queries, the last filled up."""
    q, k, v = normal(0, 2, 5, 3, 4), normal(1, 2, 7, 3, 4), normal(2, 2, 7, 3, 4)
    valid = np.random.default_rng(3).random((2, 7)) < 0.5 if masked else np.ones((2, 7), bool)
    mask = jnp.asarray(valid)[:, None, None] if masked else None
    expected = softmax_attention(q, k, v, valid)
    for logit_bytes in (4 * 2 * 3 * 7 * 2, 1, 10**9):
        out = _in_turns(q, k, v, mask, logit_bytes).reshape(expected.shape)
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_dense_attention_without_any_valid_key_has_finite_gradients():
    q, k, v = normal(0, 1, 2, 1, 4), normal(1, 1, 3, 1, 4), normal(2, 1, 3, 1, 4)
    valid = jnp.zeros((1, 3), bool)
    gradients = jax.grad(lambda *a: dense_attention(*a, valid).sum(), argnums=(0, 1, 2))(q, k, v)
    assert all(bool(jnp.isfinite(g).all()) for g in gradients)


def test_masked_softmax_rows_without_any_entry_are_zero():
    logits = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    allowed = jnp.array([[True, False, True], [False, False, False]])
    weights = masked_softmax(logits, allowed)
    expected = np.exp([1.0, 3.0]) / np.exp([1.0, 3.0]).sum()
    np.testing.assert_allclose(weights[0], [expected[0], 0, expected[1]], rtol=1e-6)
    np.testing.assert_array_equal(weights[1], 0)


@pytest.mark.row("S18")
def test_warped_attention_weighs_candidates_by_query_and_log_weight():
    layer = WarpedAttention(num_heads=2)
    x, features, log_weight = normal(0, 1, 3, 8), normal(1, 1, 3, 4, 5), normal(2, 1, 3, 4)
    log_weight = log_weight.at[0, 1, 2].set(-jnp.inf).at[0, 2].set(-jnp.inf)
    params = init(layer, x, features, log_weight)
    assert "bias" not in params["out"]
    np.testing.assert_array_equal(apply(layer, params, x, features, log_weight), 0)
    params["out"]["kernel"] = normal(3, 10, 8)
    out = apply(layer, params, x, features, log_weight)

    query = np.asarray(x @ params["query"]["kernel"] + params["query"]["bias"][None, None])
    query = query / np.sqrt((query**2).mean(-1, keepdims=True) + 1e-6)
    logits = np.einsum("bthc,btkc->bthk", query.reshape(1, 3, 2, 5), features) / np.sqrt(5)
    weights = np.exp(logits) * np.exp(np.asarray(log_weight))[:, :, None]
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    mean = np.einsum("bthk,btkc->bthc", weights, features).reshape(1, 3, 10)
    np.testing.assert_allclose(out, mean @ params["out"]["kernel"], atol=1e-5)
    np.testing.assert_array_equal(out[0, 2], 0)


def test_cross_attention_sums_separate_softmaxes_over_text_and_image():
    layer = CrossAttention(num_heads=2, image=True)
    x, text, image = normal(0, 1, 3, 8), normal(1, 1, 4, 8), normal(2, 1, 5, 8)
    params = init(layer, x, text, image)
    zero = {"image_value": jax.tree.map(jnp.zeros_like, params["image_value"])}
    both = apply(layer, params, x, text, image)
    text_only = apply(layer, params, x, text, None)
    np.testing.assert_allclose(apply(layer, params | zero, x, text, image), text_only, atol=1e-6)
    swapped = apply(layer, params, x, text, image[:, ::-1])
    np.testing.assert_allclose(swapped, both, atol=1e-5)
    assert float(jnp.abs(both - text_only).max()) > 1e-2
