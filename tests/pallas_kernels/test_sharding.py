"""Attention split over simulated chips equals attention on one."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import pallas_kernels as pk
from pallas_kernels.selftest_cases import make_problem, random_geometry

# Three tiles of queries, the last ragged, over two chips; geometry and packed, hard and soft.
KINDS = ("per_head", "soft", "joint_packed", "window")


@functools.cache
def mesh() -> Mesh:
    return Mesh(np.array(jax.devices("cpu")[:8]).reshape(2, 2, 2), ("batch", "rows", "heads"))


def problem_of(kind):
    sizes = {"q_len": 56 if kind.startswith("joint") else 40, "k_len": 70, "head_dim": 8}
    problem = make_problem(kind.removesuffix("_packed"), seed=3, **sizes)
    if kind.endswith("packed"):
        pack = pk.pack_soft_tiles if problem.mask.soft else pk.pack_partial_tiles
        problem = problem._replace(mask=pack(problem.mask))
    return problem


def results(attend, problem):
    """Output and LSE, and the gradients of a sum of both."""
    q, k, v, mask, d_out, d_lse = problem

    def total(q, k, v, strength):
        out, lse = attend(q, k, v, dataclasses.replace(mask, strength=strength))
        some = jnp.where(lse > -jnp.inf, lse * d_lse, 0.0)
        return jnp.sum(out * d_out) + jnp.sum(some), (out, lse)

    run = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2, 3), has_aux=True))
    (_, aux), gradients = run(q, k, v, mask.strength)
    return jax.tree.leaves((aux, gradients))


def assert_split_is_whole(problem, sharding):
    def split(*operands):
        return pk.sharded_attention(
            *operands, sharding, implementation="xla_chunked", return_lse=True
        )

    def whole(*operands):
        return pk.block_sparse_attention(*operands, implementation="reference", return_lse=True)

    with jax.default_matmul_precision("highest"):
        found, wanted = results(split, problem), results(whole, problem)
    for a, b in zip(found, wanted, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_split_by_samples_heads_and_queries_it_is_the_same(kind):
    problem = problem_of(kind)
    queries = None if kind == "window" else "rows"
    sharding = pk.AttentionSharding(mesh(), heads="heads", queries=queries, batch="batch")

    assert_split_is_whole(problem, sharding)


def test_samples_may_be_split_over_two_axes():
    problem = make_problem("per_head", batch=4, heads=2, q_len=40, k_len=70, head_dim=8)
    sharding = pk.AttentionSharding(mesh(), heads="heads", batch=("batch", "rows"))
    assert sharding.parts(sharding.batch) == 4

    assert_split_is_whole(problem, sharding)
    with pytest.raises(ValueError, match="cannot split two things"):
        pk.AttentionSharding(mesh(), heads="rows", batch=("batch", "rows"))
    odd = make_problem("per_head", batch=2, heads=2, q_len=40, k_len=70, head_dim=8)
    with pytest.raises(ValueError, match="4 chips of mesh axis"):
        pk.sharded_attention(odd.q, odd.k, odd.v, odd.mask, sharding)


def test_every_chip_builds_the_masks_of_its_own_samples():
    """The same masks as on one chip, and each chip holds only its share of them."""
    rng = np.random.default_rng(0)
    sides = [random_geometry(rng, 4, count, 5, radius=0.05) for count in (70, 200)]

    def build(*sides):
        ordered = [pk.order_geometry(side, pk.order_tokens(side)) for side in sides]
        return pk.pack_partial_tiles(pk.from_geometry(*ordered, tile_q=32, tile_k=32))

    sharding = pk.AttentionSharding(mesh(), heads="heads", batch=("batch", "rows"))
    split = jax.jit(lambda *sides: pk.by_samples(build, sharding, *sides))(*sides)
    whole = jax.jit(build)(*sides)

    density = np.asarray(whole.density())
    assert (density > 0).all()
    assert (density < 1).all()
    for a, b in zip(jax.tree.leaves(split), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)
        assert {share.data.shape[0] for share in a.addressable_shards} == {1}
    assert pk.by_samples(lambda x: x, None, sides[0]) is sides[0]
    odd = jax.tree.map(lambda x: np.asarray(x)[:3], sides)
    with pytest.raises(ValueError, match="3 samples cannot be split evenly over the 4 chips"):
        pk.by_samples(build, sharding, *odd)


def test_every_chip_walks_its_turn_of_the_query_tiles():
    state = np.arange(7)[:, None] >= np.arange(7)[None]
    mask = pk.block_mask.build_mask(
        jnp.asarray(np.int8(2) * state[None, None]), q_len=7 * 16 - 3, k_len=7 * 32, tile_q=16,
        tile_k=32,
    )  # fmt: skip
    dealing = pk.query_dealing.QueryDealing(mask, 2)
    dealt = jax.tree.map(np.asarray, jax.jit(dealing.deal_mask)(mask))
    for part, tiles in enumerate(((0, 2, 4, 6), (1, 3, 5))):
        own = jax.tree_util.tree_map_with_path(
            lambda path, x, part=part: (
                x[:, :, :, part : part + 1] if pk.query_dealing.stands_for_rows(path) else x
            ),
            dealt,
        )
        share = jax.jit(dealing.share_mask)(own)
        kinds = np.asarray(share.state())[0, 0]
        np.testing.assert_array_equal(kinds[: len(tiles)], 2 * state[list(tiles)])
        assert not kinds[len(tiles) :].any()
        assert np.asarray(share.queries.count).sum() == state[list(tiles)].sum()


def test_says_what_cannot_be_split():
    problem = make_problem("window", batch=1, heads=3, head_dim=8)
    by_heads = pk.AttentionSharding(mesh(), heads="heads")
    with pytest.raises(ValueError, match="3 heads cannot be split evenly over the 2 chips"):
        pk.sharded_attention(*problem[:4], by_heads)
    by_batch = pk.AttentionSharding(mesh(), batch="batch")
    with pytest.raises(ValueError, match="1 samples cannot be split"):
        pk.sharded_attention(*problem[:4], by_batch)
    by_queries = pk.AttentionSharding(mesh(), queries="rows")
    with pytest.raises(ValueError, match="must be packed"):
        pk.sharded_attention(*problem[:4], by_queries)
    with pytest.raises(ValueError, match="and not 'model'"):
        pk.AttentionSharding(mesh(), heads="model")
    with pytest.raises(ValueError, match="cannot split two things"):
        pk.AttentionSharding(mesh(), heads="heads", queries="heads")


def test_a_name_that_cannot_run_on_the_mesh_is_refused():
    problem = make_problem("random", head_dim=8)
    with pytest.raises(ValueError, match="'pallas_tpu' cannot run: it needs a TPU, and this is"):
        pk.sharded_attention(
            *problem[:4], pk.AttentionSharding(mesh(), heads="heads"), implementation="pallas_tpu"
        )
