"""Attention layers against direct definitions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import from_dense, from_geometry, make_token_geometry
from tests.models.small_model import apply, init, normal
from worldstereo_jax.models.attention import (
    CrossAttention,
    EntryAttention,
    WarpedAttention,
    joint_attention,
    masked_softmax,
)
from worldstereo_jax.models.dense_attention import _in_turns, dense_attention
from worldstereo_jax.models.rope import real_rotary


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


@pytest.mark.row("S17")
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


@pytest.mark.row("S16")
@pytest.mark.parametrize("normalisation", ["allowed", "multiply"])
def test_masked_layers_normalise_over_the_allowed_keys_or_multiply_all_by_the_mask(normalisation):
    allowed = np.random.default_rng(2).random((2, 6, 6)) < 0.5
    masks = {"ours": from_dense(jnp.asarray(allowed), 32, 32)}
    q, k, v = (normal(seed, 2, 6, 2, 4) for seed in range(3))
    out = joint_attention(
        q,
        k,
        v,
        masks=masks,
        patterns=("ours",),
        pattern=None,
        key_valid=None,
        implementation=None,
        normalisation=normalisation,
    )
    weights = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / 2)
    counted = weights * allowed[:, None] if normalisation == "allowed" else weights
    weights = weights * allowed[:, None] / np.maximum(counted.sum(-1, keepdims=True), 1e-30)
    expected = np.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, 6, 8)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.fixture(scope="module")
def entry_layer():
    """A layer of two heads with everything that it takes: 6 tokens, 9 entries of 5 channels."""
    layer = EntryAttention(num_heads=2)
    x, features = normal(0, 2, 6, 24), normal(1, 2, 9, 5)
    allowed = np.random.default_rng(2).random((2, 6, 9)) < 0.4
    allowed[0, 2] = False
    mask = from_dense(jnp.asarray(allowed), 32, 32)
    rotary = [real_rotary(4 * normal(3 + i, 2, n, 3), 12) for i, n in enumerate((6, 9))]
    params = init(layer, x, features, mask, *rotary)
    return layer, params, x, features, mask, rotary, allowed


def trained(params):
    """With an output projection, as after training."""
    return {**params, "out": {"kernel": normal(6, 24, 24)}}


def turned(x, rotary):
    cos, sin = (np.asarray(a)[:, :, None] for a in rotary)
    even, odd = x[..., ::2], x[..., 1::2]
    return np.stack([even * cos - odd * sin, even * sin + odd * cos], -1).reshape(x.shape)


@pytest.mark.row("S28")
@pytest.mark.row("S14")
@pytest.mark.row("S17")
def test_entry_attention_is_softmax_over_the_allowed_entries_and_0_without_any(entry_layer):
    layer, params, x, features, mask, rotary, allowed = entry_layer
    assert "bias" not in params["out"]
    np.testing.assert_array_equal(apply(layer, params, x, features, mask, *rotary), 0)
    params = trained(params)
    out = apply(layer, params, x, features, mask, *rotary)

    def project(name, y, norm=True):
        y = np.asarray(y @ params[name]["kernel"] + params[name]["bias"][None, None])
        if norm:
            y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
        return y.reshape(2, -1, 2, 12)

    q, k = turned(project("query", x), rotary[0]), turned(project("key", features), rotary[1])
    logits = np.einsum("bthd,behd->bhte", q, k) / np.sqrt(12)
    weights = np.where(allowed[:, None], np.exp(logits), 0.0)
    weights = weights / np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    mean = np.einsum("bhte,behd->bthd", weights, project("value", features, norm=False))
    np.testing.assert_allclose(out, mean.reshape(2, 6, 24) @ params["out"]["kernel"], atol=1e-4)
    np.testing.assert_array_equal(out[0, 2], 0)


@pytest.mark.row("S15")
def test_entry_attention_learns_under_hard_and_soft_masks_also_without_any_entry(entry_layer):
    layer, params, x, features, _, rotary, _ = entry_layer
    place, other = normal(7, 2, 6, 3), normal(8, 2, 9, 3)
    query = make_token_geometry(place, radius=1.0)
    valid = jnp.asarray(np.array([[True] * 9, [False] * 9]))
    key = make_token_geometry(other, radius=1.0, valid=valid)
    params = trained(params)

    @jax.jit
    @jax.grad
    def soft(arguments):
        params, strength = arguments
        mask = from_geometry(query, key, strength=strength, tile_q=32, tile_k=32)
        return (apply(layer, params, x, features, mask, *rotary) ** 2).sum()

    gradients, by_strength = soft((params, jnp.asarray(1.0)))
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    assert float(jnp.abs(gradients["key"]["kernel"]).max()) > 1e-4
    assert float(jnp.abs(by_strength)) > 1e-5

    hard = from_geometry(query, key, tile_q=32, tile_k=32)
    out = apply(layer, params, x, features, hard, *rotary)
    np.testing.assert_array_equal(out[1], 0)
    near = apply(
        layer,
        params,
        x,
        features,
        from_geometry(query, key, strength=jnp.inf, tile_q=32, tile_k=32),
        *rotary,
    )
    # At infinite strength the same entries are seen, weighted by distance.
    np.testing.assert_array_equal((out != 0).any(-1), (near != 0).any(-1))


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
