"""Official weights to an orbax checkpoint of ours and back, bit for bit, a layer at a time."""

import json
import os
import typing
from pathlib import Path

import numpy as np
import orbax.checkpoint as ocp
from tqdm import tqdm

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write
from worldstereo_jax.interop.converted import (
    FORMAT,
    MANIFEST,
    PLAN,
    ConvertedSource,
    our_name,
    part_of,
    write_manifest,
)
from worldstereo_jax.interop.layer_stacks import from_flat
from worldstereo_jax.interop.official import (
    check_names_and_shapes,
    model_places,
    parameter_shapes,
)
from worldstereo_jax.interop.pretrained import OpenedModel, open_model
from worldstereo_jax.interop.safetensors_io import DTYPES, write_safetensors
from worldstereo_jax.interop.tensor_source import LaidOver, TensorSource

_KINDS = {dtype: name for name, dtype in DTYPES.items()}


def convert_to_orbax(
    source: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
    progress: bool = True,
) -> list[str]:
    """Write a video transformer as an orbax checkpoint that needs no base model.

    A layer is held at a time. What is written of an interrupted conversion is kept, and the next
    call goes on from there; `from_pretrained` takes the folder when it is whole.

    Args:
        source: folder or hub id of the checkpoint.
        folder: where to write.
        base: the base model, see `pretrained.from_pretrained`.
        progress: show a bar.

    Returns:
        Names of the tensors without use, which are kept for the export.

    Raises:
        InputError: for every fault of the source, and when the folder holds something else.
    """
    opened, folder = open_model(source, base=base), Path(folder)
    weights = _as_one(opened)
    config = opened.config.replace(scan_layers=False)
    places = model_places(config)
    check_names_and_shapes(weights, places, parameter_shapes(config), source=str(source))
    manifest = _manifest(opened, weights)
    _begin(folder, manifest)
    parts: dict[str, list[str]] = {}
    for name in weights:
        parts.setdefault(part_of(name), []).append(name)
    with (
        ocp.StandardCheckpointer() as checkpointer,
        tqdm(parts.items(), unit="part", desc="convert", disable=not progress) as bar,
    ):
        for part, names in bar:
            target = folder.resolve() / "parts" / part
            if target.is_dir():
                continue
            arrays: dict[str, np.ndarray] = {}
            for name in names:
                place, array = places.get(name), weights[name]
                array = array if place is None else place.layout.to_ours(array)
                arrays[our_name(place, name)] = np.ascontiguousarray(array)
            checkpointer.save(target, from_flat(typing.cast(dict[str, typing.Any], arrays)))
            checkpointer.wait_until_finished()
    (folder / PLAN).rename(folder / MANIFEST)
    return sorted(name for name in weights if name not in places)


def export_to_safetensors(
    folder: str | os.PathLike[str], path: str | os.PathLike[str], *, progress: bool = True
) -> None:
    """Write a converted checkpoint as one official safetensors file, config.json beside it.

    Raises:
        InputError: when the folder holds no finished conversion.
    """
    source, path = ConvertedSource(folder), Path(path)
    layout = {name: source.info(name) for name in source}
    with tqdm(
        total=sum(info.nbytes for info in layout.values()), unit="B", unit_scale=True,
        desc="export", disable=not progress,
    ) as bar:  # fmt: skip
        write_safetensors(path, _Counted(source, bar), source.metadata, layout=layout)
    with atomic_write(path.with_name("config.json")) as temporary:
        write_manifest(temporary, source.values)


class _Counted(dict):
    """Names of a source, whose tensors move a bar when they are read."""

    def __init__(self, source: TensorSource, bar: tqdm) -> None:
        super().__init__(dict.fromkeys(source))
        self._source, self._bar = source, bar

    def __getitem__(self, name: str) -> np.ndarray:
        self._bar.update(self._source.info(name).nbytes)
        return self._source[name]


def _as_one(opened: OpenedModel) -> TensorSource:
    if isinstance(opened.sources[0], ConvertedSource):
        raise InputError(f"{opened.sources[0].folder}: is converted already")
    return LaidOver(opened.sources)


def _manifest(opened: OpenedModel, weights: TensorSource) -> dict[str, typing.Any]:
    files = {weights.path(name) for name in weights}
    return {
        "format": FORMAT,
        "config": opened.config.to_dict(),
        "official_config": opened.values,
        "metadata": {"format": "pt"},
        "files": {str(file): file.stat().st_size for file in sorted(files)},
        "tensors": {
            name: {
                "dtype": _KINDS[weights.info(name).dtype],
                "shape": list(weights.info(name).shape),
            }
            for name in weights
        },
    }


def _begin(folder: Path, manifest: dict[str, typing.Any]) -> None:
    """Make the folder, or make sure that what it holds is the same conversion."""
    if (folder / MANIFEST).exists():
        raise InputError(f"{folder}: holds a finished conversion already")
    if not (folder / PLAN).exists():
        if folder.exists() and any(folder.iterdir()):
            raise InputError(f"{folder}: is not empty, and holds no conversion to go on with")
        (folder / "parts").mkdir(parents=True, exist_ok=True)
        with atomic_write(folder / PLAN) as temporary:
            write_manifest(temporary, manifest)
        return
    begun = json.loads((folder / PLAN).read_text(encoding="utf-8"))
    # Through json, which has no tuples.
    if begun != json.loads(json.dumps(manifest)):
        raise InputError(f"{folder}: holds an unfinished conversion of another checkpoint")
