"""Official configs of the components: every key known, the libraries' own defaults accepted."""

import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.component_configs import (
    clip_vision_config,
    depth_anything_config,
    dinov2_config,
    scheduler_config,
    umt5_config,
    vae_config,
)
from worldstereo_jax.interop.model_configs import wan_config
from worldstereo_jax.models.clip_vision import CLIPVisionConfig
from worldstereo_jax.models.dinov2 import Dinov2Config
from worldstereo_jax.models.umt5 import UMT5Config

VAE = {"latents_mean": [0.0] * 16, "latents_std": [1.0] * 16}
WAN = {"num_attention_heads": 2, "num_layers": 1, "ffn_dim": 8, "text_dim": 4}
UNIPC = {
    "_class_name": "UniPCMultistepScheduler",
    "prediction_type": "flow_prediction",
    "use_flow_sigmas": True,
}


def test_published_sizes():
    umt5 = {
        "d_ff": 10240, "d_kv": 64, "d_model": 4096, "dense_act_fn": "gelu_new",
        "feed_forward_proj": "gated-gelu", "is_gated_act": True, "layer_norm_epsilon": 1e-06,
        "model_type": "umt5", "num_heads": 64, "num_layers": 24, "output_past": True,
        "relative_attention_max_distance": 128, "relative_attention_num_buckets": 32,
        "scalable_attention": True, "vocab_size": 256384, "tokenizer_class": "T5Tokenizer",
    }  # fmt: skip
    assert umt5_config(umt5) == UMT5Config()
    clip = {
        "attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "gelu", "hidden_size": 1280,
        "image_size": 224, "intermediate_size": 5120, "layer_norm_eps": 1e-05,
        "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 32, "patch_size": 14,
        "projection_dim": 1024,
    }  # fmt: skip
    assert clip_vision_config(clip) == CLIPVisionConfig()
    assert dinov2_config({"image_size": 518}) == Dinov2Config()
    assert vae_config({**VAE, "temperal_downsample": [True, False, True]}).temporal_downsample == (
        True,
        False,
        True,
    )
    assert scheduler_config({**UNIPC, "flow_shift": 5.0}).shift == 5.0
    euler = scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0})
    assert euler.solver == "euler"
    assert euler.schedule(4).steps == 4


@pytest.mark.parametrize(
    ("read", "values", "said"),
    [
        (vae_config, {**VAE, "is_residual": True}, "is_residual is True, but only False"),
        (vae_config, {**VAE, "zdim": 3}, "'zdim': did you mean 'z_dim'"),
        (vae_config, {}, "key 'latents_mean' is missing"),
        (umt5_config, {"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu'"),
        (umt5_config, {"is_gated_act": False}, "is_gated_act is False"),
        (clip_vision_config, {"windows": 2}, "unknown key 'windows'"),
        (dinov2_config, {"use_swiglu_ffn": True}, "use_swiglu_ffn is True"),
        (depth_anything_config, {}, "key 'backbone_config' is missing"),
        (
            depth_anything_config,
            {"backbone_config": {"out_indices": [1]}, "depth_estimation_type": "stereo"},
            "depth_estimation_type is 'stereo'",
        ),
        (scheduler_config, {"_class_name": "DDIM"}, "_class_name is 'DDIM'"),
        (scheduler_config, {**UNIPC, "solver_order": 3}, "solver_order is 3"),
        (scheduler_config, {"_class_name": "UniPCMultistepScheduler"}, "is missing"),
        (wan_config, {**WAN, "image_dim": 3}, "must be given together"),
        (wan_config, {**WAN, "image_dim": 3, "added_kv_proj_dim": 5}, "expected the width 256"),
        (wan_config, {**WAN, "qk_norm": None}, "qk_norm is None"),
        (wan_config, {"num_attention_heads": 2, "num_layers": 1}, "is missing"),
    ],
)
def test_faults_name_the_key(read, values, said):
    with pytest.raises(InputError, match=said):
        read(values)


def test_the_libraries_own_configs_are_understood():
    transformers = pytest.importorskip("transformers", reason="the parity extra is not installed")
    diffusers = pytest.importorskip("diffusers")
    for read, config in (
        (umt5_config, transformers.UMT5Config()),
        (clip_vision_config, transformers.CLIPVisionConfig()),
        (dinov2_config, transformers.Dinov2Config()),
        (depth_anything_config, transformers.DepthAnythingConfig()),
    ):
        read(config.to_dict())
    vae = dict(diffusers.AutoencoderKLWan(base_dim=4).config)
    vae.pop("_use_default_values", None)
    vae_config(vae)
    unipc = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    scheduler_config({"_class_name": "UniPCMultistepScheduler", **unipc.config})
    flow = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler_config({"_class_name": "FlowMatchEulerDiscreteScheduler", **flow.config})
