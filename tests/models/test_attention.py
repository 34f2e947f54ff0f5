"""Attention layers against direct definitions."""

import functools

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
    out = jax.jit(dense_attention)(q, k, v, jnp.asarray(valid) if masked else None)
    np.testing.assert_allclose(out, softmax_attention(q, k, v, valid), atol=1e-5)


@pytest.mark.parametrize("masked", [True, False])
def test_queries_in_turns_give_the_same(masked):
    """Three turns of two queries, the last filled up."""
    q, k, v = normal(0, 2, 5, 3, 4), normal(1, 2, 7, 3, 4), normal(2, 2, 7, 3, 4)
    valid = np.random.default_rng(3).random((2, 7)) < 0.5 if masked else np.ones((2, 7), bool)
    mask = jnp.asarray(valid[:, None, None]) if masked else None
    expected = softmax_attention(q, k, v, valid)
    for logit_bytes in (4 * 2 * 3 * 7 * 2, 1, 10**9):
        out = jax.jit(_in_turns, static_argnums=4)(q, k, v, mask, logit_bytes)
        out = np.asarray(out).reshape(expected.shape)
        np.testing.assert_allclose(out, expected, atol=1e-5)


def test_dense_attention_without_any_valid_key_has_finite_gradients():
    q, k, v = normal(0, 1, 2, 1, 4), normal(1, 1, 3, 1, 4), normal(2, 1, 3, 1, 4)
    valid = jnp.zeros((1, 3), bool)
    slopes = jax.grad(lambda *a: dense_attention(*a, valid).sum(), argnums=(0, 1, 2))
    assert all(np.isfinite(g).all() for g in jax.jit(slopes)(q, k, v))


@pytest.mark.row("S17")
def test_masked_softmax_rows_without_any_entry_are_zero():
    logits = jnp.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    allowed = jnp.array([[True, False, True], [False, False, False]])
    weights = np.asarray(jax.jit(masked_softmax)(logits, allowed))
    expected = np.exp([1.0, 3.0]) / np.exp([1.0, 3.0]).sum()
    np.testing.assert_allclose(weights[0], [expected[0], 0, expected[1]], rtol=1e-6)
    np.testing.assert_array_equal(weights[1], 0)


@pytest.mark.row("S18")
def test_warped_attention_weighs_candidates_by_query_and_log_weight():
    layer = WarpedAttention(num_heads=2)
    x, features, log_weight = normal(0, 1, 3, 8), normal(1, 1, 3, 4, 5), normal(2, 1, 3, 4)
    x, features, log_weight = (np.array(y) for y in (x, features, log_weight))
    log_weight[0, 1, 2] = log_weight[0, 2] = -np.inf
    params = init(layer, x, features, log_weight)
    assert "bias" not in params["out"]
    np.testing.assert_array_equal(apply(layer, params, x, features, log_weight), 0)
    params = jax.tree.map(np.asarray, params)
    params["out"]["kernel"] = np.asarray(normal(3, 10, 8))
    out = np.asarray(apply(layer, params, x, features, log_weight))

    query = x @ params["query"]["kernel"] + params["query"]["bias"]
    query = query / np.sqrt((query**2).mean(-1, keepdims=True) + 1e-6)
    logits = np.einsum("bthc,btkc->bthk", query.reshape(1, 3, 2, 5), features) / np.sqrt(5)
    weights = np.exp(logits) * np.exp(log_weight)[:, :, None]
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
    attend = functools.partial(
        joint_attention,
        patterns=("ours",),
        pattern=None,
        key_valid=None,
        implementation=None,
        normalisation=normalisation,
    )
    out = jax.jit(attend)(q, k, v, masks=masks)
    weights = np.exp(np.einsum("bnhd,bmhd->bhnm", q, k) / 2)
    counted = weights * allowed[:, None] if normalisation == "allowed" else weights
    weights = weights * allowed[:, None] / np.maximum(counted.sum(-1, keepdims=True), 1e-30)
    expected = np.einsum("bhnm,bmhd->bnhd", weights, v).reshape(2, 6, 8)
    np.testing.assert_allclose(out, expected, atol=1e-5)


@pytest.fixture(scope="module")
def entry_layer():
    """A layer of two heads with everything that it takes: 6 tokens, 9 entries of 5 channels."""
    layer = EntryAttention(num_heads=2)
    x, features = np.asarray(normal(0, 2, 6, 24)), np.asarray(normal(1, 2, 9, 5))
    allowed = np.random.default_rng(2).random((2, 6, 9)) < 0.4
    allowed[0, 2] = False
    mask = from_dense(jnp.asarray(allowed), 32, 32)
    places = [4 * np.asarray(normal(3 + i, 2, n, 3)) for i, n in enumerate((6, 9))]
    rotary = jax.jit(lambda places: [real_rotary(place, 12) for place in places])(places)
    params = jax.tree.map(np.asarray, init(layer, x, features, mask, *rotary))
    return layer, params, x, features, mask, rotary, allowed


def trained(params):
    """With an output projection, as after training."""
    return {**params, "out": {"kernel": np.asarray(normal(6, 24, 24))}}


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
    out = np.asarray(apply(layer, params, x, features, mask, *rotary))

    def project(name, y, norm=True):
        y = y @ params[name]["kernel"] + params[name]["bias"]
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
    valid = jnp.asarray(np.array([[True] * 9, [False] * 9]))
    params = trained(params)

    def output(params, strength):
        query = make_token_geometry(place, radius=1.0)
        key = make_token_geometry(other, radius=1.0, valid=valid)
        mask = from_geometry(query, key, strength=strength, tile_q=32, tile_k=32)
        return apply(layer, params, x, features, mask, *rotary)

    @jax.jit
    @functools.partial(jax.grad, argnums=(0, 1), has_aux=True)
    def soft(params, strength):
        out = output(params, strength)
        return (out**2).sum(), out

    (gradients, by_strength), _ = soft(params, 1.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))
    assert float(np.abs(gradients["key"]["kernel"]).max()) > 1e-4
    assert abs(float(by_strength)) > 1e-5

    out = np.asarray(jax.jit(output)(params, None))
    np.testing.assert_array_equal(out[1], 0)
    _, near = soft(params, np.inf)
    near = np.asarray(near)
    # At infinite strength the same entries are seen, weighted by distance.
    np.testing.assert_array_equal((out != 0).any(-1), (near != 0).any(-1))


def test_cross_attention_sums_separate_softmaxes_over_text_and_image():
    layer = CrossAttention(num_heads=2, image=True)
    x, text, image = normal(0, 1, 3, 8), normal(1, 1, 4, 8), normal(2, 1, 5, 8)
    params = init(layer, x, text, image)
    zero = {"image_value": jax.tree.map(np.zeros_like, params["image_value"])}
    both = np.asarray(apply(layer, params, x, text, image))
    text_only = np.asarray(apply(layer, params, x, text, None))
    np.testing.assert_allclose(apply(layer, params | zero, x, text, image), text_only, atol=1e-6)
    swapped = apply(layer, params, x, text, np.asarray(image)[:, ::-1])
    np.testing.assert_allclose(swapped, both, atol=1e-5)
    assert np.abs(both - text_only).max() > 1e-2
