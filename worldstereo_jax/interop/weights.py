"""Small models' weights as flat safetensors files: names "a/b/c", float32 or bfloat16."""

import json
import os
import struct
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.flax import save_file

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write
from worldstereo_jax.interop.safetensors_io import SafetensorsFile

SHIPPED_WEIGHTS = Path(__file__).resolve().parents[1] / "weights"
"""The folder of the weights that come with the package."""


def save_weights(
    path: str | os.PathLike[str],
    params: typing.Any,
    metadata: dict[str, typing.Any],
    *,
    dtype: typing.Any = jnp.float32,
) -> None:
    """Write a nested dict of arrays to `path`, floating point ones as `dtype`.

    Each metadata value is stored as JSON in the file's header. The file appears whole or not
    at all.
    """
    flat = {
        name: jnp.asarray(value, dtype if jnp.issubdtype(value.dtype, jnp.floating) else None)
        for name, value in sorted(flatten_dict(params, sep="/").items())
    }
    header = {name: json.dumps(value) for name, value in sorted(metadata.items())}
    with atomic_write(path) as temporary:
        save_file(flat, str(temporary), metadata=header)


def load_weights(
    path: str | os.PathLike[str],
) -> tuple[dict[str, typing.Any], dict[str, typing.Any]]:
    """Read `(params, metadata)`; floating point arrays come back as float32.

    Raises InputError, naming the file, when it is missing, truncated or no safetensors file. A
    missing file of the package's own weights says how to get it back.
    """
    metadata = check_safetensors(path)
    # By numpy: a jax program for each of a hundred shapes takes seconds to compile.
    flat = {
        name: value.astype(np.float32) if jnp.issubdtype(value.dtype, jnp.floating) else value
        for name, value in SafetensorsFile(path).items()
    }
    return unflatten_dict(jax.device_put(flat), sep="/"), metadata


def check_safetensors(path: str | os.PathLike[str]) -> dict[str, typing.Any]:
    """Compare a safetensors header with the file's size, and return the header's metadata.

    Reads the header only, so it is cheap for files of any size. Raises InputError when the file
    is missing, shorter or longer than its header says, or no safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(_missing(path))
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= size - 8:
            raise InputError(f"{path}: truncated, or not a safetensors file")
        try:
            header = json.loads(file.read(length))
            metadata = header.pop("__metadata__", {})
            end = max((tensor["data_offsets"][1] for tensor in header.values()), default=0)
            decoded = {name: json.loads(value) for name, value in metadata.items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{path}: its safetensors header cannot be read") from error
    if size != 8 + length + end:
        raise InputError(
            f"{path}: truncated or damaged, its header describes {8 + length + end} bytes "
            f"but the file has {size}"
        )
    return decoded


def count_parameters(params: typing.Any) -> int:
    """Count the numbers in a tree of arrays."""
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(params))


def _missing(path: Path) -> str:
    if path.parent == SHIPPED_WEIGHTS:
        return (
            f"{path}: the weights that ship with worldstereo-jax are missing; reinstall the "
            f"package (pip install --force-reinstall .) or restore the file with git checkout"
        )
    return f"{path}: no such weights file"
