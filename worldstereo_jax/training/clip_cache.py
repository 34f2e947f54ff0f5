"""A folder of prepared training clips: one memory-mapped array per field, read by grain.

Rendering a scene, warping its bank and encoding some fifty images costs far more than one training
step on them, and none of it depends on the weights that are trained; so it is done once. A cache is
`cache.json` (version, number of clips, capacity, recipe, shape and type of every field) and
`<field>.npy` files.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, SupportsIndex

import grain
import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write, read_json_object

VERSION = 1
_INDEX = "cache.json"
# A few batches ahead. Grain's default of 500 would hold a terabyte of full-size clips, and its 16
# threads keep the interpreter from tracing the step meanwhile.
_READING = grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)


class ClipCacheWriter:
    """Fill a cache clip by clip; a clip counts as written once `cache.json` says so.

    Args:
        folder: where the cache stands; created when missing, continued when it holds one.
        capacity: clips the arrays are allocated for.
        example: one clip, a flat mapping field name -> array, which fixes shapes and types.
        recipe: what the clips were made from, as JSON values; a cache is only continued by the
            same recipe.

    Attributes:
        written: clips in the cache; may be lowered, and later clips are then written again.

    Raises InputError when the folder holds a cache of another recipe, capacity or example.
    """

    def __init__(
        self,
        folder: Path,
        capacity: int,
        example: Mapping[str, np.ndarray],
        recipe: Mapping[str, object],
    ):
        self.folder = Path(folder)
        self.capacity = capacity
        # As JSON will give it back: tuples become lists.
        self.recipe = json.loads(json.dumps(dict(recipe)))
        self.written = 0
        self._described = {
            name: [list(array.shape), str(array.dtype)] for name, array in example.items()
        }
        if (self.folder / _INDEX).exists():
            self.written = self._continued()
        self.folder.mkdir(parents=True, exist_ok=True)
        self.fields = {
            name: self._open(name, array, new=self.written == 0) for name, array in example.items()
        }

    def append(self, clip: Mapping[str, np.ndarray]) -> None:
        """Write one clip and record it in the index.

        Raises InputError when the cache is full or the clip differs in form from the example.
        """
        if self.written >= self.capacity:
            raise InputError(f"{self.folder} is full: it was allocated for {self.capacity} clips")
        described = {name: [list(a.shape), str(a.dtype)] for name, a in clip.items()}
        for name in sorted(described.keys() | self._described.keys()):
            if described.get(name) != self._described.get(name):
                raise InputError(
                    f"{self.folder}: field {name!r} of a clip is {described.get(name)}, expected "
                    f"{self._described.get(name)}"
                )
        for name, array in self.fields.items():
            array[self.written] = clip[name]
            array.flush()
        self.written += 1
        index = {
            "version": VERSION,
            "clips": self.written,
            "capacity": self.capacity,
            "recipe": self.recipe,
            "fields": self._described,
        }
        with atomic_write(self.folder / _INDEX) as temporary:
            temporary.write_text(json.dumps(index, indent=1))

    def _continued(self) -> int:
        """Clips in the cache that is there already."""
        path, found = self.folder / _INDEX, read_index(self.folder)
        expected = {
            "recipe": self.recipe,
            "capacity": self.capacity,
            "fields": self._described,
        }
        for name, value in expected.items():
            if found[name] != value:
                raise InputError(
                    f"{path} was made with another {name} ({found[name]}), expected {value}: "
                    "choose another folder"
                )
        return found["clips"]

    def _open(self, name: str, example: np.ndarray, *, new: bool) -> np.memmap:
        shape = (self.capacity, *example.shape)
        path = self.folder / f"{name}.npy"
        if new:
            return np.lib.format.open_memmap(path, mode="w+", dtype=example.dtype, shape=shape)
        return _existing(path, shape, "r+")


def read_index(folder: Path) -> dict[str, Any]:
    """The index of a cache.

    Raises InputError when the folder holds none, a damaged one, or another version's.
    """
    path = Path(folder) / _INDEX
    if not path.is_file():
        raise InputError(f"{path} is missing: build the cache first")
    index = read_json_object(path)
    if index.get("version") != VERSION:
        raise InputError(f"{path} has version {index.get('version')}, expected {VERSION}")
    missing = {"clips", "capacity", "recipe", "fields"} - index.keys()
    if missing:
        raise InputError(f"{path} has no field {sorted(missing)[0]!r}")
    return index


class ClipCache(grain.sources.RandomAccessDataSource):
    """Random access to the clips of a cache; item i is a mapping field name -> array.

    Raises InputError for a folder that holds no complete cache.
    """

    def __init__(self, folder: Path):
        index = read_index(folder)
        self.clips: int = index["clips"]
        self.folder = str(folder)
        self.fields = {
            name: _existing(Path(folder) / f"{name}.npy", (index["capacity"], *shape), "r")
            for name, (shape, _) in index["fields"].items()
        }

    def __len__(self) -> int:
        return self.clips

    def __getitem__(self, record_key: SupportsIndex) -> dict[str, np.ndarray]:
        """One clip; raises IndexError beyond the clips that were written."""
        item = range(self.clips)[record_key]
        return {name: np.asarray(array[item]) for name, array in self.fields.items()}

    def __repr__(self) -> str:
        return f"ClipCache({self.folder!r}, clips={self.clips})"

    def __reduce__(self) -> tuple[type["ClipCache"], tuple[Path]]:
        """Workers open the files again instead of receiving what they hold."""
        return ClipCache, (Path(self.folder),)


class CachedBatches:
    """Batches of `cached_batches`: grain's iterator, whose position says which order it is of.

    A position alone means another clip under another seed, batch or cache, so a run that is resumed
    with one of these changed would read some clips twice and others never.
    """

    def __init__(self, inner: grain.DatasetIterator, order: Mapping[str, object]) -> None:
        self._inner, self._order = inner, dict(order)

    def __iter__(self) -> "CachedBatches":
        return self

    def __next__(self) -> Any:
        """The next batch, field name -> array."""
        return next(self._inner)

    def get_state(self) -> dict[str, Any]:
        """The position, and what it is a position of."""
        return {"order": self._order, "position": self._inner.get_state()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go to a saved position; raises InputError for that of another order."""
        for name, value in self._order.items():
            if state["order"].get(name) != value:
                raise InputError(
                    f"{name}: the checkpoint's data has {state['order'].get(name)}, this run "
                    f"{value}: resume it with the same"
                )
        self._inner.set_state(state["position"])


def cached_batches(
    sources: Sequence[ClipCache], batch_size: int, seed: int, *, rows: Sequence[int] | None = None
) -> CachedBatches:
    """Endless shuffled batches from all caches, whose position can be saved.

    A pure function of `seed` and the caches in their order, all made with the same sizes: which
    clips a batch holds does not depend on how many hosts read it.

    Args:
        sources: caches.
        batch_size: clips of a batch, of all hosts together.
        seed: of the order.
        rows: which of a batch's clips this host reads (`sharding.TrainLayout.rows`), None for all.
    """
    parts = [grain.MapDataset.source(source) for source in sources]
    data = grain.MapDataset.concatenate(parts).seed(seed).shuffle().repeat()
    order = {"seed": seed, "batch": batch_size, "clips": [len(source) for source in sources]}
    own = _RowsOfBatches(data, batch_size, range(batch_size) if rows is None else rows)
    return CachedBatches(iter(own.batch(len(own.rows)).to_iter_dataset(_READING)), order)


class _RowsOfBatches(grain.MapDataset):
    """Of every `batch_size` elements of a dataset those at the places `rows`."""

    def __init__(self, parent: grain.MapDataset, batch_size: int, rows: Sequence[int]) -> None:
        super().__init__(parent)
        self._batch_size, self.rows = batch_size, tuple(rows)

    def __len__(self) -> int:
        # Half of what an endless dataset says, which is the greatest number that has a length:
        # grain rounds in floating point, and batches of one would be more than that.
        return len(self._parent) // 2 // self._batch_size * len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return self.slice(index)
        batch, place = divmod(index % len(self), len(self.rows))
        return self._parent[batch * self._batch_size + self.rows[place]]


def _existing(path: Path, shape: tuple[int, ...], mode: Any) -> np.memmap:
    """The array of a field; InputError when its file is missing, cut short or of another shape."""
    try:
        array = np.lib.format.open_memmap(path, mode=mode)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is missing or damaged; build the cache again") from error
    if array.shape != shape:
        raise InputError(f"{path} has shape {array.shape}, expected {shape}")
    return array
