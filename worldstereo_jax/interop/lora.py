"""Low-rank adapters in the diffusers format, merged into weights while these are read."""

import json
import os
import re
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, TensorInfo
from worldstereo_jax.interop.tensor_source import TensorSource

PREFIX = "transformer."
_OF_MODEL = r"(?:transformer\.|diffusion_model\.)?"
_NAME = re.compile(rf"{_OF_MODEL}(.+)\.lora_([AB])\.weight")
_ALPHA = re.compile(rf"{_OF_MODEL}(.+)\.alpha")
METADATA = "lora_adapter_metadata"
"""Where diffusers keeps PEFT's settings in a file's header, as json."""
_UNKNOWN = ("alpha_pattern", "use_rslora", "use_dora", "lora_bias")
"""Settings of PEFT that change what an adapter computes, and that nothing here does."""


_PIECE = 1 << 22
"""Elements of a weight that are merged at a time."""


class Factors(typing.NamedTuple):
    """An adapter of one weight W [out, in]: scale x up x down is added to it.

    Attributes:
        down: A, float32 [rank, in].
        up: B, float32 [out, rank].
        scale: alpha / rank; 1 where the file gives no alpha.
    """

    down: np.ndarray
    up: np.ndarray
    scale: float


class AdapterFile(Mapping[str, Factors]):
    """A low-rank adapter in the diffusers format: weight name to factors, read when asked for.

    Alpha stands in a tensor of its own for each weight, or in the settings of PEFT that diffusers
    writes into the header.

    Args:
        path: its safetensors file.

    Raises:
        InputError: when a tensor is no part of an adapter, a half is missing, or the header asks
            for what is not computed here.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._file = SafetensorsFile(path)
        self._halves: dict[str, dict[str, str]] = {}
        self._alpha: dict[str, str] = {}
        for name in self._file:
            half, alpha = _NAME.fullmatch(name), _ALPHA.fullmatch(name)
            if half:
                self._halves.setdefault(half[1] + ".weight", {})[half[2]] = name
            elif alpha:
                self._alpha[alpha[1] + ".weight"] = name
                self._halves.setdefault(alpha[1] + ".weight", {})
            else:
                raise InputError(f"{path}: tensor {name} is no part of a low-rank adapter")
        for weight, halves in self._halves.items():
            for half in "AB":
                if half not in halves:
                    raise InputError(f"{path}: the adapter of {weight} lacks lora_{half}")
        self._common_alpha = _alpha_of(self._file)

    @property
    def path(self) -> Path:
        """The file."""
        return self._file.path

    def shapes(self, weight: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Shapes of down and up."""
        down, up = (self._file.shapes[self._halves[weight][half]] for half in "AB")
        return down, up

    def __getitem__(self, weight: str) -> Factors:
        """Read an adapter."""
        halves = self._halves[weight]
        down, up = (self._file[halves[half]].astype(np.float32) for half in "AB")
        alpha = self._common_alpha
        if weight in self._alpha:
            alpha = float(self._file[self._alpha[weight]])
        rank = len(down)
        return Factors(down, up, 1.0 if alpha is None else alpha / rank)

    def __contains__(self, weight: object) -> bool:
        return weight in self._halves

    def __iter__(self) -> Iterator[str]:
        return iter(self._halves)

    def __len__(self) -> int:
        return len(self._halves)


def _alpha_of(file: SafetensorsFile) -> float | None:
    """Alpha of all weights, from a file's header."""
    if METADATA not in file.metadata:
        return None
    try:
        found = json.loads(file.metadata[METADATA])
        settings = {name.removeprefix(PREFIX): value for name, value in found.items()}
        alpha = settings.get("lora_alpha")
        alpha = None if alpha is None else float(alpha)
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{file.path}: its {METADATA} cannot be read ({error})") from error
    for name in _UNKNOWN:
        if settings.get(name):
            raise InputError(f"{file.path}: its adapter has {name}, which is not supported")
    return alpha


class MergedSource(TensorSource):
    """Weights with an adapter merged: W + scale * alpha / rank * B A.

    `alpha` is as in `AdapterFile`. The product is computed in float32, and the sum rounded to the
    weight's own type.

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
        super().__init__(source)
        self._source = source
        self._adapter = AdapterFile(path)
        self._scale = scale
        for weight in self._adapter:
            self._check(weight)

    def _check(self, weight: str) -> None:
        path = self._adapter.path
        if weight not in self._source:
            raise InputError(f"{path}: adapts {weight}, which the model has not")
        down, up = self._adapter.shapes(weight)
        shape = self._source.info(weight).shape
        if len(down) != 2 or len(up) != 2 or (up[0], down[1]) != shape or up[1] != down[0]:
            raise InputError(
                f"{path}: the adapter of {weight} has shapes {list(up)} x {list(down)}, expected "
                f"their product to be {list(shape)}"
            )

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor."""
        return self._source.info(name)

    def path(self, name: str) -> Path:
        """The file that holds the weight itself."""
        return self._source.path(name)

    def host_bytes(self, name: str) -> int:
        """Host memory that reading a tensor takes: with an adapter, it stands twice."""
        size = self._source.host_bytes(name)
        return size + self.info(name).nbytes if name in self._adapter else size

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor, merged."""
        weight = self._source[name]
        if name not in self._adapter or not self._scale:
            return weight
        down, up, scale = self._adapter[name]
        up *= np.float32(self._scale * scale)
        merged = np.empty_like(weight)
        # Some rows at a time: the whole weight in float32 would take several times its memory.
        rows = max(1, _PIECE // weight.shape[1])
        for start in range(0, len(weight), rows):
            piece = slice(start, start + rows)
            merged[piece] = weight[piece].astype(np.float32) + up[piece] @ down
        return merged
