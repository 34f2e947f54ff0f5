"""The specification itself, against a loop in numpy and finite differences."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.selftest_cases import compare, make_problem


def _loop(q, k, v, allowed, bias, scale):
    """Attention row by row in float64; [b, t, heads, d], masks [b, heads, tq, tk]."""
    b, tq, heads, _ = q.shape
    out, lse = np.zeros((b, tq, heads, v.shape[-1])), np.full((b, tq, heads), -np.inf)
    for i, t, h in np.ndindex(b, tq, heads):
        seen = allowed[i, h, t]
        if not seen.any():
            continue
        logits = k[i, seen, h] @ q[i, t, h] * scale + bias[i, h, t, seen]
        weights = np.exp(logits - logits.max())
        out[i, t, h] = weights @ v[i, seen, h] / weights.sum()
        lse[i, t, h] = logits.max() + np.log(weights.sum())
    return out, lse


@pytest.mark.row("S16")
@pytest.mark.parametrize("kind", ["random", "soft"])
def test_equals_a_loop(kind):
    problem = make_problem(kind, head_dim=8, seed=1)
    q, k, v, mask = problem[:4]
    shape = (2, 2, 70, 101)
    pairs = mask.dense_pairs()
    bias = np.zeros(shape)
    if kind == "soft":
        bias = np.asarray(pairs.bias(mask.strength[:, :, None, None])) + bias
    operands = (np.asarray(x, np.float64) for x in (q, k, v))
    want, want_lse = _loop(*operands, np.broadcast_to(pairs.allowed, shape), bias, 0.3)
    attend = jax.jit(
        pk.block_sparse_attention, static_argnames=("scale", "implementation", "return_lse")
    )
    out, lse = attend(q, k, v, mask, scale=0.3, implementation="reference", return_lse=True)
    assert np.isneginf(want_lse).any()
    np.testing.assert_allclose(out, want, atol=2e-6)
    np.testing.assert_allclose(lse, want_lse, atol=2e-6)


def test_comparison_with_itself_finds_nothing():
    errors = compare("reference", make_problem("random"))
    assert max(errors.values()) == 0.0


@pytest.mark.row("S15")
def test_strength_gradient_is_the_finite_difference():
    q, k, v, mask, d_out, _ = make_problem("joint_soft", head_dim=8)

    @jax.jit
    @jax.value_and_grad
    def total(strength):
        changed = mask.replace(strength=strength)
        return jnp.sum(
            pk.block_sparse_attention(q, k, v, changed, implementation="reference") * d_out
        )

    at, step = mask.strength, 0.02
    slope = float(total(at)[1].sum())
    difference = float(total(at + step)[0] - total(at - step)[0]) / (2 * step)
    np.testing.assert_allclose(slope, difference, rtol=1e-2, atol=1e-2)
