"""A joint sequence's attention in two parts, merged, is its attention under the whole mask."""

import jax
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.selftest_cases import make_problem


@pytest.mark.row("S20")
@pytest.mark.parametrize("kind", ["joint", "joint_soft"])
def test_two_parts_are_one_softmax(kind):
    q, k, v, mask, _, _ = make_problem(kind, q_len=75, head_dim=16)
    start = 43
    tail = np.zeros((1, 75, 75), bool)
    tail[:, start:, start:] = True
    rest = pk.without_dense_tail(mask, start=start)
    allowed = np.asarray(mask.dense())
    kept = np.asarray(rest.dense())
    assert not kept[:, :, start:, start:].any()
    np.testing.assert_array_equal(kept | (allowed & tail[:, None]), allowed)
    whole = kept | tail[:, None]

    found = jax.jit(lambda q, k, v: pk.attend_with_dense_tail(q, k, v, rest, start=start))(q, k, v)
    pairs = rest.dense_pairs()
    logits = np.einsum("bqhd,bkhd->bhqk", q, k) / 4
    if mask.soft:
        strength = np.asarray(mask.strength)[:, :, None, None]
        bias = np.asarray(jax.jit(lambda pairs, at: pairs.bias(at))(pairs, strength))
        logits = logits + np.where(tail[:, None], 0.0, bias)
    logits = np.where(whole, logits, -np.inf)
    top = logits.max(-1, keepdims=True)
    weights = np.exp(logits - np.where(np.isfinite(top), top, 0.0))
    weights /= np.maximum(weights.sum(-1, keepdims=True), 1e-30)
    np.testing.assert_allclose(found, np.einsum("bhqk,bkhd->bqhd", weights, v), atol=1e-4)
