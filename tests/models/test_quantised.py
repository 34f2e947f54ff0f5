"""8-bit weights: a quarter of the bytes, nearly the same output; stacks layer by layer."""

import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.official_modules import normal
from tests.models.small_model import random_params
from worldstereo_jax.config import ControlConfig, ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import flat_paths, unstack
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.models.quantised import quantise_params, quantised_model
from worldstereo_jax.models.worldstereo import WorldStereo, smallest_inputs
from worldstereo_jax.training.lora import LoraConfig, init_adapters
from worldstereo_jax.training.official_objective import in_compute_type
from worldstereo_jax.training.state import join

CONFIG = ModelConfig(
    width=32, num_layers=2, num_heads=2, ffn_width=96, text_dim=8, freq_dim=8, camera_width=None,
    control=ControlConfig(
        width=16, ffn_width=32, num_heads=2, num_layers=2, embed_width=32, mid_channels=8
    ),
)  # fmt: skip


def total(params) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(params))


@pytest.fixture(scope="module")
def inputs():
    given = smallest_inputs(CONFIG)
    given["latent"] = normal(0, 1, 2, 4, 4, 36)
    given["text"] = normal(1, 1, 5, 8)
    control = given["control"]
    given["control"] = control.replace(
        render_latent=normal(2, 1, 2, 4, 4, 16),
        render_mask=jnp.zeros((1, 2, 32, 32, 1)),
        plucker=normal(3, 1, 2, 32, 32, 6),
    )
    return {**given, "timestep": jnp.array([500.0])}


@pytest.mark.parametrize(("kind", "bound"), [("int8", 0.02), ("float8", 0.1)])
def test_a_quarter_of_the_bytes_gives_nearly_the_same(inputs, kind, bound):
    pytest.importorskip("qwix", reason="the quantise extra is not installed")
    params = random_params(CONFIG)
    expected = jax.jit(WorldStereo(CONFIG).apply)({"params": params}, **inputs)
    matrices = sum(
        array.size
        for path, array in flat_paths(params).items()
        if "/layers/" in path and path.endswith("kernel") and "modulation" not in path
    )
    emptied = jax.tree.map(lambda a: a, params)
    small = quantise_params(emptied, CONFIG, kind)
    assert not emptied
    # Three of four bytes of every matrix in the layers are saved, but for a float32 scale of each
    # output channel, which stands beside 16 to 96 bytes.
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(small) if leaf.itemsize == 1) == matrices
    assert 2.7 * matrices < total(params) - total(small) < 3 * matrices
    found = jax.jit(quantised_model(CONFIG, kind).apply)({"params": small}, **inputs)
    error = (
        np.abs(np.asarray(found) - np.asarray(expected)).max() / np.abs(np.asarray(expected)).max()
    )
    assert 0 < error < bound


def test_adapters_beside_8_bits_have_the_gradient_of_the_weights_that_these_stand_for(inputs):
    """Through layers that are computed again on the way back, as in training."""
    pytest.importorskip("qwix", reason="the quantise extra is not installed")
    config = CONFIG.replace(remat="full")
    adapters = init_adapters(parameter_shapes(config), LoraConfig(2, 2.0), jax.random.key(0))
    adapters = jax.tree.map(lambda x: np.float32(0.2) * np.asarray(normal(5, *x.shape)), adapters)
    small = quantise_params(random_params(config), config, "int8")

    def brought_out(leaf):
        if not hasattr(leaf, "array"):
            return leaf
        return np.asarray(leaf.array.qvalue).astype(np.float32) * np.asarray(leaf.array.scale)

    def loss(model):
        def of(adapters, params):
            return (model.apply({"params": join(adapters, params)}, **inputs) ** 2).mean()

        return of

    def gradient(model, params):
        return flat_paths(jax.jit(jax.grad(loss(model)))(adapters, params))

    found = gradient(quantised_model(config, "int8"), small)
    whole = jax.tree.map(brought_out, small, is_leaf=lambda leaf: hasattr(leaf, "array"))
    for path, expected in gradient(WorldStereo(config), whole).items():
        size = np.abs(expected).max()
        np.testing.assert_allclose(found[path], expected, atol=1e-4 * size, err_msg=path)
        assert size > 0, path
    # Computed in bfloat16, too: the products then have factors of two types.
    low = quantised_model(config.replace(dtype="bfloat16"), "int8")
    given = in_compute_type((adapters, small), "bfloat16")
    for leaf in jax.tree.leaves(jax.eval_shape(jax.grad(loss(low)), *given)):
        assert leaf.dtype == jnp.bfloat16


def test_every_layer_of_a_stack_has_scales_of_its_own():
    pytest.importorskip("qwix", reason="the quantise extra is not installed")
    params = random_params(CONFIG)
    # One layer far larger than the other, which common scales would round to nothing.
    leaf = params["controlled"]["layers"]["backbone"]["ffn"]["up"]
    larger = np.array([1.0, 1000.0], np.float32)[:, None, None]
    leaf["kernel"] = jax.device_put(np.asarray(leaf["kernel"]) * larger)
    alone = quantise_params(unstack(params, CONFIG), CONFIG.replace(scan_layers=False), "int8")
    stacked = quantise_params(params, CONFIG, "int8")
    expected = stack_rows(alone)
    for path, leaf in flat_paths(stacked).items():
        for ours, theirs in zip(
            jax.tree.leaves(leaf), jax.tree.leaves(expected[path]), strict=True
        ):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def stack_rows(params):
    """Unrolled parameters by the paths of stacked ones, also where an array has scales."""
    flat, found = flat_paths(params), {}
    for path, leaf in flat.items():
        name = re.sub(r"/layer_\d+/", "/layers/", path)
        found.setdefault(name, []).append(leaf)
    return {
        name: jax.tree.map(lambda *rows: np.stack(rows), *rows) if "/layers/" in name else rows[0]
        for name, rows in found.items()
    }


def test_what_cannot_be_had_is_named(monkeypatch):
    with pytest.raises(InputError, match="kind 'int3', expected one of int8, float8"):
        quantised_model(CONFIG, "int3")
    monkeypatch.setitem(sys.modules, "qwix", None)
    with pytest.raises(InputError, match="need the quantise extra"):
        quantised_model(CONFIG, "int8")
