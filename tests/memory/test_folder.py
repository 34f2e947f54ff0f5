import errno
import json
import re
import resource

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.folder import load_memory, load_optional_fields, save_memory
from worldstereo_jax.memory.folder_format import FILES, VERSION, bind_axes, find_field
from worldstereo_jax.memory.global_geometric import init_global_memory, insert_points
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes


@pytest.fixture(scope="module")
def memories(room):
    points = insert_points(
        init_global_memory(20),
        room.bank.images[0, 0, :25],
        room.bank.images[1, 0, :25],
        jnp.arange(25) % 2 == 0,
    )
    bank = room.bank
    stereo = insert_keyframes(
        init_spatial_memory(3, 80, 112), bank.images, bank.depth, bank.w2c, bank.intrinsics
    )
    return points, stereo


@pytest.fixture
def folder(memories, tmp_path):
    save_memory(tmp_path / "memory", *memories, model="tiny-1")
    return tmp_path / "memory"


def _refused(folder, words, model="tiny-1"):
    with pytest.raises(InputError) as caught:
        load_memory(folder, model=model)
    message = str(caught.value)
    assert words in message
    assert "\n" not in message
    return message


@pytest.mark.row("S33")
def test_saved_and_loaded_is_the_same_bit_by_bit(memories, folder):
    loaded = load_memory(folder, model="tiny-1")
    assert jax.tree.structure(loaded) == jax.tree.structure(memories)
    for a, b in zip(jax.tree.leaves(memories), jax.tree.leaves(loaded), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    assert int(loaded[1].overflow) == 1
    assert load_optional_fields(folder) == {}


def test_a_disk_that_refuses_leaves_nothing_and_says_why(memories, tmp_path):
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(OSError, match="too large") as caught:
            save_memory(tmp_path / "memory", *memories, model="tiny-1")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(tmp_path / "memory"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.row("S33")
def test_an_empty_memory_and_an_overflowing_one_come_back(tmp_path):
    empty = init_global_memory(5), init_spatial_memory(2, 16, 32)
    save_memory(tmp_path / "m", *empty, model="x")
    for a, b in zip(
        jax.tree.leaves(empty), jax.tree.leaves(load_memory(tmp_path / "m", model="x")), strict=True
    ):
        np.testing.assert_array_equal(a, b)


def _stored_fields(v=3, n=11):
    """One array for every optional field of rows S1 to S8."""
    rng = np.random.default_rng(0)

    def real(*shape):
        return rng.normal(size=shape).astype(np.float32)

    return {
        "names": np.zeros((v, 12), np.uint8),
        "latents": real(v, 10, 14, 16),
        "pyramid.0": rng.integers(-128, 127, (n, 32)).astype(np.int8),
        "pyramid_scale.0": real(32),
        "pyramid.1": real(n, 64),
        "descriptor.census": rng.integers(0, 255, (n, 8)).astype(np.uint8),
        "position": real(n, 3),
        "normal": real(n, 3),
        "views": rng.integers(0, 2**32, (n, 2)).astype(np.uint32),
        "direction": real(n, 3),
        "distance": real(n),
        "footprint": real(n),
        "entry_confidence": real(n),
        "pairs": np.array([[0, 1], [2, 0]], np.int32),
        "dense_pixels": real(2, 80, 112, 2),
        "dense_valid": rng.random((2, 80, 112)) < 0.5,
        "sparse_pixels": real(7, 4),
        "sparse_pair": np.zeros((7,), np.int32),
        "patch_share": real(2, 35, 35),
    }


@pytest.mark.row("S33")
@pytest.mark.parametrize("row", [f"S{i}" for i in range(1, 9)])
def test_the_format_has_a_place_for_each_row(row):
    assert any(field.row == row for field in FILES["spatial_stereo"].values())


@pytest.mark.row("S33")
def test_optional_fields_of_every_row_are_kept(memories, tmp_path):
    stored = _stored_fields()
    optional = {name for name, field in FILES["spatial_stereo"].items() if field.optional}
    assert {name.partition(".")[0] for name in stored} == optional
    save_memory(tmp_path / "m", *memories, model="tiny-1", optional=stored)
    load_memory(tmp_path / "m", model="tiny-1")
    found = load_optional_fields(tmp_path / "m")
    assert found.keys() == stored.keys()
    for name, value in stored.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("colour", np.zeros((3,), np.float32), "no field 'colour'"),
        ("pyramid", np.zeros((3, 4), np.float32), "no field 'pyramid'"),
        ("normal", np.zeros((11, 2), np.float32), "field 'normal' must have shape [n 3]"),
        ("normal", np.zeros((11, 3), np.int32), "field 'normal' must be of type F32"),
        ("dense_valid", np.zeros((2, 80, 100), bool), "field 'dense_valid' must have shape"),
    ],
)
def test_an_array_that_does_not_fit_is_not_written(memories, tmp_path, name, value, words):
    with pytest.raises(InputError, match=re.escape(words)):
        save_memory(tmp_path / "m", *memories, model="x", optional={name: value})
    assert not list(tmp_path.iterdir())


def test_saving_again_replaces_a_memory_but_nothing_else(memories, folder, tmp_path):
    save_memory(folder, init_global_memory(5), memories[1], model="tiny-1")
    assert load_memory(folder, model="tiny-1")[0].capacity == 5
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("irreplaceable")
    with pytest.raises(InputError, match="no memory folder"):
        save_memory(other, *memories, model="tiny-1")
    assert (other / "chapter.txt").read_text() == "irreplaceable"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["memory", "thesis"]


def test_missing_folder_and_files(folder, tmp_path):
    _refused(tmp_path / "nowhere", "does not exist")
    (folder / "global_geometric.safetensors").unlink()
    _refused(folder, "has no global_geometric.safetensors")
    (folder / "memory.json").unlink()
    _refused(folder, "has no memory.json")


def test_another_version_model_or_format(folder):
    _refused(folder, "'tiny-1', not by 'tiny-2'", model="tiny-2")
    path = folder / "memory.json"
    header = json.loads(path.read_text())
    path.write_text(json.dumps(header | {"version": VERSION + 1}))
    _refused(folder, f"format version {VERSION + 1}")
    path.write_text(json.dumps(header | {"format": "shopping-list"}))
    _refused(folder, "does not describe a memory")
    path.write_text(json.dumps(header | {"image_size": [80, "wide"]}))
    _refused(folder, "image_size")
    path.write_text(json.dumps(header | {"spatial_stereo": {"capacity": 3}}))
    _refused(folder, "capacity, count and overflow")
    path.write_text("{")
    _refused(folder, "not valid JSON")


@pytest.mark.row("S33")
def test_a_folder_of_the_first_version_has_measured_all_its_depth(memories, folder):
    path, header = folder / "spatial_stereo.safetensors", folder / "memory.json"
    arrays = load_file(path)
    measured = arrays.pop("measured")
    assert measured.all()
    save_file(arrays, path)
    _refused(folder, "no field 'measured'")
    header.write_text(json.dumps(json.loads(header.read_text()) | {"version": 1}))
    loaded = load_memory(folder, model="tiny-1")
    for a, b in zip(jax.tree.leaves(memories), jax.tree.leaves(loaded), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("bank", ["spatial_stereo", "global_geometric"])
def test_a_capacity_beyond_all_memory_is_refused(folder, bank):
    path = folder / "memory.json"
    header = json.loads(path.read_text())
    header[bank]["capacity"] = 10**13
    path.write_text(json.dumps(header))
    _refused(folder, "no room for capacities of")


@pytest.mark.parametrize("keep", [0, 5, 60, 1000, -1])
def test_truncated_safetensors(folder, keep):
    path = folder / "spatial_stereo.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    _refused(folder, "spatial_stereo.safetensors")


def test_damaged_and_foreign_safetensors(folder):
    path = folder / "spatial_stereo.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole + b"more")
    _refused(folder, "truncated or damaged")
    path.write_bytes(whole[:8] + b"\xff" + whole[9:])
    _refused(folder, "header is unreadable")
    arrays = load_file_from(whole, path)
    save_file({"weights": np.zeros((2, 2), np.float32)}, path)
    _refused(folder, "no field 'images'")
    save_file(arrays | {"w2c": arrays["w2c"][:2]}, path)
    _refused(folder, "field 'w2c' must have shape")
    save_file(arrays | {"depth": arrays["depth"].astype(np.float16)}, path)
    _refused(folder, "field 'depth' must be of type F32")
    save_file(arrays | {"w2c": arrays["w2c"] * np.float32("nan")}, path)
    _refused(folder, "not finite")
    depth = arrays["depth"].copy()
    depth[1, 3, 4] = np.inf
    save_file(arrays | {"depth": depth}, path)
    _refused(folder, "field 'depth' holds numbers that are not finite")
    save_file({name: value[:2] for name, value in arrays.items()}, path)
    _refused(folder, "holds 2 slots, but memory.json counts 3")


def load_file_from(whole, path):
    path.write_bytes(whole)
    return load_file(path)


def test_axes_bind_consistently():
    field = find_field("spatial_stereo", "dense_pixels")
    sizes = {"h": 8}
    assert bind_axes(field, (2, 8, 9, 2), sizes)
    assert sizes == {"p": 2, "h": 8, "w": 9}
    assert not bind_axes(field, (2, 8, 10, 2), sizes)
    assert find_field("spatial_stereo", "pyramid.") is None
    assert find_field("spatial_stereo", "depth.0") is None
