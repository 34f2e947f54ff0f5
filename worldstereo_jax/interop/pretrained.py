"""`from_pretrained`: published checkpoints, from a local folder or the hub, onto devices.

A folder is laid out as on the hub: Wan 2.1 with transformer/, vae/, text_encoder/ and so on, each
with its config; WorldStereo with config.json and model.safetensors at its top.
"""

import dataclasses
import os
import typing

import jax.numpy as jnp
from jax.typing import DTypeLike

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import read_json_object
from worldstereo_jax.interop.component_configs import Scheduler, read_component_config
from worldstereo_jax.interop.components import ComponentTable
from worldstereo_jax.interop.converted import MANIFEST, PLAN, ConvertedSource, is_converted
from worldstereo_jax.interop.encoder_names import (
    clip_vision_table,
    depth_anything_table,
    dinov2_table,
    umt5_table,
)
from worldstereo_jax.interop.hub import resolve
from worldstereo_jax.interop.lora import MergedSource
from worldstereo_jax.interop.memory_slots import SLOTS, slot_tensors
from worldstereo_jax.interop.model_configs import (
    WorldStereoSettings,
    wan_config,
    worldstereo_settings,
)
from worldstereo_jax.interop.official import (
    infer_config,
    model_places,
    parameter_shapes,
    shows_sizes,
)
from worldstereo_jax.interop.streaming import stream_params
from worldstereo_jax.interop.tensor_source import LaidOver, TensorSource, open_weights
from worldstereo_jax.interop.tokenizer import Tokenizer
from worldstereo_jax.interop.wan_vae_names import wan_vae_table
from worldstereo_jax.models.depth_anything import DepthAnythingConfig
from worldstereo_jax.models.placement import Placement, one_device
from worldstereo_jax.models.quantised import quantiser

HEAD_SIZE = 128
"""Channels of an attention head in every published Wan model; no tensor's shape shows it."""

_TABLES: dict[str, typing.Callable[[typing.Any], ComponentTable]] = {
    "vae": wan_vae_table,
    "text_encoder": umt5_table,
    "image_encoder": clip_vision_table,
    "dinov2": dinov2_table,
    "depth": depth_anything_table,
}


@dataclasses.dataclass(frozen=True)
class Component:
    """A loaded network.

    Attributes:
        config: its sizes.
        params: its parameters on the devices.
        unused: tensors that no output depends on, as "name (file)".
        overlaid: base tensors that the checkpoint replaced.
        settings: what a WorldStereo checkpoint's config.json says, else None.
        added: tensors that no official checkpoint has, see `memory_slots`.
    """

    config: typing.Any
    params: PyTree
    unused: list[str]
    overlaid: list[str]
    settings: WorldStereoSettings | None = None
    added: list[str] = dataclasses.field(default_factory=list)


def from_pretrained(
    source: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    dtype: DTypeLike | None = "bfloat16",
    compute_dtype: DTypeLike | None = None,
    weights: str | None = None,
    placement: Placement = one_device,
    lora: str | os.PathLike[str] | None = None,
    lora_scale: float = 1.0,
    threads: int | None = None,
    progress: bool = True,
    **choices: typing.Any,
) -> Component:
    """A video transformer: a WorldStereo checkpoint over its base, or a Wan 2.1 model alone.

    Args:
        source: folder or hub id of the checkpoint.
        base: folder or hub id of the base model, None for the one the checkpoint names. Not
            opened when the checkpoint is complete, as the distilled one is.
        dtype: of the parameters on the devices, None for the files' own.
        compute_dtype: of the matrix products, None for that of the parameters (float32 where
            these keep the files' own).
        weights: "int8" or "float8" brings each matrix into that type as it is read; the parameters
            are then those of `quantised.quantised_model`.
        placement: device layout, for instance `placement.tensor_parallel(mesh, "model")`.
        lora: a low-rank adapter in the diffusers format to merge.
        lora_scale: its strength.
        threads: tensors read at a time; see `streaming.stream_params`.
        progress: show a bar.
        **choices: further fields of `ModelConfig` (remat, attention_pattern,
            reference_positions ...).

    Raises:
        InputError: for every fault of the files, before anything is loaded.
    """
    opened = open_model(source, base=base)
    settings, sources, config = opened.settings, opened.sources, opened.config
    config = config.replace(dtype=_compute_dtype(compute_dtype or dtype), **choices)
    if lora is not None:
        sources = [MergedSource(LaidOver(sources), lora, lora_scale)]
    loaded = stream_params(
        sources, model_places(config), parameter_shapes(config), dtype=dtype, placement=placement,
        keep=None if weights is None else quantiser(config, weights), threads=threads,
        progress=progress, label="transformer",
    )  # fmt: skip
    added = slot_tensors(config)
    return Component(config, loaded.params, loaded.unused, loaded.overlaid, settings, added)


class OpenedModel(typing.NamedTuple):
    """A video transformer's files, headers checked, nothing read.

    Attributes:
        sources: its weights, base first.
        config: its sizes.
        values: the json that its config came from.
        settings: what a WorldStereo checkpoint's config.json says, else None.
    """

    sources: list[TensorSource]
    config: ModelConfig
    values: dict[str, typing.Any]
    settings: WorldStereoSettings | None


def open_model(
    source: str | os.PathLike[str], *, base: str | os.PathLike[str] | None = None
) -> OpenedModel:
    """Find a video transformer's weights and sizes; see `from_pretrained`.

    A folder that `conversion.convert_to_orbax` wrote is as good as the official one.
    """
    # Configs first: they show which of a repository's large files are needed.
    folder = resolve(source, patterns=["config.json", "transformer/config.json", MANIFEST])
    if is_converted(folder):
        folder = resolve(source, patterns=[MANIFEST, "parts/*"])
    elif (folder / "config.json").is_file():
        # A pattern's * reaches into folders too, so names are spelt from their start.
        folder = resolve(source, patterns=["config.json", "model*", "diffusion_pytorch_model*"])
    else:
        folder = resolve(source, patterns=["transformer/*"])
    if is_converted(folder):
        converted = ConvertedSource(folder)
        settings = None
        if "controlnet_cfg" in converted.values:
            settings = worldstereo_settings(converted.values, source=str(folder))
        return OpenedModel([converted], converted.config, converted.values, settings)
    if not (folder / "config.json").is_file():
        if (folder / PLAN).is_file():
            raise InputError(
                f"{folder}: holds an unfinished conversion; run worldstereo convert again to go on"
            )
        if not (folder / "transformer").is_dir():
            raise InputError(f"{folder}: has neither a config.json nor a folder transformer")
        folder = folder / "transformer"
    values = read_json_object(folder / "config.json")
    weights = open_weights(folder)
    if "controlnet_cfg" not in values:
        config = wan_config(values, source=str(folder / "config.json"))
        return OpenedModel([weights], config, values, None)
    settings = worldstereo_settings(values, source=str(folder / "config.json"))
    sources, config = [weights], _complete_config(weights, settings, str(folder))
    if config is None:
        sources, config = _with_base(weights, settings, base, str(folder))
    return OpenedModel(sources, config, values, settings)


def load_component(
    base: str | os.PathLike[str],
    kind: str,
    *,
    dtype: DTypeLike | None = None,
    placement: Placement = one_device,
    threads: int | None = None,
    progress: bool = True,
) -> Component:
    """One of the networks around the transformer.

    Args:
        base: folder or hub id: of the base model for "vae", "text_encoder" and "image_encoder"
            (in folders of these names); of the network itself for "dinov2" and "depth".
        kind: one of these five names.
        dtype: of the parameters on the devices and of the matrix products, None for the files'
            own and float32.
        placement: device layout.
        threads: tensors read at a time; see `streaming.stream_params`.
        progress: show a bar.

    Raises:
        InputError: for an unknown kind and every fault of the files.
    """
    if kind not in _TABLES:
        raise InputError(f"component {kind!r} is none of {', '.join(_TABLES)}")
    inside = kind not in ("dinov2", "depth")
    names = [f"{kind}/*.safetensors", f"{kind}/*.json"] if inside else ["model*", "config.json"]
    folder = resolve(base, patterns=names)
    folder = folder / kind if inside else folder
    config = _computing_in(read_component_config(folder, kind), _compute_dtype(dtype))
    table = _TABLES[kind](config)
    loaded = stream_params(
        [open_weights(folder)], table.places, table.shapes, dtype=dtype, placement=placement,
        threads=threads, progress=progress, label=kind.replace("_", " "),
    )  # fmt: skip
    return Component(config, loaded.params, loaded.unused, loaded.overlaid)


def component_shapes(config: typing.Any, kind: str) -> dict[str, tuple[int, ...]]:
    """Shapes of a component's parameters by path, from its config; kinds as `load_component`."""
    return _TABLES[kind](config).shapes


def _compute_dtype(dtype: DTypeLike | None) -> str:
    return "float32" if dtype is None else jnp.dtype(dtype).name


def _computing_in(config: typing.Any, dtype: str) -> typing.Any:
    """A component's config with another compute type; the depth network's is its backbone's."""
    if isinstance(config, DepthAnythingConfig):
        backbone = dataclasses.replace(config.backbone, dtype=dtype)
        return dataclasses.replace(config, backbone=backbone)
    return dataclasses.replace(config, dtype=dtype)


def load_tokenizer(base: str | os.PathLike[str]) -> Tokenizer:
    """The base model's tokenizer."""
    return Tokenizer(resolve(base, patterns=["tokenizer/*"]) / "tokenizer")


def load_scheduler(base: str | os.PathLike[str]) -> Scheduler:
    """The base model's noise schedule."""
    folder = resolve(base, patterns=["scheduler/*"]) / "scheduler"
    return read_component_config(folder, "scheduler")


def _complete_config(
    weights: TensorSource, settings: WorldStereoSettings, source: str
) -> ModelConfig | None:
    """The model's sizes when the checkpoint has every tensor itself, else None."""
    if not shows_sizes(weights.shapes):
        return None
    config = _infer(weights, settings, source)
    return config if all(name in weights for name in model_places(config)) else None


def _infer(weights: TensorSource, settings: WorldStereoSettings, source: str) -> ModelConfig:
    width = weights.shapes["patch_embedding.weight"][0]
    inferred = infer_config(
        weights.shapes,
        num_heads=max(1, width // HEAD_SIZE),
        control_num_heads=settings.control.num_heads,
        source=source,
    )
    config = settings.model_config(inferred)
    if inferred.control != config.control:
        raise InputError(
            f"{source}: controlnet_cfg of config.json gives {config.control}, but the tensors "
            f"show {inferred.control}"
        )
    for name in SLOTS:
        said, shown = getattr(config, name), getattr(inferred, name)
        if said != shown:
            raise InputError(
                f"{source}: {name} of config.json is {said}, but the tensors show {shown}"
            )
    return config


def _with_base(
    weights: TensorSource,
    settings: WorldStereoSettings,
    base: str | os.PathLike[str] | None,
    source: str,
) -> tuple[list[TensorSource], ModelConfig]:
    base = base or settings.base_model
    if base is None:
        raise InputError(f"{source}: needs a base model, and config.json names none")
    try:
        folder = resolve(base, patterns=["transformer/*"]) / "transformer"
    except InputError as error:
        raise InputError(
            f"{source}: does not have every tensor itself, and its base model is not to be had: "
            f"{error}"
        ) from error
    path = folder / "config.json"
    backbone = wan_config(read_json_object(path), source=str(path))
    return [open_weights(folder), weights], settings.model_config(backbone)
