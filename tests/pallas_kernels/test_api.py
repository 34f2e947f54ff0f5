"""The public functions: choice, errors, normalisations, merging; and the self-test command."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels import api, selftest
from pallas_kernels.selftest_cases import make_problem

rng = np.random.default_rng(0)


def _operands(tq, tk, heads=2, d=8, b=2):
    sizes = ((b, t, heads, d) for t in (tq, tk, tk))
    return tuple(jax.device_put(rng.normal(size=size).astype(np.float32)) for size in sizes)


def _mask(dense):
    return pk.from_dense(jnp.asarray(dense), 16, 32)


def test_every_name_is_known_and_says_why_it_cannot_run():
    reasons = pk.available_implementations()
    assert set(reasons) == {
        "reference",
        "xla_chunked",
        "pallas_tpu",
        "pallas_mosaic_gpu",
        "pallas_triton",
    }
    assert not reasons["reference"]
    assert not reasons["xla_chunked"]
    q, k, v = _operands(40, 40)
    mask = pk.dense_pattern(40, 40)
    for name, reason in reasons.items():
        if reason:
            with pytest.raises(ValueError, match=f"'{name}' cannot run: {reason}"):
                pk.block_sparse_attention(q, k, v, mask, implementation=name)


def test_choice_is_by_size_and_explained():
    def choice(tokens):
        shape = jax.ShapeDtypeStruct((1, tokens, 2, 64), jnp.float32)
        return pk.explain_choice(shape, shape, pk.dense_pattern(tokens, tokens))

    assert choice(128).implementation == "reference"
    assert "few" in choice(128).reason
    assert choice(4096).implementation == "xla_chunked"
    assert "pallas_tpu" in choice(4096).reason


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"implementation": "fast"}, "one of"),
        ({"normalisation": "none"}, "normalisation"),
        ({"mask": pk.dense_pattern(40, 41)}, "mask is for 40 queries and 41 keys"),
        ({"mask": pk.dense_pattern(40, 40, batch=3)}, "batch 3"),
        ({"v": jnp.zeros((2, 40, 2, 8), jnp.bfloat16)}, "dtype"),
    ],
)
def test_bad_arguments(change, message):
    q, k, v = _operands(40, 40)
    arguments = {"q": q, "k": k, "v": v, "mask": pk.dense_pattern(40, 40)} | change
    with pytest.raises(ValueError, match=message):
        pk.block_sparse_attention(**arguments)


def test_sizes_must_agree():
    # The type checker of the tests would be first at the public function.
    q, k, v = _operands(40, 40)
    with pytest.raises(ValueError, match="must agree"):
        api._check(q, k[:, :, :1], v, pk.dense_pattern(40, 40))


@pytest.mark.row("S16")
@pytest.mark.row("S17")
@pytest.mark.parametrize("implementation", ["reference", "xla_chunked"])
def test_multiply_is_the_softmax_over_all_keys_times_the_mask(implementation):
    q, k, v = _operands(40, 70)
    dense = rng.random((2, 40, 70)) < 0.3
    dense[:, 7] = False
    mask = _mask(dense)

    def ours(q, k, v):
        return pk.block_sparse_attention(
            q, k, v, mask, implementation=implementation, normalisation="multiply", return_lse=True
        )

    def literal(q, k, v):
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k, precision="highest") * 8**-0.5
        weights = jax.nn.softmax(logits, axis=-1) * dense[:, None]
        out = jnp.einsum("bhqk,bkhd->bqhd", weights, v, precision="highest")
        return out, jnp.swapaxes(jax.nn.logsumexp(logits, axis=-1), 1, 2)

    def results(function):
        def total(*operands):
            found = function(*operands)
            return sum(jnp.sum(jnp.sin(x)) for x in found), found

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    slopes, found = results(ours)
    for got, want in zip(
        jax.tree.leaves((slopes, found)), jax.tree.leaves(results(literal)), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert not np.asarray(found[0])[:, 7].any()


def test_merge_is_one_softmax_over_both():
    q, k, v = _operands(40, 90)
    dense = rng.random((2, 40, 90)) < 0.3
    dense[:, 3] = False  # nothing anywhere
    dense[:, 4, :50] = False  # nothing in the first part
    dense[:, 5, 50:] = False
    parts = (slice(0, 50), slice(50, 90))

    def apart(q, k, v):
        results = [
            pk.block_sparse_attention(
                q,
                k[:, p],
                v[:, p],
                _mask(dense[:, :, p]),
                implementation="reference",
                return_lse=True,
            )
            for p in parts
        ]
        return pk.merge_attention(*results)

    def whole(q, k, v):
        return pk.block_sparse_attention(
            q, k, v, _mask(dense), implementation="reference", return_lse=True
        )

    def results(function):
        def total(q, k, v):
            out, lse = function(q, k, v)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(lse > -1e30, lse, 0.0)), (out, lse)

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    slopes, (out, lse) = results(apart)
    for got, want in zip(
        jax.tree.leaves((slopes, (out, lse))), jax.tree.leaves(results(whole)), strict=True
    ):
        np.testing.assert_allclose(got, want, atol=1e-5)
    assert not np.asarray(out)[:, 3].any()
    assert np.isneginf(np.asarray(lse)[:, 3]).all()


def test_selftest_prints_a_table_and_says_what_is_missing(monkeypatch, capsys):
    small = make_problem("random", batch=1, heads=1, head_dim=8)
    monkeypatch.setattr(selftest, "_problems", lambda seed, quick: [("random", small, 2e-5)])
    assert selftest.main(["--quick"]) == 0
    table = capsys.readouterr().out
    assert "pallas_tpu         -                             -  cannot run" in table
    assert "interpreted instead" in table
    assert table.count("pass") == 3
    monkeypatch.setattr(selftest, "INTERPRETED", {})
    assert selftest.main(["--quick"]) == 1
    assert "incomplete: pallas_tpu did not run" in capsys.readouterr().out
    monkeypatch.setattr(selftest, "compare", lambda attend, problem: {"out": float("inf")})
    assert selftest.main([]) == 1
    assert "FAIL" in capsys.readouterr().out
