"""Files of recorded inputs and outputs, read so that nothing in them goes unnoticed."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, Shaped, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import DAMAGED_ARRAYS


class GoldenArrays(Mapping[str, np.ndarray]):
    """The arrays of npz files, later files over earlier ones; remembers which were asked for.

    Args:
        path: the file under check.
        base: a file that supplies what `path` lacks (another case's inputs).

    Raises:
        InputError: when a file is missing or damaged, or an array that is asked for is not there.
    """

    def __init__(
        self, path: str | os.PathLike[str], base: str | os.PathLike[str] | None = None
    ) -> None:
        self.path = Path(path)
        self._own = _read(self.path)
        self._arrays = {**(_read(Path(base)) if base is not None else {}), **self._own}
        self._used: set[str] = set()

    def __getitem__(self, name: str) -> np.ndarray:
        """The array `name`."""
        if name not in self._arrays:
            raise InputError(f"{self.path}: array {name} is missing")
        self._used.add(name)
        return self._arrays[name]

    def __contains__(self, name: object) -> bool:
        return name in self._arrays

    def __iter__(self) -> Iterator[str]:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def unused(self) -> list[str]:
        """Arrays of the file itself that nothing asked for."""
        return sorted(self._own.keys() - self._used)

    def number(self, name: str) -> int:
        """The array `name` as one whole number."""
        array = self[name]
        if array.size != 1:
            raise InputError(f"{self.path}: {name} has shape {list(array.shape)}, expected one")
        return int(array.reshape(()))

    def triple(self, name: str) -> tuple[int, int, int]:
        """The array `name` as three whole numbers."""
        array = self[name]
        if array.shape != (3,):
            raise InputError(f"{self.path}: {name} has shape {list(array.shape)}, expected [3]")
        first, second, third = (int(size) for size in array)
        return first, second, third


def _read(path: Path) -> dict[str, np.ndarray]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except DAMAGED_ARRAYS as error:
        raise InputError(f"{path}: not a readable npz file ({error})") from error


def channels_last(x: Shaped[ndarray, "b c *rest"]) -> Shaped[Array, "b *rest c"]:
    """The recorded layout [batch, channel, ...] as ours [batch, ..., channel]."""
    return jnp.asarray(np.moveaxis(x, 1, -1))


def relative_error(found: Array | ndarray, expected: Float[ndarray, "..."]) -> float:
    """Largest absolute difference over the largest absolute expected value; inf if not alike.

    Not-a-number anywhere counts as infinitely wrong, other shapes too.
    """
    found = np.asarray(jax.device_get(found), np.float64)
    wanted = np.asarray(expected, np.float64)
    if found.shape != wanted.shape or not wanted.size:
        return float("inf")
    error = np.abs(found - wanted).max() / max(np.abs(wanted).max(), np.finfo(np.float32).tiny)
    return float(error) if np.isfinite(error) else float("inf")


def index_error(found: Array | ndarray, expected: Shaped[ndarray, "..."]) -> float:
    """0 where two lists of indices are the same, else inf."""
    return 0.0 if np.array_equal(np.asarray(found), expected) else float("inf")
