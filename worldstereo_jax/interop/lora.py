"""Low-rank adapters in the diffusers format, merged into weights while these are read."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, TensorInfo
from worldstereo_jax.interop.tensor_source import TensorSource

_NAME = re.compile(r"(?:transformer\.|diffusion_model\.)?(.+)\.lora_([AB])\.weight")
_ALPHA = re.compile(r"(?:transformer\.|diffusion_model\.)?(.+)\.alpha")


class MergedSource(TensorSource):
    """Weights with an adapter merged: W + scale * alpha / rank * B A.

    `alpha` is the rank where the file has none. The product is computed in float32, and the sum
    rounded to the weight's own type.

    Args:
        source: the weights; the adapter must fit every one that it names.
        path: the adapter's safetensors file.
        scale: its strength; 0 leaves the weights as they are.

    Raises:
        InputError: when a name of the adapter belongs to no weight, a half is missing, or shapes
            do not fit.
    """

    def __init__(
        self, source: TensorSource, path: str | os.PathLike[str], scale: float = 1.0
    ) -> None:
        self._source = source
        self._lora = SafetensorsFile(path)
        self._scale = scale
        self._halves: dict[str, dict[str, str]] = {}
        self._alpha: dict[str, str] = {}
        for name in self._lora:
            half, alpha = _NAME.fullmatch(name), _ALPHA.fullmatch(name)
            if half:
                self._halves.setdefault(half[1] + ".weight", {})[half[2]] = name
            elif alpha:
                self._alpha[alpha[1] + ".weight"] = name
            else:
                raise InputError(f"{path}: tensor {name} is no part of a low-rank adapter")
        for weight in self._alpha.keys() | self._halves.keys():
            self._check(weight)

    def _check(self, weight: str) -> None:
        path, halves = self._lora.path, self._halves.get(weight, {})
        if weight not in self._source:
            raise InputError(f"{path}: adapts {weight}, which the model has not")
        for half in "AB":
            if half not in halves:
                raise InputError(f"{path}: the adapter of {weight} lacks lora_{half}")
        down, up = (self._lora.shapes[halves[half]] for half in "AB")
        shape = self._source.info(weight).shape
        if len(down) != 2 or len(up) != 2 or (up[0], down[1]) != shape or up[1] != down[0]:
            raise InputError(
                f"{path}: the adapter of {weight} has shapes {list(up)} x {list(down)}, expected "
                f"their product to be {list(shape)}"
            )

    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]:
        """Shapes of all tensors, by name."""
        return self._source.shapes

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor."""
        return self._source.info(name)

    def path(self, name: str) -> Path:
        """The file that holds the weight itself."""
        return self._source.path(name)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor, merged."""
        weight = self._source[name]
        if name not in self._halves or not self._scale:
            return weight
        down, up = (self._lora[self._halves[name][half]].astype(np.float32) for half in "AB")
        rank = down.shape[0]
        alpha = float(self._lora[self._alpha[name]]) if name in self._alpha else rank
        delta = up @ down * np.float32(self._scale * alpha / rank)
        return (weight.astype(np.float32) + delta).astype(weight.dtype)

    def __contains__(self, name: object) -> bool:
        return name in self._source

    def __iter__(self) -> Iterator[str]:
        return iter(self._source)

    def __len__(self) -> int:
        return len(self._source)
