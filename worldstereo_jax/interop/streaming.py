"""Weights from disk to device arrays, tensor by tensor.

At no time does the host hold more than a budget of bytes, or one tensor where that is larger:
every tensor is read, brought into our layout and type, placed, and let go. Layers of a stack
are written one by one into an array that is made on the devices.
"""

import contextlib
import functools
import os
import threading
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec, Sharding
from jax.typing import DTypeLike
from tqdm import tqdm

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.layer_stacks import from_flat
from worldstereo_jax.interop.official import check_names_and_shapes
from worldstereo_jax.interop.official_names import Place, is_ignored
from worldstereo_jax.interop.tensor_source import TensorSource
from worldstereo_jax.models.placement import Placement, lay_out, one_device, shared_axes

Keep = Callable[[str, jax.Array], PyTree]
"""The form in which a parameter is kept, from its path and its array, of a stack one layer's."""

HOST_BYTES = 1 << 30
"""What all tensors under way may take on the host, unless one alone takes more."""


_THREADS = 4, 16
"""Fewest and most tensors read at the same time: disks want several requests, hosts are shared."""


class Loaded(typing.NamedTuple):
    """Parameters on the devices, and what became of the rest.

    Attributes:
        params: the tree.
        unused: tensors that no output depends on, as "name (file)".
        overlaid: base tensors that a later source replaced, as "name (file)".
    """

    params: PyTree
    unused: list[str]
    overlaid: list[str]


def stream_params(
    sources: Sequence[TensorSource],
    places: Mapping[str, Place],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    dtype: DTypeLike | None = None,
    placement: Placement = one_device,
    keep: Keep | None = None,
    threads: int | None = None,
    host_bytes: int = HOST_BYTES,
    progress: bool = False,
    label: str = "weights",
) -> Loaded:
    """Load a model's parameters.

    Args:
        sources: weights under official names; a later source overlays an earlier one, tensor by
            tensor (base model first). Together they must hold every tensor.
        places: official name to place in our tree.
        shapes: our path to shape.
        dtype: type of floating point parameters on the devices; None keeps each file's.
        placement: device layout by path and shape.
        keep: brings each array on the devices into the form in which it is kept, for instance
            `quantised.quantiser`; one at a time, so that no other array stands in full. None
            keeps the arrays.
        threads: tensors read at the same time, from any of the files; None for as many as there
            are processors, within `_THREADS`. On several hosts one.
        host_bytes: limit of host memory for tensors under way.
        progress: show a bar on standard error, wiped at the end where it stands below another.
        label: what the bar calls the weights.

    Raises:
        InputError: for a missing, unknown or misshapen tensor, by name and file, before anything
            is read.
    """
    chosen, unused, overlaid = _choose(sources, places, shapes)
    arrays = _DeviceArrays(shapes, placement, keep)
    budget = _ByteBudget(host_bytes)
    total = sum(source.info(name).nbytes for name, source in chosen.items())
    bar = tqdm(
        total=total, unit="B", unit_scale=True, unit_divisor=1024, desc=label,
        disable=not progress, leave=None,
    )  # fmt: skip

    def load(name: str) -> None:
        source, place = chosen[name], places[name]
        info = source.info(name)
        kind = _type_on_device(info.dtype, dtype)
        size = int(np.prod(info.shape, dtype=np.int64)) * kind.itemsize
        # As read and in another type; then in that type and as jax hands it to the devices.
        with budget.taken(max(source.host_bytes(name), info.nbytes + size, 2 * size)):
            # A view in our layout: jax reorders it on its way to the devices, faster than numpy.
            arrays.put(place, place.layout.to_ours(source[name].astype(kind, copy=False)))
        bar.update(info.nbytes)

    # In the order of the files, so that each is read from front to back.
    order = sorted(chosen, key=lambda name: (str(chosen[name].path(name)), _start(chosen, name)))
    # Programs that span hosts are called in the same order on each: there, one after another.
    threads = 1 if jax.process_count() > 1 else threads or _processors()
    with bar, ThreadPoolExecutor(threads) as pool:
        # The first fault ends the loading: what has not begun is dropped.
        futures = [pool.submit(load, name) for name in order]
        try:
            for future in futures:
                future.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return Loaded(arrays.tree(), unused, overlaid)


def check_sources(
    sources: Sequence[TensorSource],
    places: Mapping[str, Place],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Refuse weights that `stream_params` would refuse; args and errors as there."""
    _choose(sources, places, shapes)


def _choose(
    sources: Sequence[TensorSource],
    places: Mapping[str, Place],
    shapes: Mapping[str, tuple[int, ...]],
) -> tuple[dict[str, TensorSource], list[str], list[str]]:
    """The source of every tensor, and what is not used."""
    chosen: dict[str, TensorSource] = {}
    unused: list[str] = []
    overlaid: list[str] = []
    for source in sources:
        for name in source:
            here = f"{name} ({source.path(name)})"
            check_names_and_shapes(
                {name: source.info(name)}, places, shapes, source=str(source.path(name)),
                may_miss=True,
            )  # fmt: skip
            if name not in places:
                assert is_ignored(name)
                unused.append(here)
                continue
            if name in chosen:
                overlaid.append(f"{name} ({chosen[name].path(name)})")
            chosen[name] = source
    missing = [name for name in places if name not in chosen]
    if missing:
        files = sorted({str(source.path(name).parent) for source in sources for name in source})
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise InputError(
            f"{', '.join(files) or 'no weights'}: tensor {missing[0]}{more} is missing, and no "
            "base model supplies it"
        )
    return chosen, unused, overlaid


def _processors() -> int:
    """Processors that this process may use, within `_THREADS`."""
    known = getattr(os, "sched_getaffinity", None)
    count = len(known(0)) if known else os.cpu_count() or 1
    fewest, most = _THREADS
    return min(max(count, fewest), most)


def _start(chosen: Mapping[str, TensorSource], name: str) -> int:
    return chosen[name].info(name).start


def _type_on_device(dtype: np.dtype, wanted: DTypeLike | None) -> np.dtype:
    if wanted is None or not jnp.issubdtype(dtype, jnp.floating):
        return dtype
    return np.dtype(wanted)


class _DeviceArrays:
    """Arrays by path, filled whole or a layer at a time; safe to use from several threads."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], placement: Placement, keep: Keep | None
    ) -> None:
        self._shapes = shapes
        self._placement = placement
        self._keep = keep
        self._arrays: dict[str, PyTree] = {}
        self._locks = {path: threading.Lock() for path in shapes}
        self._one_in_full = threading.Lock()

    def put(self, place: Place, value: np.ndarray) -> None:
        """Place a tensor; returns when the host's copy is no longer needed."""
        path, shape = place.path, tuple(self._shapes[place.path])
        sharding = self._placement(path, shape)
        # A stack of one layer is that layer.
        if place.index is None or (shape[0] == 1 and self._keep is None):
            self._arrays[path] = self._kept(path, value.reshape(shape), sharding)
            return
        index = np.int32(place.index)
        row = self._kept(path, value, _row_sharding(sharding))

        def layout(leaf: jax.Array) -> Sharding:
            return shared_axes(sharding, shape, (shape[0], *leaf.shape))

        def empty(leaf: jax.Array) -> jax.Array:
            return _zeros_program((shape[0], *leaf.shape), leaf.dtype, layout(leaf))()

        def with_row(stack: jax.Array, leaf: jax.Array) -> jax.Array:
            return _set_row(stack, leaf, index, layout(leaf))

        with self._locks[path]:
            stack = self._arrays.get(path)
            if stack is None:
                stack = jax.tree.map(empty, row)
            self._arrays[path] = jax.block_until_ready(jax.tree.map(with_row, stack, row))

    def _kept(self, path: str, value: np.ndarray, sharding: Sharding) -> PyTree:
        """An array on the devices, in the form in which it is kept."""
        if self._keep is None:
            return lay_out(value, sharding).block_until_ready()
        with self._one_in_full:
            kept = self._keep(path, lay_out(value, sharding))

            def placed(leaf: jax.Array) -> jax.Array:
                return jax.device_put(leaf, shared_axes(sharding, value.shape, leaf.shape))

            return jax.block_until_ready(jax.tree.map(placed, kept))

    def tree(self) -> PyTree:
        """All arrays as a parameter tree."""
        return from_flat(dict(self._arrays))


def _row_sharding(sharding: Sharding) -> Sharding:
    if not isinstance(sharding, NamedSharding):
        return sharding
    return NamedSharding(sharding.mesh, PartitionSpec(*sharding.spec[1:]))


# One program for all stacks of a shape.
@functools.cache
def _zeros_program(
    shape: tuple[int, ...], dtype: np.dtype, sharding: Sharding
) -> Callable[[], jax.Array]:
    return jax.jit(lambda: jnp.zeros(shape, dtype), out_shardings=sharding)


@functools.partial(jax.jit, static_argnums=3, donate_argnums=0)
def _set_row(stack: jax.Array, row: jax.Array, index: jax.Array, sharding: Sharding) -> jax.Array:
    updated = jax.lax.dynamic_update_index_in_dim(stack, row, index, 0)
    return jax.lax.with_sharding_constraint(updated, sharding)


class _ByteBudget:
    """Holds threads back while those under way take too much; one alone always may."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._condition = threading.Condition()

    @contextlib.contextmanager
    def taken(self, size: int) -> Iterator[None]:
        """Hold so many bytes of the budget while the block runs."""
        with self._condition:
            self._condition.wait_for(lambda: not self._used or self._used + size <= self._limit)
            self._used += size
        try:
            yield
        finally:
            with self._condition:
                self._used -= size
                self._condition.notify_all()
