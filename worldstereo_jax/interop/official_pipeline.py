"""An official model with everything around it, from folders or hub ids.

Configs first: `open_official` reads them and checks every header, so that what does not fit is
said before gigabytes move. `load_official` then streams the weights of the chosen networks, and
`text_states` runs the text encoder, which need not stay in memory for it.
"""

import dataclasses
import os
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jax.typing import DTypeLike

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.component_configs import Scheduler, read_component_config
from worldstereo_jax.interop.hub import resolve
from worldstereo_jax.interop.identity import encoder_identity
from worldstereo_jax.interop.model_configs import WorldStereoSettings
from worldstereo_jax.interop.official import model_places, parameter_shapes
from worldstereo_jax.interop.pretrained import (
    Component,
    component_shapes,
    from_pretrained,
    load_component,
    load_scheduler,
    load_tokenizer,
    open_model,
)
from worldstereo_jax.interop.streaming import check_sources
from worldstereo_jax.interop.text_cache import Encode, TextCache, make_text_encoder
from worldstereo_jax.models.clip_vision import CLIPVisionConfig
from worldstereo_jax.models.depth_anything import DepthAnythingConfig
from worldstereo_jax.models.dinov2 import Dinov2Config
from worldstereo_jax.models.placement import (
    Placement,
    bytes_per_device,
    one_device,
    tensor_parallel,
)
from worldstereo_jax.models.quantised import quantised_paths
from worldstereo_jax.models.umt5 import UMT5Config
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.sampling.official_world import (
    MODEL_AXIS,
    OfficialChoices,
    OfficialParams,
    OfficialWorld,
    check_text_encoder,
)
from worldstereo_jax.sampling.schedules import Schedule
from worldstereo_jax.sampling.world import RolloutConfig

OFFICIAL_STEPS, OFFICIAL_SCALE = 40, 5.0
"""Steps and guidance of the models that were not distilled."""

PathOrId = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFiles:
    """Where a video model's parts lie, and their configs; nothing is loaded yet.

    Attributes:
        model, base: folder or hub id of the transformer, and of what is around it.
        denoiser, vae, text_encoder, image_encoder: sizes; the text encoder is None for a base
            folder without, which serves prompts of a cache alone; the image encoder for a
            transformer without image tokens.
        dinov2_source, depth_source: of the networks for retrieval and depth, None without.
        dinov2, depth: their sizes.
    """

    model: PathOrId
    base: PathOrId
    denoiser: ModelConfig
    vae: WanVAEConfig
    text_encoder: UMT5Config | None
    image_encoder: CLIPVisionConfig | None
    dinov2_source: PathOrId | None = None
    depth_source: PathOrId | None = None
    dinov2: Dinov2Config | None = None
    depth: DepthAnythingConfig | None = None

    @property
    def name(self) -> str:
        """The model's name: the last part of its path or id."""
        return Path(self.model).name


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfficialFiles(ModelFiles):
    """Where a WorldStereo checkpoint's parts lie, and their configs.

    Attributes:
        settings: the checkpoint's config.json.
        scheduler: the base model's noise schedule; None for a distilled checkpoint, which has its
            own.
    """

    settings: WorldStereoSettings
    scheduler: Scheduler | None

    def schedule(self, steps: int | None = None) -> tuple[Schedule, str]:
        """Schedule and solver of so many steps: the distilled one, or the base model's."""
        if self.settings.dmd is not None:
            dmd = self.settings.dmd
            return dataclasses.replace(dmd, steps=steps or dmd.steps).schedule(), "euler"
        assert self.scheduler is not None
        return self.scheduler.schedule(steps or OFFICIAL_STEPS), self.scheduler.solver


def open_official(
    model: PathOrId,
    *,
    base: PathOrId | None = None,
    dinov2: PathOrId | None = None,
    depth: PathOrId | None = None,
) -> OfficialFiles:
    """Find a WorldStereo checkpoint's parts and read their configs.

    Args:
        model: folder or hub id of the checkpoint.
        base: of the base model, None for the one that the checkpoint names.
        dinov2: of the retrieval encoder.
        depth: of the monocular depth network.

    Raises:
        InputError: for every fault of the configs, headers and folders, by name.
    """
    opened = open_model(model, base=base)
    settings = opened.settings
    if settings is None:
        raise InputError(
            f"{model}: is a plain Wan 2.1 model, whose config has no controlnet_cfg; a camera path "
            "needs a WorldStereo checkpoint, and worldstereo video runs this one"
        )
    # Now, not after the text encoder's gigabytes.
    config = opened.config
    check_sources(opened.sources, model_places(config), parameter_shapes(config))
    base = base or settings.base_model
    if base is None:
        raise InputError(f"{model}: needs a base model for its VAE and encoders; name one")
    return OfficialFiles(
        model=model,
        base=base,
        dinov2_source=dinov2,
        depth_source=depth,
        settings=settings,
        dinov2=None if dinov2 is None else _config(dinov2, "dinov2"),
        depth=None if depth is None else _metric(_config(depth, "depth"), str(depth)),
        scheduler=None if settings.dmd is not None else load_scheduler(base),
        **open_around(model, base, config),
    )


def open_around(model: PathOrId, base: PathOrId, config: ModelConfig) -> dict[str, typing.Any]:
    """The fields of `ModelFiles` that a transformer's config and its base model's configs give.

    Raises:
        InputError: for every fault of the configs, by name.
    """
    text = _text_config(base)
    if text is not None:
        check_text_encoder(config, text, str(model))
    return {
        "denoiser": config,
        "vae": _config(base, "vae"),
        "text_encoder": text,
        "image_encoder": _image_encoder(base) if config.image_width is not None else None,
    }


def _config(source: PathOrId, kind: str):
    if kind in ("dinov2", "depth"):
        return read_component_config(resolve(source, patterns=["config.json"]), kind)
    folder = resolve(source, patterns=[f"{kind}/config.json"])
    return read_component_config(folder / kind, kind)


def _image_encoder(base: PathOrId) -> CLIPVisionConfig:
    """The image encoder, with the preparation of images that lies beside it; else the published."""
    config = _config(base, "image_encoder")
    name = "image_processor/preprocessor_config.json"
    path = resolve(base, patterns=[name]) / name
    if not path.is_file():
        return config
    preparation = read_component_config(path.parent, "image_processor")
    try:
        return dataclasses.replace(config, preparation=preparation)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _text_config(base: PathOrId) -> UMT5Config | None:
    folder = resolve(base, patterns=["text_encoder/config.json"]) / "text_encoder"
    return read_component_config(folder, "text_encoder") if folder.is_dir() else None


def _metric(config: DepthAnythingConfig, source: str) -> DepthAnythingConfig:
    if not config.metric:
        raise InputError(
            f"{source}: gives relative depth (depth_estimation_type), expected a metric model"
        )
    return config


def official_world(
    files: OfficialFiles,
    rollout: RolloutConfig,
    choices: OfficialChoices,
    *,
    dtype: DTypeLike = "bfloat16",
    weights: str | None = None,
    mesh: Mesh | None = None,
) -> OfficialWorld:
    """The world of an opened model.

    Args:
        files: of `open_official`.
        rollout: sizes.
        choices: how clips are made.
        dtype: compute type of the transformer, whose products are exact in float32. The other
            networks compute in float32: see `sampling.precision`.
        weights: "int8" or "float8" keeps the transformer's matrices in that type.
        mesh: devices that share the work, None for one.

    Raises:
        InputError: when the networks do not fit each other.
    """
    denoiser = files.denoiser.replace(dtype=jnp.dtype(dtype).name)
    return OfficialWorld(
        name=files.name,
        rollout=rollout,
        choices=choices,
        denoiser=denoiser,
        vae=files.vae,
        image_encoder=files.image_encoder,
        dinov2=files.dinov2,
        depth=files.depth,
        weights=weights,
        mesh=mesh,
    )


def _split(mesh: Mesh | None) -> Placement:
    """Placement of a large network: split over the devices, if there are several."""
    return one_device if mesh is None else tensor_parallel(mesh, MODEL_AXIS)


def _whole(mesh: Mesh | None) -> Placement:
    """Placement of a small network: whole on every device."""
    if mesh is None:
        return one_device
    everywhere = NamedSharding(mesh, PartitionSpec())
    return lambda path, shape: everywhere


def load_official(
    files: ModelFiles,
    *,
    dtype: DTypeLike = "bfloat16",
    weights: str | None = None,
    mesh: Mesh | None = None,
    lora: PathOrId | None = None,
    lora_scale: float = 1.0,
    progress: bool = True,
) -> OfficialParams:
    """The parameters of a world's networks on the devices.

    Args:
        files: of `open_official` or `open_video`.
        dtype: of the transformer's parameters; the small networks keep float32.
        weights: "int8" or "float8" brings its matrices into that type as they are read.
        mesh: devices that the transformer is split over; the others are on all of them.
        lora, lora_scale: see `from_pretrained`.
        progress: show a bar per network.

    Raises:
        InputError: for every fault of the files.
    """

    denoiser = from_pretrained(
        files.model, base=files.base, dtype=dtype, weights=weights, placement=_split(mesh),
        lora=lora, lora_scale=lora_scale, progress=progress,
    )  # fmt: skip
    around = load_encoders(files, mesh=mesh, progress=progress)
    return dataclasses.replace(around, denoiser=denoiser.params)


def device_bytes(
    files: ModelFiles,
    *,
    dtype: DTypeLike = "bfloat16",
    weights: str | None = None,
    mesh: Mesh | None = None,
) -> dict[str, int]:
    """Bytes that each device will hold of each network's parameters, from headers and configs.

    The text encoder's are among them, though `text_states` lets it go before the others come. What
    computing takes comes on top.

    Args: as in `load_official`, and of the text encoder as in `text_states`.

    Raises:
        InputError: for weights in 8 bits without the quantise extra.
    """
    size, shapes = jnp.dtype(dtype).itemsize, parameter_shapes(files.denoiser)
    small = set() if weights is None else quantised_paths(files.denoiser, weights)
    quantised = {path: shape for path, shape in shapes.items() if path in small}
    others = {path: shape for path, shape in shapes.items() if path not in small}
    found = {
        "transformer": bytes_per_device(others, size, _split(mesh))
        + bytes_per_device(quantised, 1, _split(mesh))
    }
    for kind, placement, item in (
        ("text_encoder", _split(mesh), size),
        *((kind, _whole(mesh), 4) for kind in ("vae", "image_encoder", "dinov2", "depth")),
    ):
        config = getattr(files, kind)
        if config is not None:
            found[kind] = bytes_per_device(component_shapes(config, kind), item, placement)
    return found


def load_encoders(
    files: ModelFiles, *, mesh: Mesh | None = None, progress: bool = True
) -> OfficialParams:
    """The parameters of all networks but the transformer, which is left None.

    Args as in `load_official`.

    Raises:
        InputError: for every fault of the files.
    """

    def component(source: PathOrId, kind: str) -> Component:
        return load_component(
            source, kind, dtype="float32", placement=_whole(mesh), progress=progress
        )

    image = files.image_encoder
    dinov2, depth = files.dinov2_source, files.depth_source
    return OfficialParams(
        denoiser=None,
        vae=component(files.base, "vae").params,
        image_encoder=None if image is None else component(files.base, "image_encoder").params,
        dinov2=None if dinov2 is None else component(dinov2, "dinov2").params,
        depth=None if depth is None else component(depth, "depth").params,
    )


def text_states(
    files: ModelFiles,
    prompts: Sequence[str],
    *,
    dtype: DTypeLike = "bfloat16",
    cache: PathOrId | None = None,
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Float[Array, "n l ct"]:
    """What the transformer receives of prompts; the text encoder is let go afterwards.

    Args:
        files: of `open_official` or `open_video`.
        prompts: texts.
        dtype: of the text encoder's parameters and products.
        cache: folder in which states are kept; prompts found there need no encoder. None for none.
        mesh: devices that the encoder is split over.
        progress: show a bar.

    Raises:
        InputError: for every fault of the encoder's, tokenizer's or cache's files; and where the
            base has no encoder, for a prompt that is not in the cache.
    """

    if cache is None:
        return _make_encode(files, dtype, cache, mesh, progress)(prompts)
    return open_text_cache(files, cache, dtype=dtype, mesh=mesh, progress=progress)(prompts)


def needs_text_encoder(
    files: ModelFiles,
    prompts: Sequence[str],
    *,
    dtype: DTypeLike = "bfloat16",
    cache: PathOrId | None = None,
) -> bool:
    """Whether `text_states` has to load the encoder.

    Args as there.
    """
    return cache is None or bool(_text_cache(files, cache, dtype, _no_encoder).missing(prompts))


def _no_encoder() -> Encode:
    raise AssertionError("looking into the cache made the encoder")


def open_text_cache(
    files: ModelFiles,
    cache: PathOrId,
    *,
    dtype: DTypeLike = "bfloat16",
    mesh: Mesh | None = None,
    progress: bool = True,
) -> Encode:
    """`text_states` of any number of calls, for which the encoder is loaded once, or never.

    Args as there.
    """
    states = _text_cache(
        files, cache, dtype, lambda: _make_encode(files, dtype, cache, mesh, progress)
    )

    def encode(prompts: Sequence[str]) -> Float[Array, "n l ct"]:
        found = states(prompts)
        if found.shape[-1] != files.denoiser.text_dim:
            raise InputError(
                f"{cache}: holds states of {found.shape[-1]} channels for {files.base}, the "
                f"transformer expects {files.denoiser.text_dim}"
            )
        return found

    return encode


def _text_cache(
    files: ModelFiles, cache: PathOrId, dtype: DTypeLike, make_encode: Callable[[], Encode]
) -> TextCache:
    encoder = None if files.text_encoder is None else encoder_identity(files.base)
    return TextCache(cache, encoder, jnp.dtype(dtype).name, make_encode)


def _make_encode(
    files: ModelFiles,
    dtype: DTypeLike,
    cache: PathOrId | None,
    mesh: Mesh | None,
    progress: bool,
) -> Encode:
    """Load the text encoder."""
    if files.text_encoder is None:
        where = "there is no cache" if cache is None else f"not all prompts are in {cache}"
        raise InputError(f"{files.base}: has no folder text_encoder, and {where}")
    tokenizer = load_tokenizer(files.base)
    encoder = load_component(
        files.base, "text_encoder", dtype=dtype, placement=_split(mesh), progress=progress
    )
    return make_text_encoder(tokenizer, encoder.params, encoder.config)
