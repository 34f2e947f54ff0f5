"""The Triton kernels' arithmetic in interpret mode against the reference, and when they can run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels import api, gpu_device
from pallas_kernels.kernel_tables import kernel_tables, loop_trips
from pallas_kernels.pallas_triton import (
    TritonBlocks,
    TritonConfig,
    cannot_take_triton,
    triton_attention,
)
from pallas_kernels.selftest_cases import QUICK, make_problem
from tests.pallas_kernels.attention_suite import AttentionSuite
from tests.pallas_kernels.devices import AMPERE, HOPPER, tokens_on


@pytest.fixture(scope="class")
def interpreted():
    """The Triton implementation, registered so that it runs here, in interpret mode."""
    with pytest.MonkeyPatch.context() as patch:
        attend = functools.partial(triton_attention, interpret=True)
        entry = api.Implementation(attend, cannot_take=cannot_take_triton)
        patch.setitem(api.IMPLEMENTATIONS, "pallas_triton", entry)
        yield


@pytest.mark.usefixtures("interpreted")
class TestPallasTriton(AttentionSuite):
    implementation = "pallas_triton"
    kinds = (*QUICK, "joint_soft")  # all others are packed into bits like "joint"
    soft_tolerance = 1e-3  # attraction and penalty are rounded to 16 bits
    check_vma = False


def _slopes(attend, problem):
    def total(q, k, v):
        out, lse = attend(q, k, v, problem.mask, 0.25)
        return jnp.sum(jnp.sin(out)) + jnp.sum(jnp.where(lse > -1e30, lse, 0.0))

    return jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(*problem[:3])


def test_blocks_smaller_than_the_tiles_give_the_same():
    problem = make_problem("random", batch=1, heads=1, head_dim=16)
    mask = pk.coarsen(problem.mask, 32, 64)
    whole = problem._replace(mask=mask)
    small = TritonBlocks(16, 32, 4, 2)
    parts = TritonConfig(small, small, small)
    attend = functools.partial(triton_attention, interpret=True)
    got = _slopes(functools.partial(attend, config=parts), whole)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(_slopes(attend, whole)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.row("S32")
def test_work_follows_the_active_tiles():
    def mask(longest):
        count = jnp.array([[[1, 0, longest, 2]]], jnp.int32)
        index = jnp.broadcast_to(jnp.arange(9, dtype=jnp.int32), (1, 1, 4, 9))
        return pk.from_tile_lists(index, count, q_len=64, k_len=288, tile_q=16, tile_k=32)

    tables = kernel_tables(mask(7))
    assert int(loop_trips(tables.keys)) == 1 + 7 + 2 + 4
    assert int(loop_trips(tables.queries)) == 1 + 7 + 2 + 9
    # Longest rows first.
    assert np.asarray(tables.keys.order).ravel().tolist() == [2, 3, 0, 1]
    q, k = (jnp.ones((1, t, 1, 16)) for t in (64, 288))
    program = jax.make_jaxpr(
        lambda mask: triton_attention(q, k, k, mask, 0.25, interpret=True), return_shape=False
    )
    # The lengths are data: one program for both.
    assert str(program(mask(7))) == str(program(mask(3)))


@pytest.mark.parametrize(
    ("device", "reason"),
    [
        (("cpu", "cpu"), "an NVIDIA GPU, and this is for cpu"),
        (AMPERE, ""),
        (HOPPER, ""),
    ],
)
def test_which_devices_can_run(device, reason):
    q = tokens_on(device, 40, head_dim=16)
    found = api.obstacle("pallas_triton", q, q, pk.dense_pattern(40, 40))
    assert reason in found if reason else found == ""


def test_a_capability_before_ampere_is_refused():
    target = pk.Target("gpu", "NVIDIA T4", (7, 5))
    assert "8.0 (Ampere) or later, and this is 7.5" in gpu_device.cannot_run_triton(target)


@pytest.mark.parametrize(("tile_q", "tile_k"), [(48, 64), (16, 8)])
def test_tiles_that_it_cannot_take(tile_q, tile_k):
    q = jnp.zeros((1, 40, 1, 16))
    mask = pk.dense_pattern(40, 40, tile_q=tile_q, tile_k=tile_k)
    with pytest.raises(ValueError, match="powers of two from 16"):
        triton_attention(q, q, q, mask, 0.25, interpret=True)


@pytest.mark.usefixtures("interpreted")
def test_it_is_the_choice_where_it_can_run():
    def choice(mask):
        shape = jax.ShapeDtypeStruct((1, 4096, 2, 64), jnp.float32)
        return pk.explain_choice(shape, shape, mask).implementation

    assert choice(pk.dense_pattern(4096, 4096)) == "pallas_triton"
    assert choice(pk.dense_pattern(4096, 4096, tile_q=48)) == "xla_chunked"
