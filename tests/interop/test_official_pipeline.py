import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import toy_official as toy
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.official_pipeline import open_official, text_states
from worldstereo_jax.interop.safetensors_io import write_safetensors


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    """A complete checkpoint and its base model."""
    alone = {"latent_cond_mode": "first_frame_only"}
    model = toy.write_checkpoint(tmp_path / "model", toy.official_tensors(), **toy.DMD, **alone)
    return model, toy.write_base(tmp_path / "base")


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
