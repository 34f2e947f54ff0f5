"""Official weights to orbax and back: bit for bit, going on after an interruption."""

import json
import re

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from tests import toy_official as toy
from tests.interop.test_pretrained import MODEL, WORLDSTEREO, load
from tests.models.small_model import random_params
from worldstereo_jax.cli.main import main
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop import conversion
from worldstereo_jax.interop.conversion import convert_to_orbax, export_to_safetensors
from worldstereo_jax.interop.converted import part_of
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.interop.official import official_from_params
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, write_safetensors

EXTRA = "blocks.0.attn2.norm_added_q.weight"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A complete checkpoint of several types, with a tensor that nothing uses."""
    folder = tmp_path_factory.mktemp("official")
    config = MODEL.replace(scan_layers=False)
    tensors = official_from_params(random_params(config), config)
    tensors = {
        name: array.astype(ml_dtypes.bfloat16 if i % 2 else np.float32)
        for i, (name, array) in enumerate(tensors.items())
    }
    tensors[EXTRA] = np.zeros(24, np.float16)
    write_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(WORLDSTEREO))
    return folder


@pytest.fixture(scope="module")
def converted(checkpoint, tmp_path_factory):
    """Converted by the command, interrupted once on the way."""
    folder = tmp_path_factory.mktemp("orbax") / "out"
    saved = []

    class Interrupted(conversion.ocp.StandardCheckpointer):
        def save(self, target, *args, **kwargs):
            if len(saved) == 2:
                raise KeyboardInterrupt
            saved.append(target.name)
            super().save(target, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(conversion.ocp, "StandardCheckpointer", Interrupted)
        assert main(["convert", str(checkpoint), str(folder)]) == 130
    begun = {path.name: path.stat().st_mtime_ns for path in (folder / "parts").iterdir()}
    assert set(saved) <= set(begun)
    with pytest.raises(InputError, match="holds an unfinished conversion; run"):
        load(folder)
    assert main(["convert", str(checkpoint), str(folder)]) == 0
    for name in saved:
        assert (folder / "parts" / name).stat().st_mtime_ns == begun[name]
    return folder


def test_the_export_is_the_original_bit_for_bit(checkpoint, converted, tmp_path):
    target = tmp_path / "model.safetensors"
    assert main(["convert", str(converted), str(target)]) == 0
    assert target.read_bytes() == (checkpoint / "model.safetensors").read_bytes()
    assert json.loads((tmp_path / "config.json").read_text()) == WORLDSTEREO


def test_a_converted_checkpoint_loads_like_the_official_one(checkpoint, converted):
    ours, theirs = load(converted, dtype=jnp.float32), load(checkpoint, dtype=jnp.float32)
    assert ours.config == theirs.config
    assert ours.settings == theirs.settings
    assert [name.split()[0] for name in ours.unused] == [EXTRA]
    expected = flat_paths(theirs.params)
    for path, array in flat_paths(ours.params).items():
        np.testing.assert_array_equal(array, expected[path])


def test_an_adapter_is_merged_into_a_converted_checkpoint(checkpoint, converted, tmp_path):
    name, rng = "blocks.1.attn1.to_q", np.random.default_rng(0)
    down, up = (rng.normal(size=size).astype(np.float32) for size in ((3, 24), (24, 3)))
    lora = tmp_path / "lora.safetensors"
    write_safetensors(lora, {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up})
    ours, theirs = (
        flat_paths(load(folder, dtype=jnp.float32, lora=lora).params)
        for folder in (converted, checkpoint)
    )
    plain = flat_paths(load(checkpoint, dtype=jnp.float32).params)
    assert sum(not np.array_equal(array, plain[path]) for path, array in theirs.items()) == 1
    for path, array in ours.items():
        np.testing.assert_array_equal(array, theirs[path])


def test_what_a_checkpoint_lacks_is_converted_from_its_base(tmp_path):
    """As worldstereo-camera is published: without cross-attention and FFN."""
    tensors = toy.official_tensors()
    toy.write_backbone(tmp_path / "base", tensors)
    own = {
        name: 2 * array
        for name, array in tensors.items()
        if name.startswith("controlnet") or not re.search(r"\.attn2\.|\.norm2\.|\.ffn\.", name)
    }
    toy.write_checkpoint(tmp_path / "camera", own)
    convert_to_orbax(tmp_path / "camera", tmp_path / "out", base=tmp_path / "base", progress=False)
    model = load(tmp_path / "out")
    found = official_from_params(model.params, model.config)
    assert found.keys() == tensors.keys()
    for name, array in {**tensors, **own}.items():
        np.testing.assert_array_equal(found[name], array)


def test_what_is_in_the_way_is_named(checkpoint, converted, tmp_path, capsys):
    with pytest.raises(InputError, match="holds a finished conversion already"):
        convert_to_orbax(checkpoint, converted, progress=False)
    with pytest.raises(InputError, match="is converted already"):
        convert_to_orbax(converted, tmp_path / "x", progress=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    with pytest.raises(InputError, match="is not empty"):
        convert_to_orbax(checkpoint, tmp_path / "full", progress=False)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "conversion.json").write_text("{}")
    with pytest.raises(InputError, match="unfinished conversion of another"):
        convert_to_orbax(checkpoint, tmp_path / "other", progress=False)
    with pytest.raises(InputError, match="does not exist"):
        export_to_safetensors(tmp_path, tmp_path / "y.safetensors", progress=False)
    assert main(["convert", str(tmp_path), str(tmp_path / "y.safetensors")]) == 2
    assert "is no folder that worldstereo convert wrote" in capsys.readouterr().err
    target = str(tmp_path / "y.safetensors")
    assert main(["convert", str(converted), target, "--base", "x"]) == 2
    with WithoutAPart(converted) as lacking, pytest.raises(InputError, match="lacks parts"):
        export_to_safetensors(lacking, tmp_path / "y.safetensors", progress=False)


class WithoutAPart:
    """The converted folder while one of its parts is away."""

    def __init__(self, folder):
        self.folder, self.part = folder, folder / "parts" / "rest"

    def __enter__(self):
        self.part.rename(self.folder / "away")
        return self.folder

    def __exit__(self, *_):
        (self.folder / "away").rename(self.part)


def test_parts_are_layers():
    assert part_of("blocks.12.attn1.to_q.weight") == "blocks.12"
    assert part_of("controlnet.controlnet_blocks.3.norm1.norm.bias") == (
        "controlnet.controlnet_blocks.3"
    )
    assert part_of("proj_out.bias") == "rest"
    assert part_of("condition_embedder.text_embedder.linear_1.bias") == "rest"


def test_the_file_is_a_safetensors_file(checkpoint):
    assert SafetensorsFile(checkpoint / "model.safetensors").metadata == {"format": "pt"}
