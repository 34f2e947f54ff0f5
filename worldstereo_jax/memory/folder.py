"""Saving both memories to a folder and loading them back, exactly (rows S33, S26)."""

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from worldstereo_jax.array_types import Shaped, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_folder, read_json
from worldstereo_jax.memory.folder_format import (
    FILES,
    NAME,
    VERSION,
    bind_axes,
    find_field,
)
from worldstereo_jax.memory.global_geometric import GlobalGeometricMemory, init_global_memory
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory, init_spatial_memory

_HEADER = "memory.json"
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1}
_BYTES |= {"U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1}
_TYPE_OF = {"float32": "F32", "float16": "F16", "bool": "BOOL", "int32": "I32", "int8": "I8"}
_TYPE_OF |= {"uint8": "U8", "uint32": "U32", "bfloat16": "BF16"}


def save_memory(
    folder: str | os.PathLike[str],
    points: GlobalGeometricMemory,
    stereo: SpatialStereoMemory,
    *,
    model: str,
    optional: Mapping[str, Shaped[ndarray, "..."]] | None = None,
) -> None:
    """Write both memories into `folder`, all of it or nothing.

    Args:
        folder: made anew; an older memory there is replaced once everything is written.
        points: the global-geometric memory.
        stereo: the spatial-stereo memory.
        model: identity of the model whose memory it is; another one refuses to load it.
        optional: further arrays of the spatial-stereo memory under the names of `folder_format`,
            for what rows S1 to S8 store beyond the keyframes.

    Raises:
        InputError: when `folder` holds something that is no memory, or an optional array does not
            fit the format.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        _read_header(folder)
    banks = {"spatial_stereo": stereo, "global_geometric": points}
    capacity = {"spatial_stereo": stereo.capacity, "global_geometric": points.capacity}
    filled = {name: min(int(bank.count), capacity[name]) for name, bank in banks.items()}
    arrays: dict[str, dict[str, np.ndarray]] = {}
    for name, fields in FILES.items():
        stored = [field for field, about in fields.items() if not about.optional]
        arrays[name] = {
            field: np.ascontiguousarray(np.asarray(getattr(banks[name], field))[: filled[name]])
            for field in stored
        }
    for name, value in (optional or {}).items():
        arrays["spatial_stereo"][name] = np.ascontiguousarray(value)
    height, width = stereo.images.shape[1:3]
    header = {
        "format": NAME,
        "version": VERSION,
        "model": model,
        "image_size": [height, width],
    }
    for name, bank in banks.items():
        _check_fields(f"memory for {folder}", name, arrays[name])
        header[name] = {
            "capacity": capacity[name],
            "count": int(bank.count),
            "overflow": int(bank.overflow),
            "fields": {
                field: _describe(name, field, value) for field, value in arrays[name].items()
            },
        }
    with atomic_folder(folder) as temporary:
        for name, tensors in arrays.items():
            # Written here, since `save_file` hides why a disk refuses.
            content = save(tensors, metadata={"format": NAME})
            (temporary / f"{name}.safetensors").write_bytes(content)
        (temporary / _HEADER).write_text(json.dumps(header, indent=2) + "\n")


def load_memory(
    folder: str | os.PathLike[str], *, model: str
) -> tuple[GlobalGeometricMemory, SpatialStereoMemory]:
    """Both memories as they were saved, bit by bit, at their capacities.

    Args:
        folder: what `save_memory` wrote.
        model: identity of the model that is to use the memory.

    Raises:
        InputError: when the folder or a file is missing, of another version or model, truncated,
            foreign, or holds arrays of wrong type or shape.
    """
    folder = Path(folder)
    header = _read_header(folder)
    if header.get("model") != model:
        raise InputError(
            f"memory folder {folder} was made by model {header.get('model')!r}, not by {model!r}"
        )
    arrays = {name: _read_arrays(folder, header, name) for name in FILES}
    size = header.get("image_size")
    if not (isinstance(size, list) and len(size) == 2 and all(map(_is_size, size))):
        raise InputError(f"{folder / _HEADER}: image_size must be [height, width] in pixels")
    stereo_header, points_header = header["spatial_stereo"], header["global_geometric"]
    found = arrays["spatial_stereo"]["images"].shape[1:3]
    if tuple(size) != found:
        raise InputError(
            f"{folder / 'spatial_stereo.safetensors'} holds images of {found[0]}x{found[1]} pixels,"
            f" but {_HEADER} says {size[0]}x{size[1]}"
        )
    try:
        stereo = init_spatial_memory(stereo_header["capacity"], *size)
        points = init_global_memory(points_header["capacity"])
        return (
            _fill(points, arrays["global_geometric"], points_header),
            _fill(stereo, arrays["spatial_stereo"], stereo_header),
        )
    except (MemoryError, jax.errors.JaxRuntimeError) as error:
        raise InputError(
            f"{folder / _HEADER}: there is no room for capacities of {stereo_header['capacity']:,} "
            f"views and {points_header['capacity']:,} points"
        ) from error


def is_memory(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder looks like one that `save_memory` wrote."""
    return (Path(folder) / _HEADER).is_file()


def model_of_memory(folder: str | os.PathLike[str]) -> str:
    """Identity of the model that a memory folder was made by.

    Raises:
        InputError: when the folder or its header is missing, foreign or of another version.
    """
    return str(_read_header(Path(folder)).get("model"))


def load_optional_fields(folder: str | os.PathLike[str]) -> dict[str, Shaped[ndarray, "..."]]:
    """The arrays of rows S1 to S8 that a folder stores beyond the keyframes, by name.

    Raises:
        InputError: as `load_memory` does, the model apart.
    """
    folder = Path(folder)
    arrays = _read_arrays(folder, _read_header(folder), "spatial_stereo")
    fields = FILES["spatial_stereo"]
    return {
        name: value for name, value in arrays.items() if fields[name.partition(".")[0]].optional
    }


def _fill(bank, arrays: dict[str, np.ndarray], header: dict):
    """The empty `bank` with the stored slots and counters put in."""
    filled = min(header["count"], header["capacity"])
    fields = {}
    for name in arrays:
        if hasattr(bank, name):
            value = np.array(getattr(bank, name))
            value[:filled] = arrays[name]
            fields[name] = jnp.asarray(value)
    counters = {name: jnp.asarray(header[name], jnp.int32) for name in ("count", "overflow")}
    return bank.replace(**fields, **counters)


def _describe(file: str, name: str, value: np.ndarray) -> dict:
    field = find_field(file, name)
    assert field is not None  # checked before
    return {
        "type": _TYPE_OF[value.dtype.name],
        "shape": list(value.shape),
        "axes": " ".join(field.axes),
        "meaning": field.meaning,
        "row": field.row,
    }


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _read_header(folder: Path) -> dict:
    if not folder.is_dir():
        raise InputError(f"memory folder {folder} does not exist or is no folder")
    path = folder / _HEADER
    if not path.is_file():
        raise InputError(f"{folder} is no memory folder: it has no {_HEADER}")
    header = read_json(path)
    if not isinstance(header, dict) or header.get("format") != NAME:
        raise InputError(f"{path} does not describe a memory: its format must be {NAME!r}")
    version = header.get("version")
    if version not in range(1, VERSION + 1):
        raise InputError(
            f"{path} has format version {version!r}, but versions 1 to {VERSION} are read"
        )
    for name in FILES:
        part = header.get(name)
        fits = isinstance(part, dict) and _is_size(part.get("capacity"))
        for counter in ("count", "overflow"):
            value = part.get(counter) if isinstance(part, dict) else None
            fits = fits and isinstance(value, int) and 0 <= value < 2**31
        if not fits:
            raise InputError(f"{path}: {name} must hold capacity, count and overflow as integers")
    return header


def _read_arrays(folder: Path, header: dict, name: str) -> dict[str, np.ndarray]:
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise InputError(f"memory folder {folder} has no {path.name}")
    _check_size(path)
    try:
        arrays = load_file(path)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InputError(f"{path} cannot be read as safetensors: {error}") from error
    sizes = _check_fields(str(path), name, arrays, version=header["version"])
    for field, value in arrays.items():
        if value.dtype.name.startswith(("float", "bfloat")) and not np.isfinite(value).all():
            raise InputError(f"{path}: field {field!r} holds numbers that are not finite")
    axis = "v" if name == "spatial_stereo" else "n"
    filled = min(header[name]["count"], header[name]["capacity"])
    if sizes[axis] != filled:
        raise InputError(f"{path} holds {sizes[axis]} slots, but {_HEADER} counts {filled}")
    return arrays


def _check_fields(
    where: str, file: str, arrays: Mapping[str, np.ndarray], version: int = VERSION
) -> dict[str, int]:
    """Check names, types and shapes against the format of a version; sizes of the axes."""
    for name, field in FILES[file].items():
        if not field.optional and field.since <= version and name not in arrays:
            raise InputError(f"{where} has no field {name!r}, so it is no {file} memory")
    sizes: dict[str, int] = {}
    # Required fields first: they fix the sizes that the optional ones must fit.
    for name in sorted(
        arrays, key=lambda name: name not in FILES[file] or FILES[file][name].optional
    ):
        value = arrays[name]
        field = find_field(file, name)
        if field is None:
            raise InputError(f"{where}: the {file} memory knows no field {name!r}")
        if _TYPE_OF.get(value.dtype.name) not in field.types:
            raise InputError(
                f"{where}: field {name!r} must be of type {' or '.join(field.types)}, "
                f"found {value.dtype.name}"
            )
        if not bind_axes(field, value.shape, sizes):
            raise InputError(
                f"{where}: field {name!r} must have shape [{' '.join(field.axes)}] with the sizes "
                f"of the other fields, found {list(value.shape)}"
            )
        if name in ("w2c", "intrinsics") and not np.isfinite(value).all():
            raise InputError(f"{where}: field {name!r} holds numbers that are not finite")
    return sizes


def _check_size(path: Path) -> None:
    """Raise when the file is shorter or longer than its own header says, or has none."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > size - 8:
            raise InputError(f"{path} is no complete safetensors file: its header is cut off")
        try:
            header = json.loads(file.read(length))
            tensors = [value for key, value in header.items() if key != "__metadata__"]
            needed = 8 + length + sum(_BYTES[t["dtype"]] * math.prod(t["shape"]) for t in tensors)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path} is no safetensors file: its header is unreadable") from error
    if size != needed:
        raise InputError(
            f"{path} is truncated or damaged: it has {size} bytes where its header says {needed}"
        )
