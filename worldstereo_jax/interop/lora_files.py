"""Trained adapters as a file in the diffusers format, and back.

diffusers (`load_lora_adapter`, `load_lora_weights`), PEFT and `worldstereo generate --lora` read
it: under official names A [rank, in] and B [out, rank]. B is written times alpha / rank, so that
every reader merges the same: some pass over alpha in a header, and a tensor of it stops others.
"""

import os
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import flat_paths, from_flat
from worldstereo_jax.interop.lora import PREFIX, AdapterFile
from worldstereo_jax.interop.official import model_places
from worldstereo_jax.interop.safetensors_io import write_safetensors
from worldstereo_jax.models.layers import ADAPTER, DOWN, UP
from worldstereo_jax.training.lora import LoraConfig, scaled

FILE = "pytorch_lora_weights.safetensors"
"""The name that diffusers looks for in a folder."""


def write_adapters(
    path: str | os.PathLike[str],
    adapters: PyTree,
    lora: LoraConfig,
    config: ModelConfig,
    *,
    dtype: DTypeLike = "bfloat16",
) -> None:
    """Write adapters; the file appears whole or not at all.

    Args:
        path: safetensors file.
        adapters: of `WorldStereo(config)`, as `training.lora.init_adapters` lays them out, on this
            host (`TrainLayout.gather`).
        lora: their alpha and rank.
        config: sizes of the model.
        dtype: of the tensors in the file.
    """
    flat, tensors = flat_paths(scaled(adapters, lora)), {}
    for module, (layer, row) in _places(adapters, config):
        for half, name in (("A", DOWN), ("B", UP)):
            array = np.asarray(flat[f"{layer}/{ADAPTER}/{name}"])
            array = (array if row is None else array[row]).T.astype(jnp.dtype(dtype))
            tensors[f"{PREFIX}{module}.lora_{half}.weight"] = np.ascontiguousarray(array)
    write_safetensors(path, tensors, {"format": "pt"})


def read_adapters(
    path: str | os.PathLike[str], like: PyTree, lora: LoraConfig, config: ModelConfig
) -> PyTree:
    """Adapters from a file, to go on from.

    Args:
        path: safetensors file; what its B is written times is divided out by `lora`'s alpha / rank.
        like: adapters of the same layers and rank, or their shapes.
        lora: rank and alpha of the adapters.
        config: sizes of the model.

    Returns:
        Adapters in the form of `like`, float32.

    Raises:
        InputError: when the file has other layers or another rank.
    """
    file = AdapterFile(path)
    shapes = {name: leaf.shape for name, leaf in flat_paths(like).items()}
    found = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    wanted = dict(_places(like, config))
    names = {module + ".weight": module for module in wanted}
    other = sorted(names.keys() ^ set(file))
    if other:
        more = f" and {len(other) - 1} more" if len(other) > 1 else ""
        raise InputError(
            f"{path}: {'adapts' if other[0] in file else 'does not adapt'} {other[0]}{more}, "
            "unlike the adapters that are to be trained; choose the same modules"
        )
    for weight, module in names.items():
        layer, row = wanted[module]
        down, up, scale = file[weight]
        given = {DOWN: down.T, UP: up.T * np.float32(scale / lora.scale)}
        for name, array in given.items():
            at = found[f"{layer}/{ADAPTER}/{name}"]
            expected = at.shape if row is None else at.shape[1:]
            if array.shape != expected:
                raise InputError(
                    f"{path}: the adapter of {weight} has shape {list(array.shape)}, expected "
                    f"{list(expected)} for rank {lora.rank}"
                )
            at[... if row is None else row] = array
    return from_flat(jax.tree.map(jnp.asarray, found))


def _places(adapters: PyTree, config: ModelConfig) -> Iterator[tuple[str, tuple[str, int | None]]]:
    """Each adapted official module with the path of our layer, and its row in a stack."""
    flat = flat_paths(adapters)
    for name, place in model_places(config).items():
        layer, _, kind = place.path.rpartition("/")
        if kind == "kernel" and f"{layer}/{ADAPTER}/{DOWN}" in flat:
            yield name.removesuffix(".weight"), (layer, place.index)
