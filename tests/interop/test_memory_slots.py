"""Modules for warps and entries that an official checkpoint is given, and keeps through files."""

import jax
import numpy as np
import pytest

from tests.models.small_model import random_params
from tests.toy_official import CONTROL, MODEL, WORLDSTEREO, official_tensors, write_checkpoint
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.conversion import convert_to_orbax
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.interop.memory_slots import (
    attach_memory,
    read_widths,
    slot_tensors,
    slot_widths,
)
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.interop.official_export import export_official
from worldstereo_jax.interop.pretrained import from_pretrained
from worldstereo_jax.interop.safetensors_io import SafetensorsFile

WIDTHS = {"warped_width": 17, "entry_width": 90}
LAYERS = MODEL.replace(num_layers=3, scan_layers=True)
KEY = jax.random.key(4)


@pytest.mark.row("S18")
@pytest.mark.row("S28")
@pytest.mark.parametrize("scan", [True, False])
def test_what_is_attached_has_the_models_shapes_and_ends_in_zeros(scan):
    model = LAYERS.replace(scan_layers=scan)
    params = random_params(model)
    config, grown = attach_memory(model, params, KEY, **WIDTHS)
    assert config == model.replace(**WIDTHS)
    flat, before = flat_paths(grown), flat_paths(params)
    assert {path: leaf.shape for path, leaf in flat.items()} == parameter_shapes(config)
    for path, leaf in before.items():
        np.testing.assert_array_equal(flat[path], leaf)
    new = sorted(set(flat) - set(before))
    assert len({path.split("/")[-3] for path in new if path.endswith("out/kernel")}) == 2
    for path in new:
        array = np.asarray(flat[path])
        assert array.any() == (not path.endswith(("out/kernel", "project/kernel", "bias"))), path
        assert array.dtype == np.asarray(before["patch_embedding/kernel"]).dtype
    # Every layer's own, drawn as the model draws them: uniform of one variance.
    rows = [np.asarray(flat[p]) for p in new if p.endswith("entry_attention/query/kernel")]
    rows = [row for part in rows for row in (part if scan else [part])]
    assert len(rows) == 3
    assert len({float(row.ravel()[0]) for row in rows}) == 3


def test_one_kind_alone_and_what_cannot_be_attached():
    params = random_params(MODEL)
    config, grown = attach_memory(MODEL, params, KEY, entry_width=90)
    assert slot_widths(config) == {"entry_width": 90}
    assert {name.split(".")[2] for name in slot_tensors(config)} == {"entry_attn"}
    assert {p: x.shape for p, x in flat_paths(grown).items()} == parameter_shapes(config)
    with pytest.raises(InputError, match="nothing to attach"):
        attach_memory(MODEL, params, KEY)
    with pytest.raises(InputError, match="has a entry_width of 90 already"):
        attach_memory(config, grown, KEY, entry_width=90)
    assert slot_tensors(MODEL) == []
    assert read_widths() == WIDTHS


def test_it_is_saved_and_loaded_in_both_layouts_and_its_tensors_are_named(tmp_path):
    config, params = attach_memory(LAYERS, random_params(LAYERS), KEY, **WIDTHS)
    # No tensor shows them.
    config = config.replace(reference_positions="surface")
    folder = tmp_path / "official"
    export_official(folder, params, config, WORLDSTEREO, dtype="float32")
    convert_to_orbax(folder, tmp_path / "ours", progress=False)
    official = set(SafetensorsFile(folder / "model.safetensors")) - set(slot_tensors(LAYERS))
    for source in (folder, tmp_path / "ours"):
        found = from_pretrained(source, dtype="float32", progress=False)
        assert found.config == config
        assert found.added == slot_tensors(config)
        assert set(found.added) < official
        back = from_pretrained(source, reference_positions="beside", progress=False).config
        assert back == config.replace(reference_positions="beside", dtype="bfloat16")
        jax.tree.map(np.testing.assert_array_equal, found.params, params)
    assert "warped_entry.weight" in found.added
    assert "blocks.2.entry_attn.to_out.weight" in found.added


def test_an_official_checkpoint_stays_what_it_is_and_contradictions_are_named(tmp_path):
    plain = write_checkpoint(tmp_path / "plain", official_tensors())
    found = from_pretrained(plain, dtype="float32", progress=False)
    assert found.added == []
    assert slot_widths(found.config) == {}
    assert found.config.reference_positions == "beside"
    said = write_checkpoint(tmp_path / "said", official_tensors(), warped_width=17)
    with pytest.raises(InputError, match=r"warped_width of config\.json is 17, but .* show 0"):
        from_pretrained(said, progress=False)
    wrong = write_checkpoint(tmp_path / "wrong", official_tensors(), warped_with=17)
    with pytest.raises(InputError, match=r"unknown key 'warped_with'.*'warped_width'"):
        from_pretrained(wrong, progress=False)
    wrong = write_checkpoint(tmp_path / "grid", official_tensors(), reference_positions="grid")
    with pytest.raises(InputError, match="reference_positions is 'grid', expected one of beside"):
        from_pretrained(wrong, progress=False)
    for_cameras = {
        "controlnet_cfg": {**CONTROL, "main_camera_embedding": False},
        "reference_positions": "surface",
    }
    wrong = write_checkpoint(tmp_path / "camera", official_tensors(), **for_cameras)
    with pytest.raises(InputError, match="a camera-control model attends to no views"):
        from_pretrained(wrong, progress=False)
    wrong = write_checkpoint(tmp_path / "zero", official_tensors(), entry_width=0)
    with pytest.raises(InputError, match="entry_width is 0, expected a whole number above 0"):
        from_pretrained(wrong, progress=False)
