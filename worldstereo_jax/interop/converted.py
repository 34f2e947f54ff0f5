"""A converted checkpoint: orbax folders in our layout, one part of the model each.

`checkpoint.json` holds the model's sizes, the official config it came from, and type, shape and
part of every tensor; `parts/NAME` is an orbax checkpoint of the layers or modules of that part.
Tensors without use are kept under their official names, so that an export gives everything back.
"""

import functools
import json
import os
import re
import threading
import typing
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import read_json_object
from worldstereo_jax.interop.layer_stacks import flat_paths
from worldstereo_jax.interop.official import model_places
from worldstereo_jax.interop.official_names import Place
from worldstereo_jax.interop.safetensors_io import DTYPES, TensorInfo
from worldstereo_jax.interop.tensor_source import TensorSource

MANIFEST = "checkpoint.json"
PLAN = "conversion.json"
"""The manifest of a conversion that is not finished."""
FORMAT = "worldstereo-orbax-1"
UNUSED = "unused"


def is_converted(folder: Path) -> bool:
    """Whether a folder holds a finished conversion."""
    return (folder / MANIFEST).is_file()


def part_of(name: str) -> str:
    """The part that an official tensor is kept in: its layer's, or one of what has no layer."""
    layer = re.match(r"(?:[a-z_]+\.)*?[a-z_]+\.\d+(?=\.)", name)
    return layer[0] if layer else "rest"


def our_name(place: Place | None, name: str) -> str:
    """Where a tensor lies inside its part: our path, or its own name among the unused ones."""
    return place.path if place is not None else f"{UNUSED}/{name.replace('/', '_')}"


class ConvertedSource(TensorSource):
    """A converted checkpoint read under official names and layouts.

    Attributes:
        folder: the checkpoint.
        config: the model's sizes.
        values: the official config it came from.

    Raises:
        InputError: when it is unfinished, damaged, or of another format.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        manifest = read_json_object(self.folder / MANIFEST)
        if manifest.get("format") != FORMAT:
            raise InputError(
                f"{self.folder / MANIFEST}: format is {manifest.get('format')!r}, expected {FORMAT}"
            )
        self.config = ModelConfig.from_dict(manifest["config"])
        self.values: dict[str, typing.Any] = manifest["official_config"]
        self.metadata: dict[str, str] = manifest["metadata"]
        super().__init__(
            {
                name: _info(entry["dtype"], entry["shape"])
                for name, entry in manifest["tensors"].items()
            }
        )
        self._places = model_places(self.config.replace(scan_layers=False))
        self._lock = threading.Lock()
        self._part = functools.lru_cache(maxsize=1)(self._read_part)
        for part in {part_of(name) for name in self}:
            if not (self.folder / "parts" / part).is_dir():
                raise InputError(f"{self.folder}: lacks parts/{part}, which {MANIFEST} lists")

    def info(self, name: str) -> TensorInfo:
        """Type, official shape and bytes of a tensor."""
        return self._held[name]

    def path(self, name: str) -> Path:
        """The part that holds a tensor."""
        return self.folder / "parts" / part_of(name)

    def _read_part(self, part: str) -> dict[str, np.ndarray]:
        with ocp.StandardCheckpointer() as checkpointer:
            tree: PyTree = checkpointer.restore((self.folder / "parts" / part).resolve())
        return {path: np.asarray(jax.device_get(leaf)) for path, leaf in flat_paths(tree).items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor in its official layout; the part it lies in is kept for the next."""
        with self._lock:
            arrays = self._part(part_of(name))
        place = self._places.get(name)
        array = arrays[our_name(place, name)]
        if place is not None:
            array = place.layout.to_official(array)
        return np.ascontiguousarray(array).reshape(self.info(name).shape)


def _info(kind: str, shape: list[int]) -> TensorInfo:
    dtype = DTYPES[kind]
    return TensorInfo(dtype, tuple(shape), 0, dtype.itemsize * int(np.prod(shape, dtype=np.int64)))


def write_manifest(path: Path, manifest: dict[str, typing.Any]) -> None:
    """Write the json in a form that is the same for the same content."""
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True), encoding="utf-8")
