"""Exact lists, coarser tiles and density keep the mask as it is."""

import jax
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.selftest_cases import make_problem, random_geometry


def _exact_kinds(dense, tile_q, tile_k):
    b, heads, tq, tk = dense.shape
    margins = ((0, 0), (0, 0), (0, -tq % tile_q), (0, -tk % tile_k))

    def tiles(value):
        x = np.pad(dense, margins, constant_values=value)
        return x.reshape(b, heads, x.shape[2] // tile_q, tile_q, -1, tile_k)

    some, every = tiles(False).any((3, 5)), tiles(True).all((3, 5))
    return np.where(some, np.where(every, 2, 1), 0)


@pytest.mark.parametrize("kind", ["joint", "random"])
def test_refined_lists_are_exact(kind):
    mask = make_problem(kind, seed=3).mask
    dense = np.asarray(mask.dense())
    exact = jax.jit(pk.refine)(mask)
    np.testing.assert_array_equal(exact.dense(), dense)
    np.testing.assert_array_equal(exact.state(), _exact_kinds(dense, 16, 32))


def test_refined_soft_mask_keeps_its_constraint():
    mask = make_problem("soft", seed=3).mask
    exact = jax.jit(pk.refine)(mask)
    for got, want in zip(
        exact.dense_pairs().constraint(), mask.dense_pairs().constraint(), strict=True
    ):
        kept = np.asarray(mask.dense())
        np.testing.assert_array_equal(np.asarray(got)[kept], np.asarray(want)[kept])


@pytest.mark.parametrize("kind", ["random", "frames", "joint", "soft", "window", "tiles"])
def test_coarser_tiles_keep_the_pairs(kind):
    mask = make_problem(kind, seed=4).mask
    coarse = jax.jit(pk.coarsen, static_argnums=(1, 2))(mask, 48, 64)
    assert (coarse.tile_q, coarse.tile_k, coarse.q_tiles) == (48, 64, 2)
    pairs, want = coarse.dense_pairs(), mask.dense_pairs()
    np.testing.assert_array_equal(pairs.allowed, want.allowed)
    kinds = np.asarray(coarse.state())
    assert not ((kinds == 2) & (_exact_kinds(np.asarray(want.allowed), 48, 64) != 2)).any()
    if kind == "soft":
        kept = np.asarray(want.allowed)
        bias = jax.jit(lambda pairs: pairs.bias(0.5))
        np.testing.assert_array_equal(*(np.asarray(bias(x))[kept] for x in (pairs, want)))
        again = pk.coarsen(coarse, 96, 128)
        np.testing.assert_array_equal(again.dense(), want.allowed)


def test_coarser_tiles_must_fit():
    with pytest.raises(ValueError, match="no multiples"):
        pk.coarsen(pk.dense_pattern(70, 101, tile_q=16, tile_k=32), 24, 32)


def test_density():
    rng = np.random.default_rng(5)
    tokens = random_geometry(rng, 1, 61, 2)
    mask = jax.jit(lambda t: pk.from_geometry(t, t, tile_q=8, tile_k=8))(tokens)
    dense = np.asarray(mask.dense())
    kinds = _exact_kinds(dense, 8, 8)
    found = jax.jit(pk.tile_density)(mask)
    np.testing.assert_allclose(found.pairs, dense.mean(), rtol=1e-5)
    np.testing.assert_allclose(found.active, (kinds > 0).mean(), rtol=1e-5)
    np.testing.assert_allclose(found.full, (kinds == 2).mean(), rtol=1e-5)
    np.testing.assert_allclose(found.listed, np.asarray(mask.density()).mean(), rtol=1e-5)
    assert found.listed >= found.active
    full = pk.tile_density(pk.dense_pattern(61, 50, tile_q=8, tile_k=8))
    assert [float(x) for x in full] == [1.0] * 4
