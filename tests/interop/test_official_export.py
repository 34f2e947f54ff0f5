"""Trained parameters become a checkpoint that loads as a published one does."""

import jax
import numpy as np

from tests.models.small_model import random_params
from tests.toy_official import MODEL, WORLDSTEREO
from worldstereo_jax.interop.official import official_from_params
from worldstereo_jax.interop.official_export import export_official
from worldstereo_jax.interop.pretrained import from_pretrained
from worldstereo_jax.interop.safetensors_io import SafetensorsFile

LAYERS = MODEL.replace(num_layers=3, scan_layers=True)
VALUES = {**WORLDSTEREO, "freeze_backbone": False}


def test_exported_parameters_load_to_the_bit(tmp_path):
    """Stacked layers one by one; without a base model, which the folder does not have."""
    params = random_params(LAYERS)
    export_official(tmp_path / "out", params, LAYERS, VALUES, dtype="float32")
    found = from_pretrained(tmp_path / "out", dtype="float32", progress=False)
    assert found.config == LAYERS
    assert not found.unused
    assert found.settings.frames == WORLDSTEREO["nframe"]
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_the_type_in_the_file_is_chosen(tmp_path):
    config = LAYERS.replace(scan_layers=False)
    params = random_params(config)
    export_official(tmp_path, params, config, VALUES)
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert {info.dtype.name for info in file.info.values()} == {"bfloat16"}
    for name, array in official_from_params(params, config).items():
        np.testing.assert_allclose(file[name].astype(np.float32), array, rtol=1e-2, err_msg=name)
