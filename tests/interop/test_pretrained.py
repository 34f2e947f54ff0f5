"""Published checkpoints from folders of the official layout, at toy size."""

import json
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.interop.test_streaming import write_shards
from tests.models.official_modules import random_tensors
from tests.models.small_model import random_params
from worldstereo_jax.config import ControlConfig, ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.encoder_names import dinov2_table
from worldstereo_jax.interop.hub import resolve
from worldstereo_jax.interop.official import official_from_params
from worldstereo_jax.interop.pretrained import (
    from_pretrained,
    load_component,
    load_scheduler,
)
from worldstereo_jax.interop.safetensors_io import write_safetensors
from worldstereo_jax.models.dinov2 import Dinov2Config

MODEL = ModelConfig(
    width=24, num_layers=2, num_heads=1, ffn_width=20, text_dim=6, freq_dim=8, image_width=10,
    control=ControlConfig(
        width=16, ffn_width=12, num_heads=2, num_layers=1, embed_width=24, mid_channels=8
    ),
)  # fmt: skip
WAN = {
    "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.36.0",
    "added_kv_proj_dim": 24, "attention_head_dim": 24, "cross_attn_norm": True, "eps": 1e-06,
    "ffn_dim": 20, "freq_dim": 8, "image_dim": 10, "in_channels": 36, "num_attention_heads": 1,
    "num_layers": 2, "out_channels": 16, "patch_size": [1, 2, 2], "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 6,
}  # fmt: skip
WORLDSTEREO = {
    "base_model": "nobody/absent",
    "controlnet_cfg": {
        "conv_out_dim": 24, "dim": 16, "ffn_dim": 12, "num_heads": 2, "num_layers": 1,
        "time_embed_dim": 24, "add_channels": 7, "mid_channels": 8, "mask_downsample": 1,
        "update_ref": True, "ref_embedding": True, "main_camera_embedding": True,
        "camera_embedding_dim": 7,
    },
    "nframe": 21, "scale_map": [[480, 832], [784, 512]], "negative_prompt": "blurry",
    "latent_cond_mode": "first_frame_only", "freeze_backbone": False,
    "dmd_steps": 4, "dmd_start_steps": 250, "dmd_end_steps": 1000, "gen_shift": 5.0,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction",
    "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 2, "beta_start": 0.0001,
}  # fmt: skip


def load(folder, **options):
    return from_pretrained(
        folder, **{"dtype": None, "progress": False, "scan_layers": False, **options}
    )


@pytest.fixture(scope="module")
def official():
    config = MODEL.replace(scan_layers=False)
    return official_from_params(random_params(config), config)


@pytest.fixture(scope="module")
def base(tmp_path_factory, official):
    """A Wan 2.1 folder: the backbone's tensors in shards."""
    folder = tmp_path_factory.mktemp("wan")
    (folder / "transformer").mkdir()
    tensors = {
        name: 0 * array
        for name, array in official.items()
        if not name.startswith(("controlnet", "camera"))
    }
    write_shards(folder / "transformer", tensors)
    (folder / "transformer/config.json").write_text(json.dumps(WAN))
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))
    return folder


def checkpoint(folder, tensors, **changes):
    write_safetensors(folder / "model.safetensors", tensors)
    (folder / "config.json").write_text(json.dumps({**WORLDSTEREO, **changes}))
    return folder


def assert_equal(found, config, expected):
    found = official_from_params(found, config)
    assert set(found) == set(expected)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)


def test_a_complete_checkpoint_needs_no_base(tmp_path, official):
    extra = {"ref_index_embedding": np.zeros((21, 24), np.float32)}
    model = load(checkpoint(tmp_path, {**official, **extra}))
    assert model.config == MODEL.replace(scan_layers=False)
    assert_equal(model.params, model.config, official)
    assert model.unused == [f"ref_index_embedding ({tmp_path / 'model.safetensors'})"]
    settings = model.settings
    assert settings.dmd.schedule().steps == 4
    assert settings.size_for(960, 600) == (784, 512)
    assert settings.latent_condition == "first_frame_only"
    assert settings.negative_prompt == "blurry"


def test_a_checkpoint_lies_over_its_base(tmp_path, base, official):
    own = {name: a for name, a in official.items() if name.startswith(("controlnet", "camera"))}
    own["proj_out.bias"] = official["proj_out.bias"]
    model = load(checkpoint(tmp_path, own), base=base)
    expected = {name: own.get(name, 0 * array) for name, array in official.items()}
    assert_equal(model.params, model.config, expected)
    assert [name.split()[0] for name in model.overlaid] == ["proj_out.bias"]
    with pytest.raises(InputError, match=r"does not have every tensor itself, .*base model is not"):
        load(checkpoint(tmp_path, own), base=tmp_path / "absent/base/folder")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has neither a config\.json nor a folder transformer"):
        load(tmp_path / "empty")
    del own["camera_embedding.0.bias"]
    with pytest.raises(InputError, match=r"tensor camera_embedding\.0\.bias is missing, and no"):
        load(checkpoint(tmp_path, own), base=base)


def frozen(name: str, parts: str) -> bool:
    """Whether a tensor of the backbone is among those that a stage leaves as the base has them."""
    return not name.startswith(("controlnet", "camera")) and re.search(parts, name) is not None


@pytest.mark.parametrize(
    "parts",
    [r"\.attn2\.|\.norm2\.", r"\.attn2\.|\.norm2\.|\.ffn\.", r"\.attn2\.|text_embedder",
     r"\.attn2\.to|image_embedder", "time_embedder"],
    ids=["cross-attention", "and ffn", "and text", "and image", "time"],
)  # fmt: skip
def test_what_a_published_checkpoint_lacks_is_its_bases(tmp_path, base, official, parts):
    """worldstereo-memory is all but cross-attention, worldstereo-camera lacks the FFN too."""
    own = {name: array for name, array in official.items() if not frozen(name, parts)}
    folder = checkpoint(tmp_path, own)
    model = load(folder, base=base)
    assert model.config == MODEL.replace(scan_layers=False)
    expected = {name: own.get(name, 0 * array) for name, array in official.items()}
    assert_equal(model.params, model.config, expected)
    with pytest.raises(InputError, match=r"does not have every tensor itself, .*base model is not"):
        load(folder, base=tmp_path / "absent/base/folder")


def test_wan_alone_and_its_schedule(base):
    model = load(base)
    assert model.settings is None
    low = load(base, dtype="bfloat16")
    assert low.config.dtype == "bfloat16"
    assert {leaf.dtype for leaf in jax.tree.leaves(low.params)} == {jnp.dtype("bfloat16")}
    assert load(base, compute_dtype="bfloat16").config.dtype == "bfloat16"
    expected = MODEL.replace(scan_layers=False, control=None, camera_width=None)
    assert model.config == expected
    scheduler = load_scheduler(base)
    assert scheduler.schedule(5).timesteps[0] == 999


def test_an_adapter_is_merged(tmp_path, base, official):
    name = "blocks.1.attn1.to_q"
    rng = np.random.default_rng(0)
    down = rng.normal(size=(3, 24)).astype(np.float32)
    up = rng.normal(size=(24, 3)).astype(np.float32)
    lora = {
        f"transformer.{name}.lora_A.weight": down,
        f"transformer.{name}.lora_B.weight": up,
        f"transformer.{name}.alpha": np.float32(6.0).reshape(()),
    }
    write_safetensors(tmp_path / "lora.safetensors", lora)
    model = load(base, lora=tmp_path / "lora.safetensors", lora_scale=0.5)
    found = official_from_params(model.params, model.config)
    np.testing.assert_allclose(found[f"{name}.weight"], up @ down, rtol=1e-5)
    np.testing.assert_array_equal(found["blocks.0.attn1.to_q.weight"], 0)
    for fault, said in (
        ({f"{name}.lora_A.weight": down}, "lacks lora_B"),
        ({"blocks.7.q.lora_A.weight": down, "blocks.7.q.lora_B.weight": up}, "the model has not"),
        ({f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up.T}, "expected their product"),
        ({"other": up}, "no part of a low-rank adapter"),
    ):
        write_safetensors(tmp_path / "lora.safetensors", fault)
        with pytest.raises(InputError, match=said):
            load(base, lora=tmp_path / "lora.safetensors")


def test_an_output_that_is_no_whole_patch_is_named(tmp_path, official):
    with pytest.raises(
        InputError, match=r"tensor proj_out\.weight has 3 rows, expected a multiple"
    ):
        load(checkpoint(tmp_path, {**official, "proj_out.weight": np.ones((3, 24), np.float32)}))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"novel": 1}, r"config\.json: unknown key 'novel'"),
        ({"controlnet_cfg": {**WORLDSTEREO["controlnet_cfg"], "dims": 3}}, "'dims'.*mean 'dim'"),
        ({"controlnet_cfg": {"dim": 16}}, "controlnet_cfg: key 'ffn_dim' is missing"),
        ({"latent_cond_mode": "half"}, "latent_cond_mode is 'half'"),
        ({"nframe": "21"}, "nframe is '21', expected a whole number above 0"),
        ({"scale_map": [[480]]}, r"scale_map is \[\[480\]\], expected a list of pairs"),
        ({"controlnet_cfg": []}, r"controlnet_cfg is \[\], expected an object"),
        (
            {"controlnet_cfg": {**WORLDSTEREO["controlnet_cfg"], "update_ref": 1}},
            "controlnet_cfg: update_ref is 1, expected true or false",
        ),
        (
            {"controlnet_cfg": {**WORLDSTEREO["controlnet_cfg"], "ffn_dim": 13}},
            "but the tensors show",
        ),
    ],
)
def test_faults_of_the_config_are_named(tmp_path, official, change, said):
    with pytest.raises(InputError, match=said):
        load(checkpoint(tmp_path, official, **change))


def test_a_component_with_its_config(tmp_path):
    config = Dinov2Config(hidden_size=8, num_layers=1, num_heads=2, image_size=28)
    tensors = random_tensors(dinov2_table(config))
    write_safetensors(tmp_path / "model.safetensors", tensors)
    values = {
        "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
        "patch_size": 14, "architectures": ["Dinov2Model"], "torch_dtype": "float32",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(values))
    found = load_component(tmp_path, "dinov2", progress=False)
    assert found.config == config
    low = load_component(tmp_path, "dinov2", progress=False, dtype="bfloat16")
    assert low.config.dtype == "bfloat16"
    np.testing.assert_array_equal(
        np.asarray(found.params["norm_out"]["bias"]), tensors["layernorm.bias"]
    )
    with pytest.raises(InputError, match="'vea' is none of vae, text_encoder"):
        load_component(tmp_path, "vea")


def test_what_is_no_folder_must_be_a_hub_id(tmp_path, monkeypatch):
    assert resolve(tmp_path) == tmp_path
    for name in ("absent", "./x", "owner/", "/x/y", "owner/name/", "~/x"):
        with pytest.raises(InputError, match="no such folder, and no hub id"):
            resolve(name)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match="need the hub extra"):
        resolve("owner/name")
