"""Hashes of what a run follows from, so that two runs can be told apart by their inputs."""

import dataclasses
import hashlib
import typing
from pathlib import Path

import jax
import numpy as np


def content_hash(value: typing.Any) -> str | None:
    """SHA-256 over a value; None for None. Equal content has equal hashes on every machine.

    Args:
        value: plain values, arrays (by type, shape and bytes), files (`Path`, by their bytes, not
            their names), and lists and dataclasses of such.

    Raises:
        TypeError: for anything else.
    """
    if value is None:
        return None
    digest = hashlib.sha256()
    _add(digest, value)
    return digest.hexdigest()


def _add(digest: "hashlib._Hash", value: typing.Any) -> None:
    if isinstance(value, Path):
        with value.open("rb") as file:
            digest.update(b"file " + hashlib.file_digest(file, "sha256").digest())
    elif isinstance(value, np.ndarray | jax.Array):
        array = np.ascontiguousarray(value)
        digest.update(f"array {array.dtype} {array.shape} ".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    elif dataclasses.is_dataclass(value):
        _add(digest, [getattr(value, field.name) for field in dataclasses.fields(value)])
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)} ".encode())
        for part in value:
            _add(digest, part)
    elif value is None or isinstance(value, str | int | float):
        text = repr(float(value) if isinstance(value, float) else value).encode()
        digest.update(f"value {len(text)} ".encode() + text)
    else:
        raise TypeError(f"no hash of a {type(value).__name__}")
