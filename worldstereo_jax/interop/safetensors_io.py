"""Reading safetensors tensor by tensor, with every fault found before anything is allocated.

The format: 8 bytes little-endian header length, a json header giving each tensor's dtype, shape
and byte range, then the data. bfloat16 and float8 come as `ml_dtypes` numpy types.
"""

import json
import os
import struct
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write

DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I16": np.dtype(np.int16),
    "I8": np.dtype(np.int8),
    "U64": np.dtype(np.uint64),
    "U32": np.dtype(np.uint32),
    "U16": np.dtype(np.uint16),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}

MAX_HEADER_BYTES = 100_000_000
PICKLED = (".bin", ".pth", ".pt", ".ckpt", ".pkl")
"""Suffixes of weights that PyTorch has pickled."""


class TensorInfo(typing.NamedTuple):
    """Where a tensor lies: its numpy type, shape, and byte range in the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return self.stop - self.start


class SafetensorsFile(Mapping[str, np.ndarray]):
    """A safetensors file whose header was read and checked; tensors are read when asked for.

    Attributes:
        path: the file.
        info: type, shape and place of every tensor, by name.
        metadata: the header's string metadata.

    Raises:
        InputError: when the file is missing, truncated, or no safetensors file; the sentence
            names it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.info, self.metadata = _read_header(self.path)

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of all tensors, by name."""
        return {name: info.shape for name, info in self.info.items()}

    def __getitem__(self, name: str) -> np.ndarray:
        """Read one tensor into memory of its own."""
        info = self.info[name]
        with self.path.open("rb") as file:
            file.seek(info.start)
            array = np.fromfile(file, np.uint8, info.stop - info.start)
        if array.size != info.stop - info.start:
            raise InputError(f"{self.path}: truncated while reading {name}")
        return array.view(info.dtype).reshape(info.shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self.info)

    def __len__(self) -> int:
        return len(self.info)


def _read_header(path: Path) -> tuple[dict[str, TensorInfo], dict[str, str]]:
    if path.suffix in PICKLED:
        raise InputError(
            f"{path}: pickled weights are not read, since unpickling runs code; convert the file "
            "once with safetensors.torch.save_file(torch.load(path, weights_only=True), new_path)"
        )
    if not path.is_file():
        raise InputError(f"{path}: no such weights file")
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else 0
        if not 2 <= length <= min(size - 8, MAX_HEADER_BYTES):
            raise InputError(f"{path}: truncated, or not a safetensors file")
        raw = file.read(length)
    try:
        header = json.loads(raw)
        metadata = dict(header.pop("__metadata__", {}))
        entries = {
            name: (
                entry["dtype"],
                tuple(int(n) for n in entry["shape"]),
                *(int(offset) for offset in entry["data_offsets"]),
            )
            for name, entry in header.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: its safetensors header cannot be read ({error})") from error
    return _check_entries(path, entries, 8 + length, size), metadata


def _check_entries(
    path: Path, entries: dict[str, tuple], data_start: int, size: int
) -> dict[str, TensorInfo]:
    info: dict[str, TensorInfo] = {}
    for name, (kind, shape, start, stop) in entries.items():
        if kind not in DTYPES:
            raise InputError(f"{path}: tensor {name} has the unknown type {kind}")
        expected = DTYPES[kind].itemsize * int(np.prod(shape, dtype=np.int64))
        if min(shape, default=0) < 0 or stop - start != expected or start < 0:
            raise InputError(
                f"{path}: tensor {name} of shape {list(shape)} and type {kind} takes {expected} "
                f"bytes, but its header entry gives it {stop - start}"
            )
        info[name] = TensorInfo(DTYPES[kind], shape, data_start + start, data_start + stop)
    position = data_start
    for name, tensor in sorted(info.items(), key=lambda item: (item[1].start, item[1].stop)):
        if tensor.start != position:
            raise InputError(f"{path}: tensor {name} overlaps another or leaves a gap before it")
        position = tensor.stop
    if position != size:
        raise InputError(
            f"{path}: truncated or damaged, its header describes {position} bytes but the file "
            f"has {size}"
        )
    return info


def write_safetensors(
    path: str | os.PathLike[str],
    tensors: Mapping[str, np.ndarray],
    metadata: Mapping[str, str] | None = None,
    *,
    layout: Mapping[str, typing.Any] | None = None,
) -> None:
    """Write tensors in name order; the file appears whole or not at all.

    One tensor is held at a time, so `tensors` may be a lazy mapping such as `SafetensorsFile`;
    `layout` gives for each name something with its dtype and shape, so that none is read twice.

    Raises:
        InputError: for a type that the format does not have.
    """
    header: dict[str, typing.Any] = {"__metadata__": dict(metadata)} if metadata else {}
    position = 0
    lazy = tensors.info if isinstance(tensors, SafetensorsFile) else layout or tensors
    for name in sorted(tensors):
        dtype, shape = lazy[name].dtype, lazy[name].shape
        if dtype not in _NAMES:
            raise InputError(f"{path}: tensor {name} has type {dtype}, which safetensors lacks")
        stop = position + dtype.itemsize * int(np.prod(shape, dtype=np.int64))
        header[name] = {
            "dtype": _NAMES[dtype],
            "shape": list(shape),
            "data_offsets": [position, stop],
        }
        position = stop
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)))
        file.write(raw)
        for name in sorted(tensors):
            file.write(np.ascontiguousarray(tensors[name]).reshape(-1).view(np.uint8).data)
