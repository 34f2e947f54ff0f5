"""A plain Wan 2.1 model, from text or from an image, with everything around it.

As `official_pipeline` for WorldStereo: `open_video` reads configs and headers, so that what does
not fit is said before gigabytes move; `official_pipeline.load_official` and `text_states` do the
rest.
"""

import dataclasses

import jax.numpy as jnp
from jax.sharding import Mesh
from jax.typing import DTypeLike

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import read_json_object
from worldstereo_jax.interop.component_configs import Scheduler
from worldstereo_jax.interop.hub import resolve
from worldstereo_jax.interop.official import model_places, parameter_shapes
from worldstereo_jax.interop.official_pipeline import (
    ModelFiles,
    PathOrId,
    open_around,
)
from worldstereo_jax.interop.pretrained import load_scheduler, open_model
from worldstereo_jax.interop.streaming import check_sources
from worldstereo_jax.sampling.guided_loop import LoopChoices
from worldstereo_jax.sampling.plain_video import VideoWorld

VIDEO_STEPS, VIDEO_SCALE, VIDEO_FRAMES = 50, 5.0, 81
"""What diffusers' Wan pipelines take unless told otherwise."""
VIDEO_SIZE = 480, 832
"""Height and width of clips of text, and the area of those of an image."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class VideoFiles(ModelFiles):
    """Where a plain model's parts lie, and their configs; nothing is loaded yet.

    Attributes:
        scheduler: the noise schedule.
    """

    scheduler: Scheduler


def open_video(model: PathOrId, *, base: PathOrId | None = None) -> VideoFiles:
    """Find a plain Wan 2.1 model's parts and read their configs.

    Args:
        model: folder or hub id, in the layout of diffusers; or a folder that `worldstereo convert`
            wrote of one.
        base: where VAE, encoders, tokenizer and scheduler lie; None for the model itself.

    Raises:
        InputError: for every fault of the configs, headers and folders, by name; for a WorldStereo
            checkpoint; and for a Wan 2.2 model, whose pipeline is another.
    """
    _refuse_later_pipelines(model)
    opened = open_model(model)
    if opened.settings is not None:
        raise InputError(
            f"{model}: is a WorldStereo checkpoint, which follows a camera path: worldstereo "
            "generate runs it"
        )
    config = opened.config
    check_sources(opened.sources, model_places(config), parameter_shapes(config))
    base = base or model
    if not (resolve(base, patterns=["vae/config.json"]) / "vae").is_dir():
        raise InputError(f"{base}: has no folder vae; name the base model that has it")
    return VideoFiles(
        model=model, base=base, scheduler=load_scheduler(base), **open_around(model, base, config)
    )


def _refuse_later_pipelines(model: PathOrId) -> None:
    name = "model_index.json"
    path = resolve(model, patterns=[name]) / name
    values = read_json_object(path) if path.is_file() else {}
    second = values.get("transformer_2") or [None]
    for key, used in (
        ("boundary_ratio", values.get("boundary_ratio") is not None),
        ("transformer_2", second[0] is not None),
        ("expand_timesteps", bool(values.get("expand_timesteps"))),
    ):
        if used:
            raise InputError(
                f"{path}: {key} is {values[key]!r}: a Wan 2.2 pipeline; a Wan 2.1 model was "
                "expected"
            )


def video_world(
    files: VideoFiles,
    choices: LoopChoices,
    *,
    frames: int = VIDEO_FRAMES,
    size: tuple[int, int] = VIDEO_SIZE,
    dtype: DTypeLike = "bfloat16",
    vae_tile: int | None = None,
    weights: str | None = None,
    mesh: Mesh | None = None,
) -> VideoWorld:
    """The world of an opened model.

    Args:
        files: of `open_video`.
        choices: schedule, solver and guidance.
        frames: of the video, 1 + a multiple of 4.
        size: its height and width.
        dtype: compute type of the transformer.
        vae_tile, weights, mesh: see `VideoWorld`.

    Raises:
        InputError: when the networks do not fit each other or the size.
    """
    return VideoWorld(
        name=files.name,
        frames=frames,
        height=size[0],
        width=size[1],
        choices=choices,
        denoiser=files.denoiser.replace(dtype=jnp.dtype(dtype).name),
        vae=files.vae,
        image_encoder=files.image_encoder,
        vae_tile=vae_tile,
        weights=weights,
        mesh=mesh,
    )
