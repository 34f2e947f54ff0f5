"""Adapters: where they are, that they start as nothing, and that only they train."""

import jax
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec

from tests.models.small_model import SMALL, inputs, random_params, run_alike
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import flat_paths, from_flat
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.training.lora import ATTENTION, LoraConfig, init_adapters, scaled
from worldstereo_jax.training.sharding import TrainLayout, parse_mesh
from worldstereo_jax.training.state import init_train_state, join, make_train_step

CONFIG = SMALL.replace(warped_width=0, entry_width=0, remat="full")
SHAPES = parameter_shapes(CONFIG)
LORA = LoraConfig(rank=3, alpha=6.0, modules=(*ATTENTION, "ffn"))


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


def adapters_of(lora=LORA, seed=0):
    return init_adapters(SHAPES, lora, jax.random.key(seed))


def drawn(adapters):
    """The same layers, with values everywhere."""
    rng = np.random.default_rng(1)
    values = jax.tree.map(lambda x: (0.2 * rng.normal(size=x.shape)).astype(x.dtype), adapters)
    return jax.device_put(values)


def test_the_chosen_layers_have_adapters_drawn_from_keys_of_their_own():
    adapters = jax.device_get(flat_paths(adapters_of(LORA.replace(modules=ATTENTION))))
    layers = {path.rpartition("/adapter/")[0] for path in adapters}
    attention = ("query", "key", "value", "out")
    assert layers == {
        f"{run}/layers/{branch}/{name}"
        for run, branch in (
            ("controlled", "backbone/self_attention"), ("controlled", "backbone/cross_attention"),
            ("controlled", "control/attention"), ("blocks", "backbone/self_attention"),
            ("blocks", "backbone/cross_attention"),
        )
        for name in attention
    }  # fmt: skip
    down = adapters["controlled/layers/control/attention/query/adapter/a"]
    assert down.shape == (2, 16, 3)
    assert 0.2 < np.abs(down).max() <= 0.25
    # Not alike: the layers of a stack, and two maps of one layer.
    assert not np.array_equal(down[0], down[1])
    assert not np.array_equal(down, adapters["controlled/layers/control/attention/key/adapter/a"])
    for path, array in adapters.items():
        assert path.endswith("/a") or not np.asarray(array).any(), path
    # What else is chosen changes nothing.
    more = flat_paths(adapters_of())
    assert more.keys() > adapters.keys()
    for path, array in adapters.items():
        np.testing.assert_array_equal(more[path], array)


def test_modules_without_a_linear_layer_and_ranks_that_are_none_are_refused():
    with pytest.raises(InputError, match="no parameters belong to a module 'to_q'"):
        adapters_of(LORA.replace(modules=("to_q",)))
    with pytest.raises(InputError, match="no linear layers belong to patch_embedding"):
        adapters_of(LORA.replace(modules=("patch_embedding",)))
    with pytest.raises(InputError, match="rank of adapters is 0"):
        adapters_of(LORA.replace(rank=0))


def test_untrained_adapters_change_no_bit_and_trained_ones_are_their_product(params):
    """Of scanned layers; merged by numpy: W + alpha / rank A B."""
    adapters, given = adapters_of(), inputs()
    plain = run_alike(params, CONFIG, **given)
    untouched = run_alike(join(params, scaled(adapters, LORA)), CONFIG, **given)
    np.testing.assert_array_equal(untouched, plain)
    adapters = drawn(adapters)
    merged, flat = dict(flat_paths(params)), flat_paths(adapters)
    for path in flat:
        if path.endswith("/adapter/a"):
            layer = path.removesuffix("adapter/a")
            product = np.asarray(flat[path]) @ np.asarray(flat[f"{layer}adapter/b"])
            merged[f"{layer}kernel"] = np.asarray(merged[f"{layer}kernel"]) + 2 * product
    found = run_alike(join(params, scaled(adapters, LORA)), CONFIG, **given)
    expected = run_alike(jax.device_put(from_flat(merged)), CONFIG, **given)
    plain, found, expected = map(np.asarray, (plain, found, expected))
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    assert np.abs(found - plain).max() > 0.1 * np.abs(plain).max()


TRAINED = CONFIG.replace(num_layers=2)
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-2))
STEPS = 12


def start():
    return init_adapters(parameter_shapes(TRAINED), LORA, jax.random.key(0))


def trained_on(model, layout=None):
    """State and losses after some steps towards a target, with the base beside the batch."""

    def loss(adapters, given, key):
        base, clip = given
        held = join(base, scaled(adapters, LORA))
        return ((model.apply({"params": held}, **clip) - 1) ** 2).mean(), {}

    adapters, params, key = start(), random_params(TRAINED), jax.random.key(0)
    if layout is None:
        begin = jax.jit(lambda adapters, key: init_train_state(adapters, OPTIMIZER, key))
        state, places = begin(adapters, key), None
    else:
        state = layout.init_state(adapters, OPTIMIZER, key)
        places = layout.state(state)
        params = jax.device_put(params, layout.parameters(params))
    step, losses = make_train_step(loss, OPTIMIZER, places=places), []
    for _ in range(STEPS):
        state, metrics = step(state, (params, inputs()))
        losses.append(float(metrics["loss"]))
    return state, losses, params


@pytest.fixture(scope="module")
def trained():
    return trained_on(WorldStereo(TRAINED))


def test_only_adapters_train_and_only_they_are_kept(trained):
    state, losses, base = trained
    assert losses[-1] < 0.9 * losses[0], losses
    for path, array in flat_paths(random_params(TRAINED)).items():
        np.testing.assert_array_equal(flat_paths(base)[path], array)
    began = flat_paths(start())
    for path, array in flat_paths(state.params).items():
        assert not np.array_equal(array, began[path]), path
    # Parameters, two moments, an average; and counters.
    size = sum(array.nbytes for array in began.values())
    kept = sum(leaf.nbytes for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert kept == 4 * size


def test_on_a_mesh_they_train_alike(trained):
    """Base, adapters and samples split over eight devices."""
    layout = TrainLayout(parse_mesh("data=2,fsdp=2,model=2"), smallest=64)
    state, losses, base = trained_on(layout.model(TRAINED), layout)
    np.testing.assert_allclose(losses, trained[1], rtol=1e-3)
    down = flat_paths(state.params)["controlled/layers/backbone/self_attention/out/adapter/a"]
    assert down.sharding.spec == PartitionSpec(None, "model", None)
    kernel = flat_paths(base)["controlled/layers/backbone/self_attention/out/kernel"]
    assert kernel.sharding.spec == PartitionSpec(None, "model", "fsdp")
    for path, array in flat_paths(layout.gather(state.params)).items():
        expected = np.asarray(flat_paths(trained[0].params)[path])
        np.testing.assert_allclose(array, expected, atol=2e-3, err_msg=path)
