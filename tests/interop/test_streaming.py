"""Weights tensor by tensor onto any mesh: each exactly once, faults before anything is read."""

import json
import os
import threading

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.models.small_model import SMALL, random_params
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop import streaming
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.interop.official import (
    model_places,
    official_from_params,
    parameter_shapes,
)
from worldstereo_jax.interop.safetensors_io import write_safetensors
from worldstereo_jax.interop.streaming import _ByteBudget, stream_params
from worldstereo_jax.interop.tensor_source import WeightFiles, open_weights
from worldstereo_jax.models.placement import one_device, split_widest_axis, tensor_parallel
from worldstereo_jax.models.quantised import quantise_params, quantiser

CONFIG = SMALL.replace(num_layers=2, control=None)
TABLE = (model_places(CONFIG), parameter_shapes(CONFIG))


@pytest.fixture(scope="module")
def params():
    return random_params(CONFIG)


@pytest.fixture(scope="module")
def official(params):
    return official_from_params(params, CONFIG)


def write_shards(folder, tensors, count=3):
    """Shards with an index, as the hub has them."""
    names = sorted(tensors)
    weight_map = {}
    for shard in range(count):
        file = f"model-{shard + 1:05}-of-{count:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::count]}
        write_safetensors(folder / file, part)
        weight_map |= dict.fromkeys(part, file)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory, official):
    return write_shards(tmp_path_factory.mktemp("shards"), official)


def assert_params(found, expected, dtype=np.float32):
    found, expected = flat_paths(found), flat_paths(expected)
    assert found.keys() == expected.keys()
    for path, array in expected.items():
        assert found[path].dtype == dtype
        np.testing.assert_array_equal(found[path], np.asarray(array).astype(dtype))


def test_shards_become_parameters(folder, params, capsys):
    loaded = stream_params([open_weights(folder)], *TABLE, progress=True)
    assert_params(loaded.params, params)
    assert loaded.unused == loaded.overlaid == []
    assert "100%" in capsys.readouterr().err


def test_parameters_are_split_over_a_mesh_in_the_type_asked_for(folder, params):
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
    # Room for one tensor at a time: threads wait for each other.
    loaded = stream_params(
        [open_weights(folder)], *TABLE, dtype=jnp.bfloat16,
        placement=split_widest_axis(mesh, "model"), host_bytes=1,
    )  # fmt: skip
    assert_params(loaded.params, params, ml_dtypes.bfloat16)
    flat = flat_paths(loaded.params)
    up = flat["blocks/layers/backbone/ffn/up/kernel"]
    assert up.shape == (2, 24, 32)
    assert up.sharding == NamedSharding(mesh, PartitionSpec(None, None, "model"))
    assert up.addressable_shards[0].data.shape == (2, 24, 8)
    bias = flat["blocks/layers/backbone/ffn/up/bias"]
    assert bias.sharding.is_fully_replicated


def test_every_bit_of_a_file_arrives(tmp_path, official):
    """Subnormal values and signs of zero included, in every layout; of NaN that it is one."""
    rng = np.random.default_rng(0)
    tensors = {
        name: rng.integers(0, 1 << 16, array.shape, np.uint16).view(ml_dtypes.bfloat16)
        for name, array in official.items()
    }
    write_safetensors(tmp_path / "model.safetensors", tensors)
    mesh = Mesh(np.array(jax.devices()[:2]), ("model",))
    loaded = stream_params(
        [open_weights(tmp_path)], *TABLE, dtype=jnp.bfloat16,
        placement=tensor_parallel(mesh, "model"),
    )  # fmt: skip
    found = official_from_params(loaded.params, CONFIG)
    for name, array in tensors.items():
        none = np.isnan(array.astype(np.float32))
        np.testing.assert_array_equal(np.isnan(found[name].astype(np.float32)), none)
        ours, theirs = (np.where(none, 0, x.view(np.uint16)) for x in (found[name], array))
        np.testing.assert_array_equal(ours, theirs)


def test_what_was_read_is_not_copied_on_the_host(folder, monkeypatch):
    """Only where another type is asked for, and then once."""
    read, handed = {}, []
    read_one, put = WeightFiles.__getitem__, streaming._DeviceArrays.put

    def reading(self, name):
        read[name] = read_one(self, name)
        return read[name]

    def putting(self, place, value):
        handed.append(any(np.shares_memory(value, array) for array in list(read.values())))
        put(self, place, value)

    monkeypatch.setattr(WeightFiles, "__getitem__", reading)
    monkeypatch.setattr(streaming._DeviceArrays, "put", putting)
    for dtype, shared in ((None, True), (jnp.bfloat16, False)):
        stream_params([open_weights(folder)], *TABLE, dtype=dtype)
        assert set(handed) == {shared}
        handed.clear()


@pytest.mark.parametrize(("processors", "threads"), [(1, 4), (8, 8), (96, 16)])
def test_as_many_tensors_are_read_at_a_time_as_there_are_processors(
    monkeypatch, processors, threads
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(processors)), raising=False)
    assert streaming._processors() == threads


def test_a_checkpoint_lies_over_its_base(tmp_path, folder, official, params):
    name = "blocks.1.attn1.to_q.weight"
    extra = {"blocks.0.attn2.norm_added_q.weight": np.ones(24, np.float32)}
    write_safetensors(tmp_path / "over.safetensors", {name: 2 * official[name], **extra})
    over = open_weights(tmp_path / "over.safetensors")
    loaded = stream_params([open_weights(folder), over], *TABLE)
    expected = official_from_params(params, CONFIG)
    expected[name] = 2 * expected[name]
    found = official_from_params(loaded.params, CONFIG)
    for key in expected:
        np.testing.assert_array_equal(found[key], expected[key])
    (overlaid,) = loaded.overlaid
    assert overlaid.startswith(f"{name} ({folder}")
    assert loaded.unused == [
        f"blocks.0.attn2.norm_added_q.weight ({tmp_path / 'over.safetensors'})"
    ]
    with pytest.raises(InputError, match=r"tensor .* and \d+ more is missing, and no base"):
        stream_params([over], *TABLE)


def test_faults_are_found_before_anything_is_read(tmp_path, official, monkeypatch):
    def refuse(*_):
        raise AssertionError("a tensor was read")

    monkeypatch.setattr(WeightFiles, "__getitem__", refuse)
    name = "blocks.1.attn1.to_q.weight"
    write_safetensors(tmp_path / "a.safetensors", {**official, name: np.ones((2, 3))})
    with pytest.raises(
        InputError, match=rf"a\.safetensors: tensor {name} has shape \[2, 3\], expected \[24, 24\]"
    ):
        stream_params([open_weights(tmp_path)], *TABLE)
    write_safetensors(tmp_path / "a.safetensors", {**official, "odd": np.ones(2)})
    with pytest.raises(InputError, match=r"a\.safetensors: tensor odd belongs to no"):
        stream_params([open_weights(tmp_path)], *TABLE)
    raw = (tmp_path / "a.safetensors").read_bytes()
    (tmp_path / "a.safetensors").write_bytes(raw[:-5])
    with pytest.raises(InputError, match="truncated"):
        open_weights(tmp_path)


def test_folders_that_are_not_in_order_are_refused(tmp_path, official):
    with pytest.raises(InputError, match=r"no \.safetensors file"):
        open_weights(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"pytorch_model\.bin: pickled .* convert the file once"):
        open_weights(tmp_path)
    write_shards(tmp_path, {"a": np.ones(2), "b": np.ones(3)}, count=2)
    assert open_weights(tmp_path).shapes == {"a": (2,), "b": (3,)}
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {"c": np.ones(1)})
    with pytest.raises(InputError, match=r"00002\.safetensors: lacks tensor b"):
        open_weights(tmp_path)
    write_safetensors(tmp_path / "model-00002-of-00002.safetensors", {"a": np.ones(1)})
    with pytest.raises(InputError, match=r"tensor a is in model-00001"):
        open_weights(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(InputError, match="no such weights file"):
        open_weights(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../x.safetensors"}}))
    with pytest.raises(InputError, match="outside of its folder"):
        open_weights(tmp_path)
    index.write_text("[]")
    with pytest.raises(InputError, match="not a readable index"):
        open_weights(tmp_path)


def test_a_fault_while_reading_ends_the_loading(folder, monkeypatch):
    def fail(self, name):
        raise OSError("the disk went away")

    monkeypatch.setattr(WeightFiles, "__getitem__", fail)
    with pytest.raises(OSError, match="went away"):
        stream_params([open_weights(folder)], *TABLE, placement=one_device)


def test_tensors_under_way_never_exceed_the_budget():
    budget, most, now = _ByteBudget(10), 0, 0
    lock = threading.Lock()

    def work(size):
        nonlocal most, now
        with budget.taken(size):
            with lock:
                now += size
                most = max(most, now)
            with lock:
                now -= size

    sizes = [3, 4, 5, 2, 10, 6] * 20
    workers = [threading.Thread(target=work, args=(size,)) for size in sizes]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=10)
    assert 0 < most <= 10
    with budget.taken(99):
        pass


@pytest.mark.parametrize("kind", ["int8", "float8"])
def test_quantised_while_read_is_as_quantised_afterwards(folder, params, kind):
    pytest.importorskip("qwix", reason="the quantise extra is not installed")
    expected = quantise_params(jax.tree.map(jnp.asarray, params), CONFIG, kind)
    mesh = Mesh(np.array(jax.devices()[:4]), ("model",))
    placement = {"int8": tensor_parallel(mesh, "model"), "float8": one_device}[kind]
    loaded = stream_params(
        [open_weights(folder)], *TABLE, keep=quantiser(CONFIG, kind), placement=placement
    )
    assert jax.tree.structure(loaded.params) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(loaded.params), jax.tree.leaves(expected), strict=True):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    if kind == "int8":
        # Split as in full, and the scales with their channels.
        for leaf in jax.tree.leaves(
            flat_paths(loaded.params)["blocks/layers/backbone/ffn/up/kernel"]
        ):
            assert leaf.sharding.spec == PartitionSpec(None, None, "model")
