"""Trained parameters as an official checkpoint: model.safetensors with its config.json."""

import json
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.typing import DTypeLike

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.files import atomic_write
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.interop.memory_slots import slot_widths
from worldstereo_jax.interop.official import model_places, official_shapes
from worldstereo_jax.interop.safetensors_io import write_safetensors

WEIGHTS, CONFIG = "model.safetensors", "config.json"


class _Tensors(Mapping[str, np.ndarray]):
    """Parameters under official names; each is fetched from the devices when asked for."""

    def __init__(self, params: PyTree, config: ModelConfig, dtype: np.dtype) -> None:
        self._flat, self._places, self._dtype = flat_paths(params), model_places(config), dtype

    def __getitem__(self, name: str) -> np.ndarray:
        place = self._places[name]
        array = jnp.asarray(self._flat[place.path])
        array = (array if place.index is None else array[place.index]).astype(self._dtype)
        if jax.process_count() > 1:
            array = multihost_utils.process_allgather(array, tiled=True)
        return np.ascontiguousarray(place.layout.to_official(np.asarray(array)))

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)


def export_official(
    folder: Path,
    params: PyTree,
    config: ModelConfig,
    values: Mapping[str, typing.Any],
    *,
    dtype: DTypeLike = "bfloat16",
) -> None:
    """Write a complete checkpoint in the official form, a tensor at a time.

    `from_pretrained` and the official code read it; the base model's transformer is not needed
    with it; of a model with memory slots config.json gets their widths and the file their tensors
    (`memory_slots.slot_tensors`), which the official code does not know; nor does it know
    `reference_positions` there, which is written where they are not the official ones. On several
    hosts all call this, and the first writes.

    Args:
        folder: where to; made when it is missing.
        params: of `WorldStereo(config)`.
        config: sizes.
        values: config.json of the checkpoint that training began from.
        dtype: of the tensors in the file.
    """
    kind = jnp.dtype(dtype)
    tensors = _Tensors(params, config, kind)
    if jax.process_index() > 0:
        # The others bring their parts of each tensor, in the order of the writer.
        for name in sorted(tensors):
            _ = tensors[name]
        return
    layout = {
        name: jax.ShapeDtypeStruct(shape, kind) for name, shape in official_shapes(config).items()
    }
    write_safetensors(folder / WEIGHTS, tensors, {"format": "pt"}, layout=layout)
    said = {**values, **slot_widths(config)}
    if config.reference_positions != "beside" or "reference_positions" in said:
        said["reference_positions"] = config.reference_positions
    with atomic_write(folder / CONFIG) as temporary:
        temporary.write_text(json.dumps(said, indent=2) + "\n", encoding="utf-8")
