"""Official checkpoints at toy size: random weights under the official names, files and configs."""

import json
import shutil
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import models, pre_tokenizers, processors

from tests.models.official_modules import random_tensors
from tests.models.small_model import random_params
from worldstereo_jax.config import ControlConfig, ModelConfig
from worldstereo_jax.interop.component_configs import (
    clip_vision_config,
    depth_anything_config,
    dinov2_config,
    umt5_config,
    vae_config,
)
from worldstereo_jax.interop.components import ComponentTable
from worldstereo_jax.interop.encoder_names import (
    clip_vision_table,
    depth_anything_table,
    dinov2_table,
    umt5_table,
)
from worldstereo_jax.interop.official import official_from_params
from worldstereo_jax.interop.safetensors_io import write_safetensors
from worldstereo_jax.interop.wan_vae_names import wan_vae_table

HEIGHT, WIDTH = 32, 48
# As `build_official_cache` chooses for a first frame and two views, so that what writes into this
# memory is one program of all these tests.
BANK = {
    "height": HEIGHT, "width": WIDTH, "bank_capacity": 3, "point_capacity": 3 * HEIGHT * WIDTH,
    "point_edges": "official", "entry_capacity": 1024,
}  # fmt: skip
LETTERS = "abcdefghijklmnopqrstuvwxyz.,"
FRAMES = 5
SIZES = [[48, 80], [48, 64], [64, 64], [80, 48]]

MODEL = ModelConfig(
    width=24, num_layers=1, num_heads=1, ffn_width=20, text_dim=6, freq_dim=8, image_width=10,
    control=ControlConfig(
        width=16, ffn_width=12, num_heads=2, num_layers=1, embed_width=24, mid_channels=8
    ),
    scan_layers=False,
)  # fmt: skip
WAN = {
    "_class_name": "WanTransformer3DModel", "_diffusers_version": "0.36.0",
    "added_kv_proj_dim": 24, "attention_head_dim": 24, "cross_attn_norm": True, "eps": 1e-06,
    "ffn_dim": 20, "freq_dim": 8, "image_dim": 10, "in_channels": 36, "num_attention_heads": 1,
    "num_layers": 1, "out_channels": 16, "patch_size": [1, 2, 2], "pos_embed_seq_len": None,
    "qk_norm": "rms_norm_across_heads", "rope_max_seq_len": 1024, "text_dim": 6,
}  # fmt: skip
CONTROL = {
    "conv_out_dim": 24, "dim": 16, "ffn_dim": 12, "num_heads": 2, "num_layers": 1,
    "time_embed_dim": 24, "add_channels": 7, "mid_channels": 8, "mask_downsample": 1,
    "update_ref": True, "ref_embedding": True, "main_camera_embedding": True,
    "camera_embedding_dim": 7,
}  # fmt: skip
WORLDSTEREO = {
    "base_model": "nobody/absent", "controlnet_cfg": CONTROL, "nframe": FRAMES,
    "scale_map": SIZES, "negative_prompt": "blurry", "latent_cond_mode": "full_vae",
    "freeze_backbone": False,
}  # fmt: skip
DMD = {"dmd_steps": 2, "dmd_start_steps": 250, "dmd_end_steps": 1000, "gen_shift": 5.0}
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction",
    "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 2, "beta_start": 0.0001,
}  # fmt: skip
VAE = {
    "_class_name": "AutoencoderKLWan", "base_dim": 4, "z_dim": 16, "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 0, "temperal_downsample": [False, True, True], "attn_scales": [],
    "dropout": 0.0, "latents_mean": [0.1] * 16, "latents_std": [2.0] * 16,
}  # fmt: skip
UMT5 = {
    "vocab_size": 3 + len(LETTERS), "d_model": 6, "d_kv": 3, "d_ff": 8, "num_layers": 1,
    "num_heads": 2, "feed_forward_proj": "gated-gelu", "model_type": "umt5",
}  # fmt: skip
CLIP = {
    "hidden_size": 10, "intermediate_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14, "hidden_act": "gelu",
}  # fmt: skip
IMAGE_PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 28},
    "crop_size": {"height": 28, "width": 28},
}  # fmt: skip
DINOV2 = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
DEPTH = {
    "backbone_config": {
        "hidden_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_ratio": 2,
        "image_size": 16, "patch_size": 4, "out_indices": [1, 1, 1, 1],
    },
    "patch_size": 4, "neck_hidden_sizes": [4, 6, 8, 10], "fusion_hidden_size": 8,
    "head_hidden_size": 5, "depth_estimation_type": "metric", "max_depth": 20,
}  # fmt: skip


def write_json(path: Path, values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(values))


def write_component(folder: Path, table: ComponentTable, values: dict, file: str) -> None:
    write_json(folder / "config.json", values)
    write_safetensors(folder / file, random_tensors(table))


def write_tokenizer(folder: Path) -> None:
    """One token per letter, with padding and end mark where the T5 family has them."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((x, -3.0) for x in LETTERS)]
    tokenizer = tokenizers.Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.add_special_tokens(["<pad>", "</s>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 1)]
    )
    folder.mkdir(parents=True)
    tokenizer.save(str(folder / "tokenizer.json"))


def official_tensors(config: ModelConfig = MODEL) -> dict[str, np.ndarray]:
    """Random weights of a transformer under official names."""
    found = official_from_params(random_params(config), config)
    return {name: np.asarray(array) for name, array in found.items()}


def write_base(folder: Path) -> Path:
    """A base model: everything but the transformer, which a complete checkpoint brings."""
    weights = "model.safetensors"
    write_component(
        folder / "vae", wan_vae_table(vae_config(VAE)), VAE, "diffusion_pytorch_model.safetensors"
    )
    write_component(folder / "text_encoder", umt5_table(umt5_config(UMT5)), UMT5, weights)
    table = clip_vision_table(clip_vision_config(CLIP))
    write_component(folder / "image_encoder", table, CLIP, weights)
    write_json(folder / "scheduler/scheduler_config.json", SCHEDULER)
    write_tokenizer(folder / "tokenizer")
    return folder


def write_plain(folder: Path, *, image: bool) -> Path:
    """A whole Wan 2.1 model of its own: from an image and a text, or from text."""
    config = MODEL.replace(control=None, camera_width=None)
    values = dict(WAN)
    if not image:
        config = config.replace(in_channels=16, image_width=None)
        values.update(in_channels=16, image_dim=None, added_kv_proj_dim=None)
    write_base(folder)
    if image:
        write_json(folder / "image_processor/preprocessor_config.json", IMAGE_PROCESSOR)
    else:
        shutil.rmtree(folder / "image_encoder")
    write_json(folder / "transformer/config.json", values)
    file = folder / "transformer/diffusion_pytorch_model.safetensors"
    write_safetensors(file, official_tensors(config))
    return folder


def write_backbone(folder: Path, tensors: dict[str, np.ndarray]) -> None:
    """The base model's transformer: what of the tensors is the backbone's."""
    own = {k: v for k, v in tensors.items() if not k.startswith(("controlnet", "camera"))}
    write_json(folder / "transformer/config.json", WAN)
    write_safetensors(folder / "transformer/diffusion_pytorch_model.safetensors", own)


def write_checkpoint(folder: Path, tensors: dict[str, np.ndarray], **changes: object) -> Path:
    """A WorldStereo checkpoint; one of few steps with `**DMD`."""
    write_json(folder / "config.json", {**WORLDSTEREO, **changes})
    write_safetensors(folder / "model.safetensors", tensors)
    return folder


def write_depth(folder: Path) -> Path:
    """A metric depth network."""
    table = depth_anything_table(depth_anything_config(DEPTH))
    write_component(folder, table, DEPTH, "model.safetensors")
    return folder


def write_dinov2(folder: Path) -> Path:
    """An encoder for retrieval."""
    write_component(folder, dinov2_table(dinov2_config(DINOV2)), DINOV2, "model.safetensors")
    return folder
