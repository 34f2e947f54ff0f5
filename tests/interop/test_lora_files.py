"""Trained adapters as files: what was trained is what is merged, here and in diffusers."""

import json
import tracemalloc

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.official_modules import (
    as_torch,
    assert_close,
    channels_first,
    from_torch,
    load_theirs,
    normal,
)
from tests.models.small_model import SMALL, inputs, random_params, run
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop import lora
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.interop.lora import METADATA, AdapterFile, MergedSource
from worldstereo_jax.interop.lora_files import read_adapters, write_adapters
from worldstereo_jax.interop.official import (
    official_from_params,
    parameter_shapes,
    params_from_official,
)
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, write_safetensors
from worldstereo_jax.interop.tensor_source import open_weights
from worldstereo_jax.training.lora import ATTENTION, LoraConfig, init_adapters, scaled
from worldstereo_jax.training.state import join

CONFIG = SMALL.replace(warped_width=0, entry_width=0)
LORA = LoraConfig(rank=3, alpha=6.0)
IMAGE_TO_VIDEO = ModelConfig(
    width=24, num_layers=2, num_heads=2, ffn_width=20, text_dim=6, in_channels=9, out_channels=4,
    freq_dim=8, camera_width=None, image_width=10,
)  # fmt: skip


def adapters_of(config, lora=LORA):
    """Adapters with values everywhere."""
    empty = init_adapters(parameter_shapes(config), lora, jax.random.key(0))
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), x.dtype), empty)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's weights and its adapters, each in a file."""
    path = tmp_path_factory.mktemp("files")
    write_safetensors(
        path / "model.safetensors", official_from_params(random_params(CONFIG), CONFIG)
    )
    write_adapters(path / "lora.safetensors", adapters_of(CONFIG), LORA, CONFIG, dtype="float32")
    return path


def test_merging_holds_a_weight_twice_and_no_more(tmp_path, monkeypatch):
    """In pieces, of which the last is smaller, to the value of the whole product."""
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(700, 600)).astype(np.float16)
    down, up = (rng.normal(size=s).astype(np.float32) for s in ((3, 600), (700, 3)))
    write_safetensors(tmp_path / "model.safetensors", {"a.weight": weight, "b": weight})
    factors = {"a.lora_A.weight": down, "a.lora_B.weight": up}
    write_safetensors(tmp_path / "lora.safetensors", factors)
    monkeypatch.setattr(lora, "_PIECE", 64 * 600)
    merged = MergedSource(open_weights(tmp_path / "model.safetensors"),
                          tmp_path / "lora.safetensors", 0.5)  # fmt: skip
    tracemalloc.start()
    found = merged["a.weight"]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    np.testing.assert_array_equal(found, (weight + 0.5 * up @ down).astype(np.float16))
    assert merged.host_bytes("a.weight") == 2 * weight.nbytes
    assert merged.host_bytes("b") == weight.nbytes
    assert peak < 1.4 * merged.host_bytes("a.weight")


def test_the_merged_file_is_the_model_that_was_trained(folder):
    source = open_weights(folder / "model.safetensors")
    params, given = params_from_official(source, CONFIG), inputs()
    merged = params_from_official(MergedSource(source, folder / "lora.safetensors"), CONFIG)
    adapters = scaled(adapters_of(CONFIG), LORA)
    expected = run(join(params, adapters), CONFIG, **given)
    assert np.abs(expected - run(params, CONFIG, **given)).max() > 0.1 * np.abs(expected).max()
    found = run(merged, CONFIG, **given)
    np.testing.assert_allclose(found, expected, atol=2e-4 * np.abs(expected).max())
    none = params_from_official(MergedSource(source, folder / "lora.safetensors", 0.0), CONFIG)
    jax.tree.map(np.testing.assert_array_equal, none, params)


def test_names_are_those_of_the_official_layers(folder):
    file = SafetensorsFile(folder / "lora.safetensors")
    # Layer 2 is the only one of its stack, layer 1 the second of the other one.
    for name in (
        "blocks.1.attn1.to_q", "blocks.2.attn2.to_out.0",
        "controlnet.controlnet_blocks.1.self_attn.to_k",
    ):  # fmt: skip
        width = 16 if "controlnet" in name else 24
        assert file.shapes[f"transformer.{name}.lora_A.weight"] == (3, width)
        assert file.shapes[f"transformer.{name}.lora_B.weight"] == (width, 3)
    # Four maps of two attention layers in three blocks, and of one in two control blocks.
    assert len(file) == 2 * 4 * (2 * 3 + 2)
    # With alpha in B, for readers that know none.
    up = flat_paths(adapters_of(CONFIG))["blocks/layers/backbone/self_attention/query/adapter/b"]
    found = file["transformer.blocks.2.attn1.to_q.lora_B.weight"]
    np.testing.assert_array_equal(found, 2 * up[0].T)


def test_adapters_come_back_to_the_bit_or_with_another_alpha_to_the_same_effect(folder, tmp_path):
    path, adapters = folder / "lora.safetensors", adapters_of(CONFIG)
    found = read_adapters(path, adapters, LORA, CONFIG)
    jax.tree.map(np.testing.assert_array_equal, found, adapters)
    other = LORA.replace(alpha=1.5)
    again = scaled(read_adapters(path, adapters, other, CONFIG), other)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, scaled(adapters, LORA)
    )
    write_adapters(tmp_path / "low.safetensors", adapters, LORA, CONFIG)
    low = read_adapters(tmp_path / "low.safetensors", adapters, LORA, CONFIG)
    for path, array in flat_paths(low).items():
        assert array.dtype == jnp.float32
        np.testing.assert_array_equal(array, flat_paths(adapters)[path].astype(jnp.bfloat16))


def test_files_of_other_layers_or_ranks_are_refused(folder):
    path = folder / "lora.safetensors"

    def read(lora):
        return read_adapters(path, adapters_of(CONFIG, lora), lora, CONFIG)

    with pytest.raises(InputError, match=r"shape \[24, 3\], expected \[24, 2\] for rank 2"):
        read(LORA.replace(rank=2))
    with pytest.raises(InputError, match=r"lora\.safetensors: adapts blocks\.0\.attn1\.to_k\.weig"):
        read(LORA.replace(modules=("query",)))
    with pytest.raises(InputError, match=r"does not adapt blocks\.0\.ffn\.net\.0\.proj\."):
        read(LORA.replace(modules=(*ATTENTION, "ffn")))


def test_alpha_of_the_header_counts_and_what_is_not_computed_is_refused(tmp_path):
    path = tmp_path / "lora.safetensors"
    halves = {"q.lora_A.weight": np.ones((2, 5)), "q.lora_B.weight": np.ones((4, 2))}

    def scale(settings):
        write_safetensors(path, halves, {METADATA: json.dumps(settings)})
        return AdapterFile(path)["q.weight"].scale

    assert scale({"lora_alpha": 3}) == 1.5
    assert scale({"transformer.lora_alpha": 8.0, "transformer.alpha_pattern": {}}) == 4.0
    assert scale({"r": 2}) == 1.0
    with pytest.raises(InputError, match="has use_rslora, which is not supported"):
        scale({"lora_alpha": 3, "use_rslora": True})
    with pytest.raises(InputError, match="its lora_adapter_metadata cannot be read"):
        scale([1])


def test_equals_diffusers_with_the_file_loaded(tmp_path):
    """By diffusers' own loader and PEFT, onto its transformer."""
    diffusers = pytest.importorskip("diffusers", reason="the parity extra is not installed")
    pytest.importorskip("peft", reason="the parity extra is not installed")
    config, lora = IMAGE_TO_VIDEO, LORA.replace(modules=(*ATTENTION, "image_key", "ffn"))
    params, adapters = random_params(config), adapters_of(config, lora)
    model = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=12, in_channels=config.in_channels,
        out_channels=4, text_dim=6, freq_dim=8, ffn_dim=20, num_layers=2,
        image_dim=config.image_width, added_kv_proj_dim=24,
    )  # fmt: skip
    tensors = {k: np.asarray(v) for k, v in official_from_params(params, config).items()}
    unused = {f"blocks.{i}.attn2.norm_added_q.weight" for i in range(2)}
    theirs = load_theirs(model, tensors, unused & set(model.state_dict()))
    latent, text = normal(0, 2, 3, 4, 6, config.in_channels), normal(1, 2, 512, 6)
    timestep, image = normal(2, 2) + 500, normal(3, 2, 257, config.image_width)

    def predict():
        given = (channels_first(latent), as_torch(timestep), as_torch(text), as_torch(image))
        return np.moveaxis(from_torch(theirs(*given).sample), 1, -1)

    plain = predict()
    write_adapters(tmp_path / "lora.safetensors", adapters, lora, config, dtype="float32")
    theirs.load_lora_adapter(str(tmp_path / "lora.safetensors"))
    expected = predict()
    assert np.abs(expected - plain).max() > 0.1 * np.abs(plain).max()
    found = run(
        join(params, scaled(adapters, lora)), config, latent=latent, timestep=timestep, text=text,
        image_tokens=image,
    )  # fmt: skip
    assert_close(found, expected)
