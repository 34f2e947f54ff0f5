"""The rule table: every tensor once, both ways, faults by name."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_model import SMALL, random_params
from worldstereo_jax.config import get_preset
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import flat_paths, stack, unstack
from worldstereo_jax.interop.official import (
    infer_config,
    model_places,
    official_from_params,
    official_shapes,
    parameter_shapes,
    params_from_official,
)
from worldstereo_jax.interop.safetensors_io import SafetensorsFile

FULL = SMALL.replace(image_width=6)


@pytest.fixture(scope="module")
def tensors():
    return official_from_params(random_params(FULL), FULL)


def assert_trees_equal(a, b):
    a, b = flat_paths(a), flat_paths(b)
    assert a.keys() == b.keys()
    for path in a:
        np.testing.assert_array_equal(a[path], b[path])


@pytest.mark.parametrize("name", ["camera_model", "memory_model"])
def test_official_files_round_trip_bit_for_bit(goldens_dir, name):
    file = SafetensorsFile(goldens_dir / f"{name}.safetensors")
    config = infer_config(file.shapes, num_heads=2, control_num_heads=2)
    back = official_from_params(params_from_official(file, config), config)
    assert set(back) == set(file)
    for tensor in file:
        assert back[tensor].dtype == file[tensor].dtype
        np.testing.assert_array_equal(back[tensor], file[tensor])


def test_every_size_is_read_from_the_shapes(tensors):
    shapes = {name: array.shape for name, array in tensors.items()}
    assert infer_config(shapes, num_heads=2, control_num_heads=2) == FULL
    assert {name: tuple(shape) for name, shape in shapes.items()} == official_shapes(FULL)


@pytest.mark.parametrize("scan", [True, False])
def test_our_parameters_round_trip_bit_for_bit(tensors, scan):
    config = FULL.replace(scan_layers=scan)
    params = jax.tree.map(np.asarray, random_params(FULL))
    params = params if scan else unstack(params, FULL)
    assert_trees_equal(params_from_official(tensors, config), params)
    again = official_from_params(params, config)
    assert set(again) == set(tensors)
    for name in tensors:
        np.testing.assert_array_equal(again[name], tensors[name])


def test_each_tensor_has_one_place_and_each_place_one_tensor():
    for config in (FULL, get_preset("tiny"), get_preset("wan_14b_memory")):
        table, shapes = model_places(config), parameter_shapes(config)
        rows = [(place.path, place.index) for place in table.values()]
        assert len(set(rows)) == len(rows)
        expected = sum(shape[0] if "/layers/" in path else 1 for path, shape in shapes.items())
        assert len(rows) == expected


def test_the_14b_memory_model_has_the_published_number_of_tensors():
    assert len(model_places(get_preset("wan_14b_memory"))) == 1799


def test_values_keep_their_type(tensors):
    low = {name: np.asarray(array).astype(jnp.bfloat16) for name, array in tensors.items()}
    params = params_from_official(low, FULL)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.bfloat16)}


def test_faults_name_tensor_and_file(tensors):
    name = "blocks.1.attn1.to_q.weight"
    with pytest.raises(InputError, match=r"x\.safetensors: tensor blocks\.9\.q belongs to no"):
        params_from_official({**tensors, "blocks.9.q": np.ones(2)}, FULL, source="x.safetensors")
    with pytest.raises(InputError, match=rf"tensor {name} has shape \[3, 4\], expected \[24, 24\]"):
        params_from_official({**tensors, name: np.ones((3, 4))}, FULL)
    fewer = {key: value for key, value in tensors.items() if key != name}
    with pytest.raises(InputError, match=f"tensor {name} is missing"):
        params_from_official(fewer, FULL)
    with pytest.raises(InputError, match="control_num_heads is missing"):
        infer_config(official_shapes(FULL), num_heads=2)
    with pytest.raises(InputError, match="show mask_downsample 1, expected 4"):
        infer_config(official_shapes(FULL), num_heads=2, control_num_heads=2, mask_downsample=4)


def test_what_is_missing_may_come_from_a_base(tensors):
    name = "blocks.1.attn1.to_q.weight"
    fewer = {key: value for key, value in tensors.items() if key != name}
    base = jax.tree.map(np.zeros_like, random_params(FULL))
    flat = official_from_params(params_from_official(fewer, FULL, base=base), FULL)
    np.testing.assert_array_equal(flat[name], 0)
    np.testing.assert_array_equal(
        flat["blocks.0.attn1.to_q.weight"], tensors["blocks.0.attn1.to_q.weight"]
    )


def test_tensors_without_use_are_skipped(tensors):
    extra = {
        "ref_index_embedding": np.ones((21, 24)),
        "blocks.2.attn2.norm_added_q.weight": np.ones(24),
    }
    found = params_from_official({**tensors, **extra}, FULL)
    assert_trees_equal(found, params_from_official(tensors, FULL))


def test_stacking_and_unstacking_are_inverse():
    params = jax.tree.map(np.asarray, random_params(FULL))
    unrolled = unstack(params, FULL)
    shapes = {path: np.shape(leaf) for path, leaf in flat_paths(unrolled).items()}
    assert shapes == parameter_shapes(FULL.replace(scan_layers=False))
    assert_trees_equal(stack(unrolled, FULL), params)
