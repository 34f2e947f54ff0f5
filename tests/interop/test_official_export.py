"""Trained parameters become a checkpoint that loads as a published one does."""

import jax
import numpy as np
import pytest

from tests.models.small_model import random_params
from tests.toy_official import MODEL, WORLDSTEREO
from worldstereo_jax.interop.official_export import export_official
from worldstereo_jax.interop.pretrained import from_pretrained
from worldstereo_jax.interop.safetensors_io import SafetensorsFile

LAYERS = MODEL.replace(num_layers=3)
VALUES = {**WORLDSTEREO, "freeze_backbone": False}


@pytest.mark.parametrize("scan", [True, False])
def test_exported_parameters_load_to_the_bit(tmp_path, scan):
    """Stacked layers or not; without a base model, which the folder does not have."""
    config = LAYERS.replace(scan_layers=scan)
    params = random_params(config)
    export_official(tmp_path / "out", params, config, VALUES, dtype="float32")
    found = from_pretrained(tmp_path / "out", dtype="float32", scan_layers=scan, progress=False)
    assert found.config == config
    assert not found.unused
    assert found.settings.frames == WORLDSTEREO["nframe"]
    jax.tree.map(np.testing.assert_array_equal, found.params, params)


def test_the_type_in_the_file_is_chosen(tmp_path):
    config = LAYERS.replace(scan_layers=True)
    params = random_params(config)
    export_official(tmp_path, params, config, VALUES)
    file = SafetensorsFile(tmp_path / "model.safetensors")
    assert {info.dtype.name for info in file.info.values()} == {"bfloat16"}
    found = from_pretrained(tmp_path, dtype="float32", progress=False).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-2), found, params)
