"""Config files of the video transformer: Wan 2.1's own, and WorldStereo's over it."""

import dataclasses
import typing
from collections.abc import Mapping

from worldstereo_jax.config import REFERENCE_POSITIONS, ControlConfig, ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.official_config import (
    FLAG,
    NUMBER,
    OBJECT,
    PAIRS,
    TEXT,
    WHOLE,
    Keys,
    check_kinds,
    required,
    translate,
)
from worldstereo_jax.sampling.schedules import Schedule, dmd_schedule

WAN_KEYS = Keys(
    {
        "added_kv_proj_dim": "image_keys",
        "attention_head_dim": "head_size",
        "ffn_dim": "ffn_width",
        "freq_dim": "freq_dim",
        "image_dim": "image_width",
        "in_channels": "in_channels",
        "num_attention_heads": "num_heads",
        "num_layers": "num_layers",
        "out_channels": "out_channels",
        "patch_size": "patch_size",
        "text_dim": "text_dim",
    },
    {
        "cross_attn_norm": True,
        "eps": 1e-6,
        "qk_norm": "rms_norm_across_heads",
        "pos_embed_seq_len": None,
    },
    "rope_max_seq_len",
)

CONTROL_KEYS = Keys(
    {
        "conv_out_dim": "embed_width",
        "dim": "width",
        "ffn_dim": "ffn_width",
        "num_heads": "num_heads",
        "num_layers": "num_layers",
        "add_channels": "pixel_channels",
        "mid_channels": "mid_channels",
        "mask_downsample": "mask_downsample",
        "time_embed_dim": "time_width",
        "update_ref": "update_ref",
        "main_camera_embedding": "has_camera",
        "camera_embedding_dim": "camera_width",
    },
    {},
    "ref_embedding",
)

WORLDSTEREO_KEYS = Keys(
    {
        "base_model": "base_model",
        "controlnet_cfg": "control",
        "nframe": "frames",
        "scale_map": "sizes",
        "negative_prompt": "negative_prompt",
        "latent_cond_mode": "latent_condition",
        "dmd_start_steps": "dmd_start",
        "dmd_end_steps": "dmd_end",
        "gen_shift": "dmd_shift",
        "dmd_steps": "dmd_steps",
        # This project's own; no published checkpoint has them. The widths: `memory_slots`.
        "warped_width": "warped_width",
        "entry_width": "entry_width",
        "reference_positions": "reference_positions",
    },
    {},
    "freeze_backbone",
)

_CONTROL_KINDS = {
    **dict.fromkeys(CONTROL_KEYS.translated, WHOLE),
    "update_ref": FLAG,
    "main_camera_embedding": FLAG,
}
_WORLDSTEREO_KINDS = {
    "base_model": TEXT, "controlnet_cfg": OBJECT, "nframe": WHOLE, "scale_map": PAIRS,
    "negative_prompt": TEXT, "latent_cond_mode": TEXT, "dmd_start_steps": NUMBER,
    "dmd_end_steps": NUMBER, "gen_shift": NUMBER, "dmd_steps": WHOLE, "warped_width": WHOLE,
    "entry_width": WHOLE, "reference_positions": TEXT,
}  # fmt: skip

LATENT_CONDITIONS = ("full_vae", "first_frame_only")


@dataclasses.dataclass(frozen=True)
class DMDSettings:
    """The few-step schedule of a distilled checkpoint: steps, their range, and the shift."""

    steps: int = 4
    start: float = 250.0
    end: float = 1000.0
    shift: float = 5.0

    def schedule(self) -> Schedule:
        """The schedule."""
        return dmd_schedule(self.steps, self.start, self.end, self.shift)

    def to_official(self) -> dict[str, int | float]:
        """The keys of config.json that `worldstereo_settings` reads back."""
        return {
            "dmd_steps": self.steps,
            "dmd_start_steps": self.start,
            "dmd_end_steps": self.end,
            "gen_shift": self.shift,
        }


@dataclasses.dataclass(frozen=True)
class WorldStereoSettings:
    """A published checkpoint's config.json.

    Attributes:
        control: the control branch.
        update_ref: see `ModelConfig`.
        camera_width: see `ModelConfig`.
        base_model: folder or hub id of the base model, None when not named.
        frames: latent frames of a clip.
        sizes: (height, width) of the clips it was trained for.
        negative_prompt: for guidance.
        latent_condition: one of `LATENT_CONDITIONS`.
        dmd: the few-step schedule, None for a model of many steps.
        warped_width, entry_width: see `ModelConfig`; 0 for every published checkpoint.
        reference_positions: see `ModelConfig`; "beside" for every published checkpoint.
    """

    control: ControlConfig
    update_ref: bool = True
    camera_width: int | None = None
    base_model: str | None = None
    frames: int = 21
    sizes: tuple[tuple[int, int], ...] = ((480, 832),)
    negative_prompt: str = ""
    latent_condition: str = "full_vae"
    dmd: DMDSettings | None = None
    warped_width: int = 0
    entry_width: int = 0
    reference_positions: str = "beside"

    def model_config(self, backbone: ModelConfig) -> ModelConfig:
        """The whole model: this branch over a backbone."""
        return backbone.replace(
            control=self.control,
            update_ref=self.update_ref,
            camera_width=self.camera_width,
            warped_width=self.warped_width,
            entry_width=self.entry_width,
            reference_positions=self.reference_positions,
        )

    def size_for(self, height: int, width: int) -> tuple[int, int]:
        """The trained size whose ratio of height to width is nearest to an image's."""
        ratio = height / width
        return min(self.sizes, key=lambda size: abs(size[0] / size[1] - ratio))


def wan_config(
    values: Mapping[str, typing.Any], *, source: str = "transformer config"
) -> ModelConfig:
    """The backbone of a Wan 2.1 transformer's config.

    Raises:
        InputError: for an unknown, missing or contradictory key.
    """
    fields = translate(values, WAN_KEYS, source=source)
    kinds = {name: WHOLE for name in WAN_KEYS.translated if name != "patch_size"}
    check_kinds(values, kinds, optional="added_kv_proj_dim image_dim", source=source)
    for name in ("num_attention_heads", "num_layers", "ffn_dim", "text_dim"):
        required(values, name, source=source)
    width = fields["num_heads"] * fields.pop("head_size", 128)
    keys = fields.pop("image_keys", None)
    image_width = fields.get("image_width")
    if keys is not None and keys != width:
        raise InputError(f"{source}: added_kv_proj_dim is {keys}, expected the width {width}")
    if (keys is None) != (image_width is None):
        raise InputError(f"{source}: image_dim and added_kv_proj_dim must be given together")
    return ModelConfig(**{"in_channels": 16, **fields, "width": width, "camera_width": None})


def worldstereo_settings(
    values: Mapping[str, typing.Any], *, source: str = "config.json"
) -> WorldStereoSettings:
    """What a published checkpoint's config.json says.

    Raises:
        InputError: for an unknown or missing key, or a value that is not supported, by name.
    """
    fields = translate(values, WORLDSTEREO_KEYS, source=source)
    inner = required(values, "controlnet_cfg", source=source)
    check_kinds(values, _WORLDSTEREO_KINDS, optional="base_model", source=source)
    branch = f"{source}, controlnet_cfg"
    control = translate(inner, CONTROL_KEYS, source=branch)
    unread = "time_embed_dim camera_embedding_dim"
    check_kinds(inner, _CONTROL_KINDS, optional=unread, source=branch)
    control.pop("time_width", None)
    camera_width = control.pop("camera_width", 7)
    has_camera = control.pop("has_camera", False)
    update_ref = control.pop("update_ref", True)
    for name in ("dim", "ffn_dim", "num_heads", "num_layers", "conv_out_dim"):
        required(inner, name, source=branch)
    dmd = _dmd_settings(fields)
    sizes = fields.pop("sizes", [(480, 832)])
    settings = {
        **{name: value for name, value in fields.items() if name != "control"},
        "sizes": tuple((int(size[0]), int(size[1])) for size in sizes),
    }
    condition = settings.get("latent_condition", LATENT_CONDITIONS[0])
    if condition not in LATENT_CONDITIONS:
        raise InputError(
            f"{source}: latent_cond_mode is {condition!r}, expected one of "
            f"{', '.join(LATENT_CONDITIONS)}"
        )
    positions = settings.get("reference_positions", REFERENCE_POSITIONS[0])
    if positions not in REFERENCE_POSITIONS:
        raise InputError(
            f"{source}: reference_positions is {positions!r}, expected one of "
            f"{', '.join(REFERENCE_POSITIONS)}"
        )
    if positions == "surface" and not has_camera:
        raise InputError(
            f"{source}: reference_positions is 'surface', but a camera-control model attends to no "
            "views (main_camera_embedding of controlnet_cfg is not true)"
        )
    return WorldStereoSettings(
        control=ControlConfig(**control),
        update_ref=update_ref,
        camera_width=camera_width if has_camera else None,
        dmd=dmd,
        **settings,
    )


def _dmd_settings(fields: dict[str, typing.Any]) -> DMDSettings | None:
    """Take the few-step schedule out of the fields; None when no key of it is there."""
    names = ("dmd_steps", "dmd_start", "dmd_end", "dmd_shift")
    found = {name: fields.pop(name) for name in names if name in fields}
    if not found:
        return None
    default = DMDSettings()
    return DMDSettings(
        steps=int(found.get("dmd_steps", default.steps)),
        start=float(found.get("dmd_start", default.start)),
        end=float(found.get("dmd_end", default.end)),
        shift=float(found.get("dmd_shift", default.shift)),
    )
