import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from tests import toy_official as toy
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop import official_pipeline
from worldstereo_jax.interop.official_pipeline import (
    device_bytes,
    open_official,
    text_states,
)
from worldstereo_jax.interop.pretrained import from_pretrained
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, write_safetensors
from worldstereo_jax.models.placement import tensor_parallel
from worldstereo_jax.sampling.official_world import MODEL_AXIS


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A complete checkpoint and its base model."""
    alone = {"latent_cond_mode": "first_frame_only"}
    model = toy.write_checkpoint(tmp_path / "model", toy.official_tensors(), **toy.DMD, **alone)
    return model, toy.write_base(tmp_path / "base")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"camera_embedding.0.bias": None}, r"camera_embedding\.0\.bias is missing, and no base"),
        ({"odd": np.zeros(3)}, "tensor odd belongs to no parameter"),
        ({"proj_out.bias": np.zeros(3)}, r"proj_out\.bias has shape \[3\], expected \[64\]"),
    ],
)
def test_weights_that_do_not_fit_are_refused_when_opened(folders, change, said):
    """From their headers, before the text encoder is read."""
    model, base = folders
    own = {k: v for k, v in toy.official_tensors().items() if not k.startswith("blocks")}
    toy.write_backbone(base, toy.official_tensors())
    own = {name: array for name, array in {**own, **change}.items() if array is not None}
    write_safetensors(model / "model.safetensors", own)
    with pytest.raises(InputError, match=said):
        open_official(model, base=base)


def test_cached_prompts_need_no_text_encoder(folders, tmp_path):
    model, base = folders
    cache = tmp_path / "cache"
    files = open_official(model, base=base)
    fresh = text_states(files, ["ab", "ba"], dtype="float32", cache=cache, progress=False)
    alone = text_states(files, ["ba"], dtype="float32", progress=False)
    shutil.rmtree(base / "text_encoder")
    shutil.rmtree(base / "tokenizer")
    files = open_official(model, base=base)
    kept = text_states(files, ["ba", "ab"], dtype="float32", cache=cache, progress=False)
    np.testing.assert_array_equal(kept, fresh[::-1])
    # Padded to one batch or alone: the same to rounding.
    np.testing.assert_allclose(kept[:1], alone, atol=1e-5)
    with pytest.raises(InputError, match=r"text_encoder, and not all prompts are in .*cache"):
        text_states(files, ["ab", "aa"], dtype="float32", cache=cache, progress=False)
    with pytest.raises(InputError, match="no folder text_encoder, and there is no cache"):
        text_states(files, ["ab"], dtype="float32", progress=False)


def test_cached_states_belong_to_the_content_of_the_encoder(folders, tmp_path, monkeypatch):
    """Another encoder at the same path computes anew, the same one elsewhere does not."""
    model, base = folders

    def states(at):
        files = open_official(model, base=at)
        return text_states(files, ["ab"], dtype="float32", cache=tmp_path / "c", progress=False)

    first = states(base)
    shutil.copytree(base, tmp_path / "moved")
    file = SafetensorsFile(base / "text_encoder/model.safetensors")
    write_safetensors(file.path, {name: -file[name] for name in file})
    assert np.abs(states(base) - first).max() > 0
    monkeypatch.setattr(official_pipeline, "load_component", None)
    np.testing.assert_array_equal(states(tmp_path / "moved"), first)
    shutil.rmtree(base / "text_encoder")
    with pytest.raises(InputError, match="by 2 text encoders"):
        states(base)


def test_the_bytes_told_are_those_that_lie_on_a_device(folders):
    """Of a model over two; scales of 8-bit weights, a thousandth of them, are not told."""
    pytest.importorskip("qwix", reason="the quantise extra is not installed")
    model, base = folders
    files = open_official(model, base=base)
    mesh = Mesh(np.array(jax.devices()[:2]), (MODEL_AXIS,))
    told = device_bytes(files, weights="int8", mesh=mesh)
    assert told.keys() == {"transformer", "text_encoder", "vae", "image_encoder"}
    placement = tensor_parallel(mesh, MODEL_AXIS)
    found = from_pretrained(model, weights="int8", placement=placement, progress=False)
    held = sum(
        leaf.addressable_shards[0].data.nbytes
        for path, leaf in jax.tree_util.tree_leaves_with_path(found.params)
        if not jax.tree_util.keystr(path).endswith(".array.scale")
    )
    assert told["transformer"] == held
    small = SafetensorsFile(base / "image_encoder/model.safetensors")
    assert told["image_encoder"] == sum(info.nbytes for info in small.info.values())


def test_cached_states_of_another_width_are_refused(folders, tmp_path):
    model, base = folders
    files = open_official(model, base=base)
    cache = tmp_path / "cache"
    text_states(files, ["ab"], dtype="float32", cache=cache, progress=False)
    (file,) = cache.iterdir()
    write_safetensors(file, {"hidden": np.zeros((512, 7), np.float32)})
    with pytest.raises(InputError, match=r"7 channels.*transformer expects 6"):
        text_states(files, ["ab"], dtype="float32", cache=cache, progress=False)


def test_the_base_says_how_images_are_prepared(folders):
    model, base = folders
    assert open_official(model, base=base).image_encoder.preparation is None
    file, side = base / "image_processor/preprocessor_config.json", toy.CLIP["image_size"]
    toy.write_json(file, {"size": {"height": side, "width": side}, "do_center_crop": False})
    squeezed = open_official(model, base=base).image_encoder.preparation
    assert (squeezed.resize, squeezed.crop) == ((side, side), None)
    toy.write_json(file, {"size": 224, "crop_size": 224})
    said = rf"preprocessor_config.json: images are prepared as .*224.*{side} x {side} pixels"
    with pytest.raises(InputError, match=said):
        open_official(model, base=base)
