"""What a rollout of the official models is made of: networks, choices, parameters.

The official pipeline differs from the small model's in what it is told: text and image tokens,
latents of a large autoencoder, whole reference views; and in how it denoises: from pure noise,
with guidance, in many steps or the distilled model's few.
"""

import dataclasses
import typing

import jax
from flax import linen as nn
from flax import struct
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pallas_kernels import AttentionSharding
from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.clip_vision import CLIPVisionConfig
from worldstereo_jax.models.control import LATENT_STRIDE
from worldstereo_jax.models.depth_anything import DepthAnythingConfig
from worldstereo_jax.models.dinov2 import Dinov2Config
from worldstereo_jax.models.quantised import quantised_model
from worldstereo_jax.models.umt5 import UMT5Config
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.guided_loop import LoopChoices, check_choice
from worldstereo_jax.sampling.reading import READING, Reading
from worldstereo_jax.sampling.warp_reading import WARPED_CHANNELS
from worldstereo_jax.sampling.world import RolloutConfig

LATENT_CHANNELS = 16
TOKEN_SIDE = 2 * LATENT_STRIDE
"""Image pixels per token along each axis."""
MODEL_AXIS = "model"
"""Mesh axis that a model is split over."""
ENTRY_TOKENS = 2048
"""Most surface entries that a clip attends to, where the model reads them: at full size a twentieth
of its tokens."""
CHOICES = {
    "retrieval": ("official", "coverage"),
    "attention": ("dense", "correspondence"),
    "latent_condition": ("full_vae", "first_frame_only"),
}


@dataclasses.dataclass(frozen=True)
class Quirks:
    """Slips of the official release; the defaults equal it, as its weights expect.

    Attributes:
        clip_pixels: see `clip_vision.clip_pixels`.
        ray_x_offset: see `cameras.plucker_rays`; 0.5 is the true pixel centre.
        point_edges: which depth edges the point cloud drops, see
            `global_geometric.update_global_memory`.
        quality_channels: how the retrieval weighs a view's quality; "official" weighs red as blue
            and blue as red, "rgb" does not.
    """

    clip_pixels: str = "official"
    ray_x_offset: float = -0.5
    point_edges: str = "official"
    quality_channels: str = "official"

    def __post_init__(self) -> None:
        if self.quality_channels not in ("official", "rgb"):
            raise InputError(
                f"quality_channels is {self.quality_channels!r}, expected official or rgb"
            )


OFFICIAL_QUIRKS = Quirks()
MENDED_QUIRKS = Quirks(
    clip_pixels="unit", ray_x_offset=0.5, point_edges="surface", quality_channels="rgb"
)


@dataclasses.dataclass(frozen=True)
class OfficialChoices(LoopChoices):
    """How clips are made: the loop's choices, and what it is told.

    Attributes:
        latent_condition: what the condition latent holds behind frame 0. "full_vae": the latent of
            the image followed by mid-grey frames, as one causal clip; "first_frame_only": the
            latent of a mid-grey image, repeated.
        retrieval: which stored views the clip attends to. "official": overlap of frustum boxes,
            and farthest points among more than fit; "coverage": by the surface they really show.
        attention: "dense" (official) or "correspondence": masked by geometry.
        vae_frames: frames that the autoencoder computes together.
        vae_tile: rows and columns, in latent pixels, of the tiles that it works in; None for whole
            frames.
        quirks: slips of the official code.
    """

    latent_condition: str = "full_vae"
    retrieval: str = "official"
    attention: str = "dense"
    vae_frames: int = 1
    vae_tile: int | None = None
    quirks: Quirks = OFFICIAL_QUIRKS

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, allowed in CHOICES.items():
            check_choice(name, getattr(self, name), allowed)


@dataclasses.dataclass(frozen=True)
class OfficialWorld:
    """The networks of an official model with the sizes they roll out at; holds no arrays.

    Attributes:
        name: of the checkpoint.
        rollout: sizes; its `frames` are those of the video, its `references` the views attended
            to. Its steps and shift are not read: `choices.schedule` holds them. `warp_views`,
            `candidates` and `entry_tokens` are for models that read warps or entries.
        choices: how clips are made.
        denoiser: the video transformer.
        vae: the autoencoder.
        image_encoder: None for a transformer without image tokens.
        dinov2: of retrieval; None where no more views are ever stored than are attended to.
        depth: monocular depth; None leaves depth unknown that the memories do not know.
        weights: "int8" or "float8", the type that the transformer's matrices are kept in; see
            `models.quantised`. None for that of its files.
        mesh: devices that share the work, along its axis `MODEL_AXIS`: the autoencoder's frames
            and tiles are spread over them, but a causal clip that is not cut into tiles is each
            device's own work. None for one device.
        reading: the functions by which clips read the spatial-stereo memory: the masks, choice by
            coverage, and for models with a `warped_width` or `entry_width` their warps and entries.

    Raises:
        InputError: when the networks do not fit each other.
    """

    name: str
    rollout: RolloutConfig
    choices: OfficialChoices
    denoiser: ModelConfig
    vae: WanVAEConfig
    image_encoder: CLIPVisionConfig | None = None
    dinov2: Dinov2Config | None = None
    depth: DepthAnythingConfig | None = None
    weights: str | None = None
    mesh: Mesh | None = None
    reading: Reading = READING

    def __post_init__(self) -> None:
        model, vae, rollout = self.denoiser, self.vae, self.rollout
        if model.control is None:
            raise InputError(
                f"{self.name}: a plain video model without a control branch follows no camera "
                "path; give a WorldStereo checkpoint"
            )
        check_networks(self.name, model, vae, self.image_encoder, (rollout.height, rollout.width))
        stride = model.control.mask_downsample
        if stride not in (1, vae.temporal_stride) or (rollout.frames - 1) % stride:
            raise InputError(
                f"{self.name}: {rollout.frames} frames at mask_downsample {stride}, expected 1 "
                f"or the vae's {vae.temporal_stride}, and 1 + a multiple of it"
            )
        if model.warped_width not in (0, WARPED_CHANNELS):
            raise InputError(
                f"{self.name}: the transformer reads warped features of {model.warped_width} "
                f"channels, expected {WARPED_CHANNELS}"
            )
        if self.choices.attention == "correspondence" and not self.has_references:
            raise InputError(
                f"{self.name}: a camera-control model attends to no views; leave the "
                "correspondence pattern out"
            )

    @property
    def transformer(self) -> nn.Module:
        """The module of the denoiser's parameters."""
        return video_transformer(self.denoiser, self.weights, self.mesh)

    @property
    def frame_stride(self) -> int:
        """Frames of the video per latent frame after the first: 1 for keyframes."""
        assert self.denoiser.control is not None
        return self.denoiser.control.mask_downsample

    @property
    def latent_frames(self) -> int:
        """Frames of the latent."""
        return (self.rollout.frames - 1) // self.frame_stride + 1

    @property
    def has_references(self) -> bool:
        """Whether the model attends to stored views."""
        return self.denoiser.camera_width is not None

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Frames, rows, columns and channels of a clip's latent."""
        rows, columns = (
            side // LATENT_STRIDE for side in (self.rollout.height, self.rollout.width)
        )
        return self.latent_frames, rows, columns, LATENT_CHANNELS


def check_networks(
    name: str,
    model: ModelConfig,
    vae: WanVAEConfig,
    image_encoder: CLIPVisionConfig | None,
    size: tuple[int, int],
) -> None:
    """Refuse networks that do not fit each other, or the height and width of their clips.

    Raises:
        InputError: beginning with the model's name.
    """
    if (vae.z_dim, vae.spatial_stride) != (LATENT_CHANNELS, LATENT_STRIDE):
        raise InputError(
            f"{name}: the vae has {vae.z_dim} channels and {vae.spatial_stride} pixels "
            f"per latent pixel, expected {LATENT_CHANNELS} and {LATENT_STRIDE}"
        )
    image = None if image_encoder is None else image_encoder.hidden_size
    if model.image_width != image:
        raise InputError(
            f"{name}: the image encoder has {image} channels, the transformer expects "
            f"{model.image_width}"
        )
    if any(side % TOKEN_SIDE for side in size):
        raise InputError(
            f"{name}: clips of {size[0]} x {size[1]} pixels, expected multiples of {TOKEN_SIDE}"
        )


def video_transformer(model: ModelConfig, weights: str | None, mesh: Mesh | None) -> nn.Module:
    """The module of a transformer's parameters.

    Attention is split by heads where they divide among the devices, in both branches; else by
    queries.

    Args:
        model: sizes.
        weights: type that its matrices are kept in, see `models.quantised`; None for their own.
        mesh: devices that share the work along `MODEL_AXIS`, None for one.
    """
    sharding = None
    if mesh is not None:
        heads = [model.num_heads, *([model.control.num_heads] if model.control else [])]
        divide = all(count % mesh.shape[MODEL_AXIS] == 0 for count in heads)
        split = {"heads" if divide else "queries": MODEL_AXIS}
        sharding = AttentionSharding(mesh, **split)
    if weights is None:
        return WorldStereo(model, sharding)
    return quantised_model(model, weights, sharding)


def on_all_devices(tree: PyTree, mesh: Mesh | None) -> PyTree:
    """Inside a program: arrays whole on every device of a mesh; as they are without one."""
    if mesh is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(mesh, PartitionSpec()))


def check_text_encoder(model: ModelConfig, encoder: UMT5Config, name: str) -> None:
    """Refuse a text encoder of another width than the transformer takes.

    Raises:
        InputError: naming both widths.
    """
    if encoder.d_model != model.text_dim:
        raise InputError(
            f"{name}: the text encoder has {encoder.d_model} channels, the transformer expects "
            f"{model.text_dim}"
        )


@struct.dataclass
@typing.no_type_check
class OfficialParams:
    """Parameters of an `OfficialWorld`'s networks, one pytree each; None where it has none."""

    denoiser: PyTree
    vae: PyTree
    image_encoder: PyTree = None
    dinov2: PyTree = None
    depth: PyTree = None


@struct.dataclass
@typing.no_type_check
class Prompt:
    """Text encoder's output for a clip: `text` and `negative`, each [l, ct], 0 past its end."""

    text: jax.Array
    negative: jax.Array
