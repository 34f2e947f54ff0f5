"""Official config.json of every component of the base models to ours."""

import os
import typing
from collections.abc import Mapping
from pathlib import Path

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import read_json_object
from worldstereo_jax.interop.image_processor import clip_preparation
from worldstereo_jax.interop.official_config import Keys, required, translate
from worldstereo_jax.models.clip_vision import CLIPVisionConfig
from worldstereo_jax.models.depth_anything import DepthAnythingConfig
from worldstereo_jax.models.dinov2 import Dinov2Config
from worldstereo_jax.models.umt5 import UMT5Config
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.sampling.schedules import Schedule, flow_schedule, unipc_schedule

_SAME = {
    name: name
    for name in (
        "base_dim", "decoder_base_dim", "z_dim", "dim_mult", "num_res_blocks", "latents_mean",
        "latents_std", "in_channels", "out_channels", "vocab_size", "d_model", "d_kv", "d_ff",
        "num_layers", "num_heads", "hidden_size", "intermediate_size", "image_size",
        "patch_size", "mlp_ratio",
    )
}  # fmt: skip


def _same(names: str) -> dict[str, str]:
    return {name: _SAME[name] for name in names.split()}


VAE_KEYS = Keys(
    {
        **_same(
            "base_dim decoder_base_dim z_dim dim_mult num_res_blocks latents_mean latents_std "
            "in_channels out_channels"
        ),
        "temperal_downsample": "temporal_downsample",
    },
    {"attn_scales": [], "is_residual": False, "patch_size": None},
    "dropout scale_factor_temporal scale_factor_spatial",
)

UMT5_KEYS = Keys(
    {
        **_same("vocab_size d_model d_kv d_ff num_layers num_heads"),
        "relative_attention_num_buckets": "num_buckets",
        "relative_attention_max_distance": "max_distance",
        "layer_norm_epsilon": "epsilon",
        "feed_forward_proj": "feed_forward",
    },
    {"dense_act_fn": "gelu_new", "is_gated_act": True},
    "classifier_dropout dropout_rate num_decoder_layers output_past scalable_attention "
    "scale_decoder_outputs",
)

CLIP_KEYS = Keys(
    {
        **_same("hidden_size intermediate_size image_size patch_size"),
        "hidden_act": "activation",
        "layer_norm_eps": "epsilon",
        "num_attention_heads": "num_heads",
        "num_channels": "channels",
        "num_hidden_layers": "num_layers",
    },
    {},
    "attention_dropout dropout projection_dim",
)

DINOV2_KEYS = Keys(
    {
        **_same("hidden_size image_size patch_size mlp_ratio"),
        "hidden_act": "activation",
        "layer_norm_eps": "epsilon",
        "num_attention_heads": "num_heads",
        "num_channels": "channels",
        "num_hidden_layers": "num_layers",
        "out_indices": "keep",
    },
    {"qkv_bias": True, "use_swiglu_ffn": False, "apply_layernorm": True},
    "attention_probs_dropout_prob drop_path_rate hidden_dropout_prob layerscale_value "
    "out_features reshape_hidden_states stage_names use_mask_token",
)

DEPTH_KEYS = Keys(
    {
        "backbone_config": "backbone",
        "depth_estimation_type": "kind",
        "fusion_hidden_size": "fusion_width",
        "head_hidden_size": "head_width",
        "max_depth": "max_depth",
        "neck_hidden_sizes": "neck_widths",
        "reassemble_factors": "factors",
        "patch_size": "patch_size",
    },
    {"backbone": None, "head_in_index": -1, "use_timm_backbone": False},
    "backbone_kwargs reassemble_hidden_size use_pretrained_backbone",
)

_NO_SPACING = {
    "use_karras_sigmas": False,
    "use_exponential_sigmas": False,
    "use_beta_sigmas": False,
    "use_dynamic_shifting": False,
    "shift_terminal": None,
    "num_train_timesteps": 1000,
}

UNIPC_KEYS = Keys(
    {"flow_shift": "shift"},
    {
        **_NO_SPACING,
        "disable_corrector": [],
        "final_sigmas_type": "zero",
        "lower_order_final": True,
        "predict_x0": True,
        "prediction_type": "flow_prediction",
        "solver_order": 2,
        "solver_p": None,
        "solver_type": "bh2",
        "thresholding": False,
        "use_flow_sigmas": True,
    },
    "beta_end beta_schedule beta_start dynamic_thresholding_ratio rescale_betas_zero_snr "
    "sample_max_value sigma_max sigma_min steps_offset time_shift_type timestep_spacing "
    "trained_betas",
)

FLOW_KEYS = Keys(
    {"shift": "shift"},
    {**_NO_SPACING, "invert_sigmas": False, "stochastic_sampling": False},
    "base_image_seq_len base_shift max_image_seq_len max_shift time_shift_type",
)


class Scheduler(typing.NamedTuple):
    """A noise schedule as the base model's scheduler config names it.

    Attributes:
        solver: "unipc" or "euler".
        shift: flow shift.
    """

    solver: str
    shift: float

    def schedule(self, steps: int) -> Schedule:
        """The schedule of so many steps."""
        make = unipc_schedule if self.solver == "unipc" else flow_schedule
        return make(steps, self.shift)


def vae_config(values: Mapping[str, typing.Any], *, source: str = "vae config") -> WanVAEConfig:
    """Sizes of the autoencoder, with the statistics of its latents."""
    fields = translate(values, VAE_KEYS, source=source)
    for name in ("latents_mean", "latents_std"):
        required(values, name, source=source)
    return WanVAEConfig(**fields)


def umt5_config(values: Mapping[str, typing.Any], *, source: str = "text config") -> UMT5Config:
    """Sizes of the text encoder."""
    return UMT5Config(**translate(values, UMT5_KEYS, source=source))


def clip_vision_config(
    values: Mapping[str, typing.Any], *, source: str = "image config"
) -> CLIPVisionConfig:
    """Sizes of the image encoder. The library's defaults, where keys are absent, are ViT-B/32's."""
    defaults = {
        "hidden_size": 768, "intermediate_size": 3072, "num_layers": 12, "num_heads": 12,
        "patch_size": 32, "activation": "quick_gelu",
    }  # fmt: skip
    return CLIPVisionConfig(**{**defaults, **translate(values, CLIP_KEYS, source=source)})


def dinov2_config(
    values: Mapping[str, typing.Any], *, source: str = "dinov2 config"
) -> Dinov2Config:
    """Sizes of the retrieval encoder."""
    fields = {"image_size": 224, **translate(values, DINOV2_KEYS, source=source)}
    fields.pop("keep", None)
    return Dinov2Config(**fields)


def depth_anything_config(
    values: Mapping[str, typing.Any], *, source: str = "depth config"
) -> DepthAnythingConfig:
    """Sizes of the monocular depth network.

    Raises:
        InputError: for an unknown key or kind, or a patch that is not the backbone's.
    """
    fields = translate(values, DEPTH_KEYS, source=source)
    inner = required(values, "backbone_config", source=source)
    backbone = dinov2_config(inner, source=f"{source}, backbone_config")
    translated = translate(inner, DINOV2_KEYS, source=f"{source}, backbone_config")
    required(inner, "out_indices", source=f"{source}, backbone_config")
    kind = fields.pop("kind", "relative")
    if kind not in ("metric", "relative"):
        raise InputError(
            f"{source}: depth_estimation_type is {kind!r}, expected metric or relative"
        )
    if fields.pop("patch_size", 14) != backbone.patch_size:
        raise InputError(f"{source}: patch_size is not the backbone's {backbone.patch_size}")
    defaults = {"neck_widths": (48, 96, 192, 384), "fusion_width": 64}
    given = {**defaults, **fields}
    given["factors"] = tuple(float(factor) for factor in given.get("factors", (4, 2, 1, 0.5)))
    given["max_depth"] = float(given.get("max_depth") or 1)
    return DepthAnythingConfig(
        **{**given, "backbone": backbone, "keep": translated["keep"], "metric": kind == "metric"}
    )


def scheduler_config(
    values: Mapping[str, typing.Any], *, source: str = "scheduler config"
) -> Scheduler:
    """The noise schedule.

    Raises:
        InputError: for another scheduler than UniPC with flow sigmas or flow-matching Euler, or a
            setting that is not theirs in Wan.
    """
    kind = values.get("_class_name")
    kinds = {
        "UniPCMultistepScheduler": ("unipc", UNIPC_KEYS, {"prediction_type", "use_flow_sigmas"}),
        "FlowMatchEulerDiscreteScheduler": ("euler", FLOW_KEYS, set()),
    }
    if kind not in kinds:
        raise InputError(
            f"{source}: _class_name is {kind!r}, expected one of {', '.join(sorted(kinds))}"
        )
    solver, keys, must = kinds[kind]
    for name in must:
        required(values, name, source=source)
    known = {name: value for name, value in values.items() if name != "_use_default_values"}
    fields = translate(known, keys, source=source)
    return Scheduler(solver, float(fields.get("shift", 1.0)))


def read_component_config(folder: str | os.PathLike[str], kind: str) -> typing.Any:
    """The config of a component's folder: "vae", "text_encoder", "image_encoder" and so on.

    Raises:
        InputError: for a fault in the file, which it names.
    """
    readers = {
        "vae": ("config.json", vae_config),
        "text_encoder": ("config.json", umt5_config),
        "image_encoder": ("config.json", clip_vision_config),
        "image_processor": ("preprocessor_config.json", clip_preparation),
        "dinov2": ("config.json", dinov2_config),
        "depth": ("config.json", depth_anything_config),
        "scheduler": ("scheduler_config.json", scheduler_config),
    }
    name, read = readers[kind]
    path = Path(folder) / name
    return read(read_json_object(path), source=str(path))
