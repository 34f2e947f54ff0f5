"""The tests that every attention backend passes; a backend's file subclasses AttentionSuite."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pallas_kernels as pk
from pallas_kernels.selftest_cases import CASES, TILE_K, TILE_Q, compare, make_problem


class AttentionSuite:
    """Set `implementation` to the backend's name."""

    implementation: str
    tolerance = 2e-5
    # Whether the backend takes soft constraints; one that does not must refuse them.
    soft = True
    # False where an interpreter does not know what varies over a mesh's axes.
    check_vma = True

    def check(self, problem, tolerance=None):
        if problem.mask.soft and not self.soft:
            with pytest.raises(ValueError, match=f"'{self.implementation}' cannot run: .*soft"):
                compare(self.implementation, problem)
            return
        errors = compare(self.implementation, problem)
        limit = self.tolerance if tolerance is None else tolerance
        assert max(errors.values()) <= limit, errors

    @pytest.mark.parametrize("kind", CASES)
    def test_forward_and_gradients(self, kind):
        problem = make_problem(kind)
        self.check(problem)
        if kind == "soft" and self.soft:
            assert compare(self.implementation, problem).keys() >= {"d_strength", "dq", "lse"}

    @pytest.mark.parametrize("head_dim", [64, 128])
    def test_bfloat16(self, head_dim):
        problem = make_problem(
            "random", seed=1, q_len=45, k_len=77, head_dim=head_dim, dtype="bfloat16"
        )
        self.check(problem, 3e-2)

    def test_one_sample_one_head_odd_sizes(self):
        self.check(
            make_problem("random", seed=2, batch=1, heads=1, q_len=67, k_len=35, head_dim=24)
        )

    def test_shared_mask_of_a_batch(self):
        problem = make_problem("full", seed=3)
        mask = pk.sliding_window(70, 101, before=5, after=40, tile_q=TILE_Q, tile_k=TILE_K)
        assert mask.batch == 1
        self.check(problem._replace(mask=mask))

    # Several backends inherit the test, which is what the check warns of.
    @settings(
        max_examples=6,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(seed=st.integers(0, 2**31 - 1), density=st.floats(0, 1), tiles=st.floats(0, 1))
    def test_any_mask(self, seed, density, tiles):
        rng = np.random.default_rng(seed)
        coarse = rng.random((2, 5, 4)) < tiles
        mask = np.repeat(np.repeat(coarse, TILE_Q, axis=1), TILE_K, axis=2)[:, :70, :101]
        mask = mask & (rng.random(mask.shape) < density)
        block = pk.from_dense(jnp.asarray(mask), TILE_Q, TILE_K)
        # Of the same shapes as the other cases, so that nothing is compiled anew.
        self.check(make_problem("random", seed=seed % 1000)._replace(mask=block))

    def attend(self, q, k, v, mask):
        return pk.block_sparse_attention(q, k, v, mask, implementation=self.implementation)

    def slope(self, q, k, v, mask):
        return jax.grad(lambda q: jnp.sum(jnp.sin(self.attend(q, k, v, mask))))(q)

    def test_vmap_is_the_batch(self):
        problem = make_problem("random", seed=4, batch=4, heads=1, head_dim=16)
        operands = tuple(problem[:4])
        split = jax.tree.map(lambda x: x.reshape(2, 2, *x.shape[1:]), operands)
        whole = jax.jit(self.slope)(*operands)
        mapped = jax.jit(jax.vmap(self.slope))(*split)
        np.testing.assert_allclose(mapped.reshape(whole.shape), whole, atol=1e-6)
        # A mask, or a query, that is shared over the mapped axis.
        q, k, v, mask = split
        one = jax.tree.map(lambda x: x[0], mask)
        shared = jax.jit(jax.vmap(self.attend, in_axes=(0, 0, 0, None)))(q, k, v, one)
        apart = jax.jit(self.attend)(q[1], k[1], v[1], one)
        np.testing.assert_allclose(shared[1], apart, atol=1e-6)

    def test_shard_map_and_scan(self):
        kind = "soft" if self.soft else "random"
        problem = make_problem(kind, seed=5, batch=8, heads=2, head_dim=16)
        operands = tuple(problem[:4])
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((8,), ("data",), axis_types=auto, devices=jax.devices("cpu")[:8])
        data, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
        specs = jax.tree.map(lambda x: data if x.shape[0] == 8 else whole, operands)

        def loss(q, k, v, mask):
            def layer(x, _):
                return x + self.attend(x, k, v, mask), None

            return jax.lax.scan(layer, q, None, length=2)[0]

        sharded = jax.shard_map(
            loss, mesh=mesh, in_specs=specs, out_specs=data, check_vma=self.check_vma
        )

        def slopes(function):
            def total(q, strength):
                mask = operands[3].replace(strength=strength)
                return jnp.sum(jnp.sin(function(q, *operands[1:3], mask)))

            return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))

        with jax.default_matmul_precision("highest"):
            got = slopes(sharded)(operands[0], operands[3].strength)
            want = slopes(loss)(operands[0], operands[3].strength)
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)

    def test_one_compilation_for_all_masks(self):
        problem = make_problem("random", batch=1, heads=1, head_dim=16)
        count = 0

        @jax.jit
        def run(q, k, v, mask):
            nonlocal count
            count += 1
            return self.attend(q, k, v, mask)

        outputs = []
        for density in (0.0, 0.1, 1.0):
            mask = np.random.default_rng(6).random((1, 70, 101)) < density
            block = pk.from_dense(jnp.asarray(mask), TILE_Q, TILE_K)
            outputs.append(run(problem.q, problem.k, problem.v, block))
        assert count == 1
        assert not np.asarray(outputs[0]).any()
        assert np.abs(np.asarray(outputs[2] - outputs[1])).max() > 0.1

    def test_twice_the_same_bits(self):
        problem = make_problem("random", seed=7)
        run = jax.jit(
            jax.grad(lambda q, k, v: jnp.sum(self.attend(q, k, v, problem.mask)), (0, 1, 2))
        )
        first, second = (run(problem.q, problem.k, problem.v) for _ in range(2))
        for a, b in zip(first, second, strict=True):
            np.testing.assert_array_equal(a, b)
