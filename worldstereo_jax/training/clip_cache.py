"""A folder of prepared training clips: one memory-mapped array per field, read by grain.

Rendering a scene, warping its bank and encoding some fifty images costs far more than one training
step on them, and none of it depends on the weights that are trained; so it is done once. A cache is
`cache.json` (version, number of clips, shape and type of every field) and `<field>.npy` files.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import grain
import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write

VERSION = 1


class ClipCacheWriter:
    """Fill a cache clip by clip; a clip counts as written once `cache.json` says so.

    Args:
        folder: where the cache stands; created when missing.
        capacity: clips the arrays are allocated for.
        example: one clip, a flat mapping field name -> array, which fixes shapes and types.
        recipe: what the clips were made from; a cache is only continued by the same recipe.
    """

    def __init__(
        self,
        folder: Path,
        capacity: int,
        example: Mapping[str, np.ndarray],
        recipe: Mapping[str, object],
    ):
        self.folder = Path(folder)
        self.recipe = dict(recipe)
        self.capacity = capacity
        self.folder.mkdir(parents=True, exist_ok=True)
        self.written = 0
        index = self.folder / "cache.json"
        if index.exists():
            found = read_index(self.folder)
            if found["recipe"] != self.recipe or found["capacity"] != capacity:
                raise InputError(
                    f"{index} was made by another recipe ({found['recipe']}); "
                    f"expected {self.recipe}: choose another folder"
                )
            self.written = found["clips"]
        mode = "r+" if index.exists() else "w+"
        self.fields = {
            name: np.lib.format.open_memmap(
                self.folder / f"{name}.npy", mode=mode, dtype=a.dtype, shape=(capacity, *a.shape)
            )
            for name, a in example.items()
        }

    def append(self, clip: Mapping[str, np.ndarray]) -> None:
        """Write one clip and record it in the index."""
        if self.written >= self.capacity:
            raise InputError(f"{self.folder} is full: it was allocated for {self.capacity} clips")
        for name, array in self.fields.items():
            array[self.written] = clip[name]
        self.written += 1
        index = {
            "version": VERSION,
            "clips": self.written,
            "capacity": self.capacity,
            "recipe": self.recipe,
            "fields": {n: [list(a.shape[1:]), str(a.dtype)] for n, a in self.fields.items()},
        }
        with atomic_write(self.folder / "cache.json") as temporary:
            temporary.write_text(json.dumps(index, indent=1))


def read_index(folder: Path) -> dict:
    """The index of a cache; `InputError` when the folder holds none or another version's."""
    path = Path(folder) / "cache.json"
    if not path.is_file():
        raise InputError(f"{path} is missing: build the cache first")
    index = json.loads(path.read_text())
    if index.get("version") != VERSION:
        raise InputError(f"{path} has version {index.get('version')}, expected {VERSION}")
    return index


class ClipCache(grain.sources.RandomAccessDataSource):
    """Random access to the clips of a cache; item i is a mapping field name -> array."""

    def __init__(self, folder: Path):
        index = read_index(folder)
        self.clips = index["clips"]
        self.folder = str(folder)
        self.fields = {
            name: np.load(Path(folder) / f"{name}.npy", mmap_mode="r") for name in index["fields"]
        }

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, item):
        return {name: np.asarray(array[int(item)]) for name, array in self.fields.items()}

    def __repr__(self) -> str:
        return f"ClipCache({self.folder!r}, clips={self.clips})"


def cached_batches(source: ClipCache, batch_size: int, seed: int) -> grain.DatasetIterator:
    """Endless shuffled batches whose position can be saved; a pure function of `seed`."""
    data = grain.MapDataset.source(source).seed(seed).shuffle().repeat().batch(batch_size)
    return iter(data.to_iter_dataset())
