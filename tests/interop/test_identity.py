"""Models are told apart by what they hold, not by where they lie."""

import shutil

import numpy as np
import pytest

from tests import toy_official as toy
from worldstereo_jax.interop.identity import encoder_identity, files_identity, model_identity
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, write_safetensors


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return toy.write_base(tmp_path_factory.mktemp("base") / "wan")


def test_the_same_content_elsewhere_is_the_same(base, tmp_path):
    shutil.copytree(base, tmp_path / "copy")
    assert encoder_identity(tmp_path / "copy") == encoder_identity(base)
    # What is not the encoder's does not count.
    (tmp_path / "copy/vae/config.json").write_text("{}")
    (tmp_path / "copy/tokenizer/readme.json").write_text("{}")
    assert encoder_identity(tmp_path / "copy") == encoder_identity(base)


@pytest.mark.parametrize("change", ["weights", "config", "tokenizer"])
def test_another_content_at_the_same_place_is_another(base, tmp_path, change):
    shutil.copytree(base, tmp_path / "copy")
    encoder = tmp_path / "copy/text_encoder"
    if change == "weights":
        file = SafetensorsFile(encoder / "model.safetensors")
        name = "encoder.final_layer_norm.weight"
        write_safetensors(file.path, {**file, name: np.nextafter(file[name], np.float32(9))})
    else:
        path = encoder if change == "config" else encoder.parent / "tokenizer"
        path /= f"{change}.json"
        path.write_text(path.read_text() + " ")
    assert encoder_identity(tmp_path / "copy") != encoder_identity(base)


@pytest.mark.parametrize("away", ["text_encoder", "text_encoder/model.safetensors", "tokenizer"])
def test_a_base_that_cannot_encode_has_none(base, tmp_path, away):
    shutil.copytree(base, tmp_path / "copy")
    path = tmp_path / "copy" / away
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert encoder_identity(tmp_path / "copy") is None


def test_large_weights_are_told_apart_by_their_middle(tmp_path):
    values = np.zeros(100_000, np.float32)
    file = tmp_path / "model.safetensors"
    write_safetensors(file, {"a": values})
    before = files_identity([file])
    assert model_identity(tmp_path) == before
    values[50_000] = 1
    write_safetensors(file, {"a": values})
    assert files_identity([file]) != before
