"""Sizes and choices of the models: frozen dataclasses, and the presets users name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from worldstereo_jax.errors import InputError, nearest_hint

NORMALISATIONS = ("allowed", "multiply")
REFERENCE_POSITIONS = ("beside", "surface")
"""Rotary positions of reference tokens: in a grid beside the target's, as the official models have
them, or where the surface is that they show."""
REMAT_POLICIES = ("none", "full", "dots", "dots_without_batch")
"""How much a layer keeps for the backward pass: everything, nothing, or the results of its
matrix products (the last: only of those without a batch dimension, that is, of the weights)."""


@dataclasses.dataclass(frozen=True)
class ControlConfig:
    """Sizes of the control branch, through which the global-geometric memory guides the camera.

    Attributes:
        width: channels of the branch's stream (official key `dim`).
        ffn_width: hidden channels of its feed-forward layers (`ffn_dim`).
        num_heads: attention heads.
        num_layers: blocks; block i adds its residual after backbone block i.
        embed_width: channels of the branch's patch embedding (`conv_out_dim`); a linear layer
            follows where it differs from `width`.
        mid_channels: channels between the two convolutions of the mask and ray embedding.
        pixel_channels: channels at pixel resolution (`add_channels`): render mask 1, rays 6.
        latent_channels: 16 noisy latent, 4 mask, 16 render latent.
        mask_downsample: frames per latent frame of the pixel channels: 4 for clips encoded as
            video, 1 for keyframes.
    """

    width: int
    ffn_width: int
    num_heads: int
    num_layers: int
    embed_width: int
    mid_channels: int = 32
    pixel_channels: int = 7
    latent_channels: int = 36
    mask_downsample: int = 1


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of the video transformer with its memories.

    Attributes:
        width: channels of a token.
        num_layers: transformer blocks.
        num_heads: attention heads; `width` is a multiple.
        ffn_width: hidden channels of the feed-forward layers.
        text_dim: channels of a text token.
        in_channels: 16 noisy latent, 4 mask, 16 condition latent.
        out_channels: channels of the predicted latent.
        patch_size: latent frames, rows and columns in a token.
        freq_dim: sinusoids of the time embedding.
        image_width: channels of an image-encoder token, None for a model without them.
        camera_width: channels of a camera vector (quaternion wxyz, translation), None for a
            model that takes no camera vector (the camera-control stage).
        control: the control branch, None for a plain video model.
        update_ref: False gives every block the references as they entered the first one.
        reference_positions: one of `REFERENCE_POSITIONS`; "surface" needs `References.place`.
        warped_width: channels of the warped memory features (row S18); 0 leaves their slots
            out of the parameters.
        entry_width: channels of the memory's entries (row S28); 0 leaves their keys and values
            out of the parameters.
        attention_pattern: for each layer (or one name for all) which mask the joint
            self-attention takes: "dense" never masks, any other name is looked up among the
            masks given to the call (row S20).
        attention_implementation: backend of the masked attention, None for the best available.
        attention_normalisation: one of `NORMALISATIONS`: the softmax of masked attention is over
            the allowed keys, or over all keys and then multiplied by the mask (row S16).
        dtype: compute type; parameters, norms and modulation stay float32.
        scan_layers: layers as one scanned stack (compiles once, parameters stacked) or one by one.
        remat: one of `REMAT_POLICIES`.
    """

    width: int
    num_layers: int
    num_heads: int
    ffn_width: int
    text_dim: int
    in_channels: int = 36
    out_channels: int = 16
    patch_size: tuple[int, int, int] = (1, 2, 2)
    freq_dim: int = 256
    image_width: int | None = None
    camera_width: int | None = 7
    control: ControlConfig | None = None
    update_ref: bool = True
    reference_positions: str = "beside"
    warped_width: int = 0
    entry_width: int = 0
    attention_pattern: str | tuple[str, ...] = "correspondence"
    attention_implementation: str | None = None
    attention_normalisation: str = "allowed"
    dtype: str = "float32"
    scan_layers: bool = True
    remat: str = "none"

    def __post_init__(self) -> None:
        if self.width % self.num_heads or (self.width // self.num_heads) % 2:
            raise InputError(
                f"width {self.width} must be a multiple of num_heads {self.num_heads} "
                "with an even size per head"
            )
        control = self.control
        if control is not None:
            if control.width % control.num_heads or (control.width // control.num_heads) % 2:
                raise InputError(
                    f"control.width {control.width} must be a multiple of control.num_heads "
                    f"{control.num_heads} with an even size per head"
                )
            if control.num_layers > self.num_layers:
                raise InputError(
                    f"control.num_layers is {control.num_layers}, expected at most the backbone's "
                    f"{self.num_layers}"
                )
        if self.remat not in REMAT_POLICIES:
            raise InputError(
                f"remat is {self.remat!r}, expected one of {', '.join(REMAT_POLICIES)}"
            )
        if self.reference_positions not in REFERENCE_POSITIONS:
            raise InputError(
                f"reference_positions is {self.reference_positions!r}, expected one of "
                f"{', '.join(REFERENCE_POSITIONS)}"
            )
        if self.reference_positions == "surface" and self.camera_width is None:
            raise InputError(
                "reference_positions is 'surface', but a model without camera_width attends to "
                "no views"
            )
        if self.attention_normalisation not in NORMALISATIONS:
            raise InputError(
                f"attention_normalisation is {self.attention_normalisation!r}, expected one of "
                f"{', '.join(NORMALISATIONS)}"
            )
        patterns = self.attention_pattern
        if not isinstance(patterns, str) and len(patterns) != self.num_layers:
            raise InputError(
                f"attention_pattern names {len(patterns)} layers, expected {self.num_layers}"
            )

    @property
    def head_size(self) -> int:
        """Channels of one attention head."""
        return self.width // self.num_heads

    @property
    def controlled_layers(self) -> int:
        """Backbone layers that run in lockstep with a control block."""
        return self.control.num_layers if self.control is not None else 0

    @property
    def layer_patterns(self) -> tuple[str, ...]:
        """The attention pattern of each layer, by name."""
        if isinstance(self.attention_pattern, str):
            return (self.attention_pattern,) * self.num_layers
        return self.attention_pattern

    @property
    def compute_dtype(self) -> jnp.dtype:
        """`dtype` as a jax type."""
        return jnp.dtype(self.dtype)

    def replace(self, **changes: Any) -> "ModelConfig":
        """A copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain json values; `from_dict` reads them back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "ModelConfig":
        """Read what `to_dict` wrote.

        Raises:
            InputError: for a field that does not exist, named with the nearest that does.
        """
        values = config_fields(cls, fields, "model config")
        if values.get("control") is not None:
            control = config_fields(ControlConfig, values["control"], "model config, control")
            values["control"] = ControlConfig(**control)
        return cls(**values)


def config_fields(cls: type, values: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Arguments for a config dataclass from JSON: lists become tuples.

    Raises:
        InputError: for a field that does not exist, named with the nearest that does; `what` begins
            the sentence.
    """
    known = [field.name for field in dataclasses.fields(cls)]
    for name in values:
        if name not in known:
            raise InputError(f"{what}: unknown field {name!r}: {nearest_hint(name, known)}")
    return {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }


_WAN_14B = ModelConfig(
    width=5120,
    num_layers=40,
    num_heads=40,
    ffn_width=13824,
    text_dim=4096,
    image_width=1280,
    camera_width=None,
    dtype="bfloat16",
    remat="full",
)

# The sizes of the control branch are inferred from the published checkpoint's 1.00 B parameters;
# a real checkpoint's config.json and tensor shapes overrule them.
_CONTROL_14B = ControlConfig(
    width=1024,
    ffn_width=4096,
    num_heads=16,
    num_layers=20,
    embed_width=5120,
    mid_channels=256,
)

PRESETS: dict[str, ModelConfig] = {
    "tiny": ModelConfig(
        width=192,
        num_layers=4,
        num_heads=6,
        ffn_width=512,
        text_dim=8,
        freq_dim=64,
        control=ControlConfig(
            width=96, ffn_width=256, num_heads=3, num_layers=2, embed_width=96, mid_channels=32
        ),
        warped_width=17,
        entry_width=90,
    ),
    "wan_t2v_1.3b": ModelConfig(
        width=1536,
        num_layers=30,
        num_heads=12,
        ffn_width=8960,
        text_dim=4096,
        in_channels=16,
        camera_width=None,
        dtype="bfloat16",
        remat="full",
    ),
    "wan_14b": _WAN_14B,
    "wan_14b_camera": _WAN_14B.replace(control=_CONTROL_14B),
    "wan_14b_memory": _WAN_14B.replace(control=_CONTROL_14B, camera_width=7),
}


def get_preset(name: str) -> ModelConfig:
    """The model config of that name.

    Raises:
        InputError: for an unknown name, suggesting the nearest.
    """
    if name not in PRESETS:
        raise InputError(f"unknown preset {name!r}: {nearest_hint(name, PRESETS)}")
    return PRESETS[name]
