"""The tests that every attention backend passes; a backend's file subclasses AttentionSuite."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import pallas_kernels as pk
from pallas_kernels.selftest_cases import (
    CASES,
    QUICK,
    TILE_K,
    TILE_Q,
    Problem,
    compare,
    make_problem,
    reference_results,
)

# Three tiles of queries and of keys, the last ones ragged, so that rows take several steps.
SIZES = {"q_len": 40, "k_len": 70}
# Two tiles of each, where the kernels are run under several transformations.
SMALL = {"q_len": 20, "k_len": 40, "heads": 1}


def sizes_of(kind: str) -> dict[str, int]:
    """Two heads for the quick cases; the others differ from these by their masks alone."""
    heads = {} if kind in QUICK else {"heads": 1}
    # Joint sequences hold 32 reference tokens first.
    return heads | ({"q_len": 56} if kind.startswith("joint") else {})


# Backends share the problems, and what the reference makes of them.
@functools.cache
def _problem(kind: str, seed: int = 0, **sizes) -> Problem:
    return make_problem(kind, seed=seed, **(SIZES | sizes))


@functools.cache
def _wanted(kind: str, seed: int = 0, **sizes) -> dict[str, np.ndarray]:
    return reference_results(_problem(kind, seed, **sizes))


class AttentionSuite:
    """Set `implementation` to the backend's name."""

    implementation: str
    # The masks that it is tested with: fewer where several are one to the kernels.
    kinds: tuple[str, ...] = CASES
    tolerance = 2e-5
    soft_tolerance = 2e-5
    # False where an interpreter does not know what varies over a mesh's axes.
    check_vma = True

    def check(self, problem, tolerance=None, wanted=None):
        errors = compare(self.implementation, problem, wanted)
        least = self.soft_tolerance if problem.mask.soft else self.tolerance
        limit = least if tolerance is None else tolerance
        assert max(errors.values()) <= limit, errors

    def check_kind(self, kind, tolerance=None, **sizes):
        self.check(_problem(kind, **sizes), tolerance, _wanted(kind, **sizes))

    def pytest_generate_tests(self, metafunc):
        if "kind" in metafunc.fixturenames:
            metafunc.parametrize("kind", self.kinds)

    def test_forward_and_gradients(self, kind):
        self.check_kind(kind, **sizes_of(kind))
        if kind == "soft":
            assert _wanted(kind).keys() >= {"d_strength", "dq", "lse"}
        # One mask for all samples.
        assert kind != "window" or _problem(kind).mask.batch == 1

    def test_infinite_strength_is_the_hard_mask(self):
        problem = _problem("joint_soft", **sizes_of("joint_soft"))
        strength = jnp.full_like(problem.mask.strength, jnp.inf)
        self.check(problem._replace(mask=problem.mask.replace(strength=strength)))

    def test_bfloat16(self):
        self.check_kind("random", 3e-2, seed=1, batch=1, heads=1, head_dim=64, dtype="bfloat16")

    def test_one_sample_one_head_odd_sizes(self):
        self.check_kind(
            "random", 3e-2, seed=2, batch=1, heads=1, q_len=67, k_len=35, head_dim=128,
            dtype="bfloat16",
        )  # fmt: skip

    # Several backends inherit the test, which is what the check warns of.
    @settings(
        max_examples=4,
        deadline=None,
        suppress_health_check=[HealthCheck.differing_executors],
    )
    @given(seed=st.integers(0, 2**31 - 1), density=st.floats(0, 1), tiles=st.floats(0, 1))
    def test_any_mask(self, seed, density, tiles):
        rng = np.random.default_rng(seed)
        problem = _problem("random")
        _, q_len, _, _ = problem.q.shape
        k_len = problem.k.shape[1]
        coarse = rng.random((2, 3, 3)) < tiles
        mask = np.repeat(np.repeat(coarse, TILE_Q, axis=1), TILE_K, axis=2)[:, :q_len, :k_len]
        mask = mask & (rng.random(mask.shape) < density)
        block = pk.from_dense(jnp.asarray(mask), TILE_Q, TILE_K)
        # Of the same shapes as the other cases, so that nothing is compiled anew.
        self.check(problem._replace(mask=block))

    def attend(self, q, k, v, mask):
        return pk.block_sparse_attention(q, k, v, mask, implementation=self.implementation)

    def slope(self, attend, q, k, v, mask):
        return jax.grad(lambda q: jnp.sum(jnp.sin(attend(q, k, v, mask))))(q)

    def reference(self, q, k, v, mask):
        return pk.block_sparse_attention(q, k, v, mask, implementation="reference")

    def test_vmap_is_the_batch(self):
        problem = _problem("random", seed=4, batch=4, head_dim=16, **SMALL)
        operands = tuple(problem[:4])
        split = jax.tree.map(lambda x: np.asarray(x).reshape(2, 2, *x.shape[1:]), operands)
        whole = jax.jit(functools.partial(self.slope, self.reference))(*operands)
        mapped = jax.jit(jax.vmap(functools.partial(self.slope, self.attend)))(*split)
        mapped = np.asarray(mapped).reshape(whole.shape)
        np.testing.assert_allclose(mapped, whole, atol=self.tolerance)
        # A mask that is shared over the mapped axis.
        q, k, v, mask = split
        one = jax.tree.map(lambda x: x[0], mask)
        shared = jax.jit(jax.vmap(self.attend, in_axes=(0, 0, 0, None)))(q, k, v, one)
        apart = jax.jit(self.reference)(q[1], k[1], v[1], one)
        np.testing.assert_allclose(np.asarray(shared)[1], apart, atol=self.tolerance)

    def test_shard_map_and_scan(self):
        problem = _problem("soft", seed=5, batch=2, head_dim=24, **SMALL)
        operands = tuple(problem[:4])
        auto = (jax.sharding.AxisType.Auto,)
        mesh = jax.make_mesh((2,), ("data",), axis_types=auto, devices=jax.devices("cpu")[:2])
        data, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
        specs = jax.tree.map(lambda x: data if x.shape[0] == 2 else whole, operands)

        def loss(attend, q, k, v, mask):
            def layer(x, _):
                return x + attend(x, k, v, mask), None

            return jax.lax.scan(layer, q, None, length=2)[0]

        sharded = jax.shard_map(
            functools.partial(loss, self.attend),
            mesh=mesh,
            in_specs=specs,
            out_specs=data,
            check_vma=self.check_vma,
        )

        def slopes(function):
            def total(q, strength):
                mask = operands[3].replace(strength=strength)
                return jnp.sum(jnp.sin(function(q, *operands[1:3], mask)))

            return jax.jit(jax.value_and_grad(total, argnums=(0, 1)))

        with jax.default_matmul_precision("highest"):
            got = slopes(sharded)(operands[0], operands[3].strength)
            want = slopes(functools.partial(loss, self.reference))(
                operands[0], operands[3].strength
            )
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            limit = max(1e-4, self.soft_tolerance)
            np.testing.assert_allclose(a, b, rtol=limit, atol=limit)

    def test_one_compilation_for_all_masks_and_twice_the_same_bits(self):
        problem = _problem("random", batch=1, head_dim=16, **SMALL)
        count = 0

        @jax.jit
        def run(q, k, v, mask):
            nonlocal count
            count += 1
            out, pull = jax.vjp(lambda *x: self.attend(*x, mask), q, k, v)
            return out, pull(jnp.sin(out))

        found = []
        for density in (0.0, 0.1, 1.0, 1.0):
            mask = np.random.default_rng(6).random((1, 20, 40)) < density
            block = pk.from_dense(jnp.asarray(mask), TILE_Q, TILE_K)
            found.append(jax.tree.map(np.asarray, run(problem.q, problem.k, problem.v, block)))
        assert count == 1
        assert not found[0][0].any()
        assert np.abs(found[2][0] - found[1][0]).max() > 0.1
        for a, b in zip(jax.tree.leaves(found[2]), jax.tree.leaves(found[3]), strict=True):
            np.testing.assert_array_equal(a, b)
