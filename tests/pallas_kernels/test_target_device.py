"""Kernels are chosen for the device that a program is compiled for, not for the one at hand."""

import types

import jax
import jax.numpy as jnp
import pytest

import pallas_kernels as pk
from pallas_kernels import target_device
from tests.pallas_kernels.devices import AMPERE, HOPPER, TPU, mesh_of, tokens_on


def test_without_a_mesh_it_is_the_device_at_hand():
    assert pk.target_of()[:2] == ("cpu", "cpu")
    assert pk.target_of(jnp.ones(3)).platform == "cpu"
    assert pk.target_of(jax.ShapeDtypeStruct((3,), jnp.float32)).platform == "cpu"


@pytest.mark.parametrize(
    ("device", "capability"), [(TPU, None), (HOPPER, (9, 0)), (AMPERE, (8, 0))]
)
def test_operands_on_a_mesh_decide_traced_too(device, capability):
    operand = tokens_on(device, 8)
    assert pk.target_of(operand) == (*device, capability)
    assert pk.target_of(None, operand) == (*device, capability)
    found = []
    jax.jit(lambda x: found.append(pk.target_of(2 * x)) or x).trace(operand)
    assert found == [(*device, capability)]


def test_a_mesh_in_context_decides_for_what_stands_nowhere():
    with jax.sharding.use_abstract_mesh(mesh_of(TPU)):
        assert pk.target_of().platform == "tpu"
        assert pk.best_tiles()[:2] == (512, 128)
        assert not pk.available_implementations()["pallas_tpu"]
        found = []
        jax.jit(lambda x: found.append(pk.target_of(x)) or x).trace(
            jax.ShapeDtypeStruct((3,), jnp.float32)
        )
        assert found[0].platform == "tpu"


def test_a_gpu_says_its_capability_itself_or_by_name():
    def capability(kind, **known):
        device = types.SimpleNamespace(platform="cuda", device_kind=kind, **known)
        return target_device._describe(device)

    assert capability("NVIDIA GeForce", compute_capability="8.6") == (
        "gpu",
        "NVIDIA GeForce",
        (8, 6),
    )
    assert capability("NVIDIA GH200 480GB").capability == (9, 0)
    assert capability("Radeon").capability is None


@pytest.mark.parametrize(
    ("device", "dtype", "name"),
    [
        (TPU, jnp.bfloat16, "pallas_tpu"),
        (AMPERE, jnp.bfloat16, "pallas_triton"),
        (HOPPER, jnp.float32, "pallas_triton"),
        (("gpu", "Radeon"), jnp.bfloat16, "xla_chunked"),
        (("cpu", "cpu"), jnp.bfloat16, "xla_chunked"),
    ],
)
def test_the_choice_is_the_targets(device, dtype, name):
    q = tokens_on(device, 4096, dtype)
    choice = pk.explain_choice(q, q, pk.dense_pattern(4096, 4096))
    assert choice.implementation == name
    refused = {x for x, reason in pk.available_implementations(q).items() if reason}
    if device == HOPPER:
        refused.add("pallas_mosaic_gpu")  # takes no float32, where it can run at all
    assert refused == {x for x in choice.reason.split("cannot run: ")[1].split(", ") if x}
