"""What a model is, told from its files without reading all of them.

A path or hub id says where a model lies, not which one: a folder's content is replaced, or trained
on, and the same files are found under many paths. What is derived from a model and kept is
therefore named by its content.
"""

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from worldstereo_jax.interop.hub import commit_of, resolve
from worldstereo_jax.interop.safetensors_io import SafetensorsFile

_SAMPLE = 4096
"""Bytes of a tensor that are looked at: training changes about all of its values."""


def model_identity(source: str | os.PathLike[str]) -> str:
    """Names the content of a model's folder; of the hub its id and commit, nothing downloaded.

    Args:
        source: folder or hub id; the json files and weights at its top count.

    Raises:
        InputError: as `hub.resolve` does, and for damaged weights.
    """
    folder = resolve(source, patterns=["config.json"])
    commit = commit_of(source, folder)
    if commit is not None:
        return f"{source}@{commit}"
    return files_identity(path for path in folder.iterdir() if _counts(path))


def encoder_identity(base: str | os.PathLike[str]) -> str | None:
    """Names the text encoder and tokenizer of a base model; None where one of them is missing.

    Args:
        base: folder or hub id; of a hub's nothing but small files is downloaded.

    Raises:
        InputError: as `hub.resolve` does, and for damaged weights.
    """
    folder = resolve(base, patterns=["text_encoder/config.json", "tokenizer/tokenizer.json"])
    encoder, tokenizer = folder / "text_encoder", folder / "tokenizer/tokenizer.json"
    if not encoder.is_dir() or not tokenizer.is_file():
        return None
    commit = commit_of(base, folder)
    if commit is not None:
        return f"{base}@{commit}"
    if not any(encoder.glob("*.safetensors")):
        return None
    return files_identity([*(path for path in encoder.iterdir() if _counts(path)), tokenizer])


def files_identity(files: Iterable[Path]) -> str:
    """SHA-256 over files: json whole, of weights the header and a piece of every tensor.

    Where the files lie does not count, their names do.

    Raises:
        InputError: for damaged weights.
    """
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda path: path.name):
        digest.update(f"{path.name}\n".encode())
        if path.suffix == ".safetensors":
            _add_weights(digest, SafetensorsFile(path))
        else:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _counts(path: Path) -> bool:
    return path.suffix in (".json", ".safetensors") and path.is_file()


def _add_weights(digest: "hashlib._Hash", file: SafetensorsFile) -> None:
    with file.path.open("rb") as data:
        for name, info in sorted(file.info.items(), key=lambda item: item[1].start):
            size = min(_SAMPLE, info.nbytes)
            data.seek(info.start + (info.nbytes - size) // 2)
            digest.update(f"{name} {info.dtype} {info.shape}\n".encode())
            digest.update(data.read(size))
