"""The chunked backend against the reference, and that its work follows the active tiles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.chunk_schedule import loop_trips, make_schedule
from pallas_kernels.selftest_cases import make_problem
from pallas_kernels.tiling import ChunkConfig
from pallas_kernels.xla_chunked import chunked_attention
from tests.pallas_kernels.attention_suite import AttentionSuite


class TestXlaChunked(AttentionSuite):
    implementation = "xla_chunked"


def test_rows_side_by_side_give_the_same():
    problem = make_problem("random", heads=1, head_dim=16)

    def run(config):
        def total(q, k, v):
            out, lse = chunked_attention(q, k, v, problem.mask, 0.25, config)
            return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(lse > -1e30, lse, 0.0))

        return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*problem[:3])

    for a, b in zip(*(jax.tree.leaves(run(x)) for x in (ChunkConfig(3, 2), None)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def _uneven(rows: int, columns: int, longest: int) -> pk.BlockMask:
    """One row of `longest` listed tiles, the others with one or none."""
    count = np.arange(rows) % 2
    count[rows // 3] = longest
    index = np.broadcast_to(np.arange(columns), (1, 1, rows, columns))
    return pk.from_tile_lists(
        jnp.asarray(index, jnp.int32),
        jnp.asarray(count, jnp.int32)[None, None],
        q_len=rows * 16,
        k_len=columns * 32,
        tile_q=16,
        tile_k=32,
    )


@pytest.mark.row("S32")
def test_steps_follow_the_active_tiles():
    mask = _uneven(64, 40, 40)
    active = int(mask.keys.count.sum())
    one = ChunkConfig(1, 1)
    # A step for each active tile, one for each row.
    assert int(loop_trips(mask.keys, 1, one)) == active + 64
    # Side by side the long row does not hold up all the others.
    wide = ChunkConfig(8, 4)
    schedule = make_schedule(mask.keys, 1, wide)
    assert int(schedule.trips.sum()) * 8 * 4 <= active + 8 * 40 + 64 * 4
    assert sorted(np.asarray(schedule.place).ravel()) == list(range(64))
    # The same lists, fuller or emptier, are the same program: only the trip counts differ.
    few, many = (
        jax.jit(loop_trips, static_argnums=(1, 2))(m.keys, 1, one)
        for m in (_uneven(64, 40, 3), mask)
    )
    assert int(many) - int(few) == 37


def test_no_array_over_all_queries_and_keys():
    rows, columns = 64, 40
    mask = _uneven(rows, columns, 40)
    q = jax.ShapeDtypeStruct((1, rows * 16, 1, 16), jnp.float32)
    k = jax.ShapeDtypeStruct((1, columns * 32, 1, 16), jnp.float32)

    def total(q, k, v):
        return jnp.sum(pk.block_sparse_attention(q, k, v, mask, implementation="xla_chunked"))

    program = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(q, k, k).as_text()
    assert f"{rows * 16}x{columns * 32}x" not in program
    largest = max(_sizes(program))
    assert largest <= max(q.size, k.size) * 2


def _sizes(program: str) -> list[int]:
    """Number of entries of every tensor that a lowered program names."""
    sizes = []
    for word in program.replace("tensor<", "\n").split("\n"):
        parts = word.split(">")[0].split("x")[:-1]
        if parts and all(part.isdigit() for part in parts):
            sizes.append(int(np.prod([int(part) for part in parts])))
    return sizes


def test_vmap_does_not_loop_to_the_slowest_sample():
    problem = make_problem("random", batch=2, heads=1, head_dim=16)
    operands = jax.tree.map(lambda x: x[:, None], tuple(problem[:4]))
    attend = lambda q, k, v, mask: chunked_attention(q, k, v, mask, 0.25)[0]  # noqa: E731
    conditions = []

    def visit(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "while":
                conditions.append(equation.params["cond_jaxpr"].jaxpr)
            for value in equation.params.values():
                for inner in value if isinstance(value, (list, tuple)) else (value,):
                    inner = getattr(inner, "jaxpr", inner)
                    if hasattr(inner, "eqns"):
                        visit(inner)

    visit(jax.make_jaxpr(jax.vmap(attend))(*operands).jaxpr)
    assert conditions
    # A batched loop would ask whether any of the samples is still busy.
    names = {equation.primitive.name for jaxpr in conditions for equation in jaxpr.eqns}
    assert names == {"lt"}
