"""Dense attention: which way it goes where, and that all ways agree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

from pallas_kernels import AttentionSharding
from tests.models.small_model import normal
from tests.pallas_kernels.devices import AMPERE, HOPPER, TPU, tokens_on
from worldstereo_jax.models import dense_attention as module
from worldstereo_jax.models.dense_attention import dense_attention, dense_way


def way_on(device, dtype=jnp.bfloat16, *, tokens=4096, head_dim=64, masked=False):
    q = tokens_on(device, tokens, dtype, head_dim)
    valid = jax.ShapeDtypeStruct((1, tokens), bool, sharding=q.sharding) if masked else None
    found = []

    def attend(q, valid):
        found.append(dense_way(q, q, valid))
        return q

    jax.jit(attend).trace(q, valid)
    return found[0]


@pytest.mark.parametrize(
    ("device", "options", "way"),
    [
        (("cpu", "cpu"), {}, "products"),
        (TPU, {}, "pallas_tpu"),
        (TPU, {"masked": True}, "pallas_tpu"),
        (TPU, {"tokens": 100}, "products"),
        (TPU, {"head_dim": 80}, "products"),
        (AMPERE, {}, "cudnn"),
        (AMPERE, {"masked": True}, "pallas_triton"),
        (HOPPER, {}, "cudnn"),
        (HOPPER, {"dtype": jnp.float32}, "pallas_triton"),
    ],
)
def test_the_way_follows_the_device_that_it_is_compiled_for(device, options, way):
    assert way_on(device, **options) == way


def test_a_program_for_several_chips_needs_a_rule_to_use_a_kernel():
    mesh = Mesh(np.array(jax.devices("cpu")[:2]), ("heads",))
    q = jnp.ones((1, 2048, 2, 64), jnp.bfloat16)
    q = jax.device_put(q, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
    assert dense_way(q, q) == "products"


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_a_kernel_gives_what_the_products_give(monkeypatch, split, masked):
    q, k, v = normal(0, 1, 140, 2, 8), normal(1, 1, 133, 2, 8), normal(2, 1, 133, 2, 8)
    valid = jnp.asarray(np.random.default_rng(3).random((1, 133)) < 0.5) if masked else None
    want = jax.jit(dense_attention)(q, k, v, valid)
    monkeypatch.setattr(module, "dense_way", lambda *_: "xla_chunked")
    mesh = Mesh(np.array(jax.devices("cpu")[:2]), ("heads",))
    sharding = AttentionSharding(mesh, heads="heads") if split else None
    found = jax.jit(lambda *x: dense_attention(*x, sharding=sharding))(q, k, v, valid)
    np.testing.assert_allclose(found, want, atol=1e-5)


@pytest.mark.parametrize(("n", "m"), [(6, 4), (6, 5), (7, 4), (7, 5)])
def test_odd_lengths_give_what_even_ones_do(n, m):
    """Values and gradients; with jax's products in the place of cuDNN, which wants even ones."""
    q, k, v = normal(0, 2, n, 2, 8), normal(1, 2, m, 2, 8), normal(2, 2, m, 2, 8)
    seen = []

    def lengths_of(*given, **options):
        seen.extend(x.shape[1] for x in given)
        return attention(*given, **options)

    attention = jax.nn.dot_product_attention

    def result(attend):
        def total(*x):
            out = attend(*x)
            return (out**2).sum(), out

        return jax.jit(jax.grad(total, argnums=(0, 1, 2), has_aux=True))(q, k, v)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax.nn, "dot_product_attention", lengths_of)
        ours, found = result(lambda *x: module._in_even_lengths(*x, "xla"))
    assert seen
    assert not any(length % 2 for length in seen)
    gradients, expected = result(attention)
    np.testing.assert_allclose(found, expected, atol=1e-6)
    for mine, theirs in zip(ours, gradients, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
