"""Weights as they lie on disk: one safetensors file, or a folder of shards with its index."""

import abc
import json
import os
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.safetensors_io import PICKLED, SafetensorsFile, TensorInfo


class TensorSource(Mapping, abc.ABC):
    """Tensors by name, of which type and shape are known; each is read when asked for.

    Args:
        held: for each tensor what a subclass finds it by.
    """

    def __init__(self, held: Mapping[str, typing.Any]) -> None:
        self._held = held

    @abc.abstractmethod
    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor."""

    @abc.abstractmethod
    def path(self, name: str) -> Path:
        """Where a tensor lies on the disk."""

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, by name."""
        return {name: self.info(name).shape for name in self}

    def host_bytes(self, name: str) -> int:
        """Host memory that reading a tensor takes, itself included."""
        return self.info(name).nbytes

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return len(self._held)


class WeightFiles(TensorSource):
    """Tensors of several safetensors files.

    All headers are read and checked against the files' sizes at once, before anything is
    allocated.

    Args:
        files: the files; none may hold a tensor that another holds.

    Raises:
        InputError: for a damaged file, or a tensor found twice.
    """

    def __init__(self, files: list[SafetensorsFile]) -> None:
        file_of: dict[str, SafetensorsFile] = {}
        for file in files:
            for name in file:
                if name in file_of:
                    raise InputError(
                        f"{file.path}: tensor {name} is in {file_of[name].path.name} too"
                    )
                file_of[name] = file
        super().__init__(file_of)

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor."""
        return self._held[name].info[name]

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._held[name].path

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor."""
        return self._held[name][name]


class LaidOver(TensorSource):
    """Several sources as one, a later one over the earlier, tensor by tensor."""

    def __init__(self, sources: list[TensorSource]) -> None:
        super().__init__({name: source for source in sources for name in source})

    def info(self, name: str) -> TensorInfo:
        """Type, shape and place of a tensor."""
        return self._held[name].info(name)

    def path(self, name: str) -> Path:
        """The file that holds a tensor."""
        return self._held[name].path(name)

    def host_bytes(self, name: str) -> int:
        """Host memory that reading a tensor takes, itself included."""
        return self._held[name].host_bytes(name)

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor."""
        return self._held[name][name]


def open_weights(path: str | os.PathLike[str]) -> TensorSource:
    """The tensors of a safetensors file, or of all safetensors files of a folder.

    A folder's index decides which files belong to it when there is one, and every tensor that
    it lists must be there.

    Raises:
        InputError: when nothing is there, a shard is missing, or there are pickled weights only.
    """
    path = Path(path)
    if not path.is_dir():
        return WeightFiles([SafetensorsFile(path)])
    indices = sorted(path.glob("*.safetensors.index.json"))
    if len(indices) > 1:
        raise InputError(f"{path}: has {len(indices)} index files, expected one")
    if not indices:
        files = sorted(path.glob("*.safetensors"))
        if not files:
            for pickled in sorted(path.iterdir()):
                if pickled.suffix in PICKLED:
                    SafetensorsFile(pickled)
            raise InputError(f"{path}: no .safetensors file in this folder")
        return WeightFiles([SafetensorsFile(file) for file in files])
    try:
        listed = json.loads(indices[0].read_text())["weight_map"]
        shards = sorted({str(shard) for shard in listed.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{indices[0]}: not a readable index ({error})") from error
    for shard in shards:
        if Path(shard).name != shard:
            raise InputError(f"{indices[0]}: names {shard}, which lies outside of its folder")
    source = WeightFiles([SafetensorsFile(path / shard) for shard in shards])
    for name, shard in listed.items():
        if name not in source or source.path(name).name != shard:
            raise InputError(f"{path / shard}: lacks tensor {name}, which the index lists there")
    return source
