"""Which entries of a bank lie near a point or in a camera's frustum (row S29).

A log-structured merge of runs sorted along a space-filling curve (`curve_run`): each run may hold
eight times as many entries as the one before, and a batch is merged into the smallest run that has
room for it and for all before it. An entry is thus merged a bounded number of times per level, and
an update costs the logarithm of the bank, amortised (O'Neil et al., "The log-structured
merge-tree", Acta Informatica 1996). Queries look into every run that is not empty.
"""

import dataclasses
import functools
import itertools
import typing
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int, UInt32
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.products import product
from worldstereo_jax.memory.curve_run import (
    AXIS_BITS,
    BLOCK,
    CurveRun,
    Lattice,
    cell_of,
    code_of,
    empty_run,
    find_codes,
    merge_runs,
    renumber_run,
    sort_run,
    take_rows,
)
from worldstereo_jax.memory.ranges import Hits, collect, no_hits

_GROWTH = 8
_ROUNDING = 2e-6  # of coordinates and radii in float32, by which cells are searched farther


@typing.no_type_check
@flax.struct.dataclass
class EntryIndex:
    """Positions of entries, ordered for queries; of fixed capacity.

    runs: from the smallest to the largest, see `CurveRun`; the last has the whole capacity.
    lattice: the cells, see `Lattice`. count: entries held. overflow: entries that found no room.
    """

    runs: tuple[CurveRun, ...]
    lattice: Lattice
    count: Int[Array, ""]
    overflow: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """Entries that fit."""
        return self.runs[-1].code.shape[0]


def init_index(
    capacity: int,
    *,
    cell: float | Float[Array, ""],
    origin: Float[Array, "3"] | None = None,
    batch: int = 1 << 15,
) -> EntryIndex:
    """An empty index.

    Args:
        capacity: entries to hold at most; rounded up to a multiple of 64.
        cell: side of a cell in world units; best twice the usual radius of a query.
        origin: low corner of the region where most entries will lie, world units; zero unless
            given. Others are found as well, only slower.
        batch: entries that usually come at once: size of the smallest run.

    Raises:
        InputError: when capacity or batch is not positive.
    """
    if capacity < 1 or batch < 1:
        raise InputError(f"an index needs a positive capacity and batch, not {capacity}, {batch}")
    corner = jnp.zeros((3,), jnp.float32) if origin is None else jnp.asarray(origin, jnp.float32)
    lattice = Lattice(origin=corner, cell=jnp.asarray(cell, jnp.float32))
    runs = tuple(empty_run(size) for size in _run_sizes(capacity, batch))
    # Two arrays, not one twice: the index may be donated.
    count, overflow = jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)
    return EntryIndex(runs=runs, lattice=lattice, count=count, overflow=overflow)


@functools.partial(jax.jit, static_argnames=("capacity", "batch"))
def build_index(
    position: Float[Array, "n 3"],
    valid: Bool[Array, "n"],
    *,
    cell: float | Float[Array, ""],
    capacity: int | None = None,
    batch: int = 1 << 15,
) -> EntryIndex:
    """The index of all valid positions at once; entry i is row i.

    position in world units; cell, capacity (n unless given) and batch as in `init_index`. Positions
    that are not finite are left out.

    Raises:
        InputError: when the capacity is below n.
    """
    n = position.shape[0]
    capacity = n if capacity is None else capacity
    if capacity < n:
        raise InputError(f"an index of {capacity} entries cannot be built from {n} rows")
    usable = valid & jnp.isfinite(position).all(-1)
    low = jnp.where(usable[:, None], position, jnp.inf).min(0)
    low = jnp.where(usable.any(), low, 0.0)
    index = init_index(capacity, cell=cell, origin=low, batch=batch)
    entry = jnp.arange(n, dtype=jnp.int32)
    run = _padded_run(position, entry, usable, index.lattice, index.capacity)
    return dataclasses.replace(index, runs=(*index.runs[:-1], run), count=run.count)


@jax.jit
def insert_entries(
    index: EntryIndex,
    position: Float[Array, "b 3"],
    entry: Int[Array, "b"],
    valid: Bool[Array, "b"],
) -> EntryIndex:
    """The index with a batch of b more entries.

    Args:
        index: it may be donated.
        position: world units.
        entry: ids that queries return, not negative.
        valid: rows to insert. When they do not all fit, none is inserted and all are counted in
            `overflow`.
    """
    size = _round_up(position.shape[0])
    new = _padded_run(position, entry, valid, index.lattice, size)
    runs = index.runs
    held = jnp.stack([run.count for run in runs])
    needed = new.count + jnp.cumsum(held)
    sizes = jnp.array([run.code.shape[0] for run in runs])
    fits = (needed <= sizes) & (needed[-1] <= index.capacity)
    level = jnp.where(fits.any(), jnp.argmax(fits), len(runs))

    def into(target: int, runs: tuple[CurveRun, ...]) -> tuple[CurveRun, ...]:
        merged = new
        for run in runs[:target]:
            merged = merge_runs(run, merged, run.code.shape[0] + merged.code.shape[0])
        merged = merge_runs(runs[target], merged, runs[target].code.shape[0])
        emptied = tuple(empty_run(run.code.shape[0]) for run in runs[:target])
        return (*emptied, merged, *runs[target + 1 :])

    branches = [functools.partial(into, target) for target in range(len(runs))]
    runs = lax.switch(level, [*branches, lambda runs: runs], runs)
    refused = jnp.where(fits.any(), 0, new.count)
    return dataclasses.replace(
        index,
        runs=runs,
        count=index.count + new.count - refused,
        overflow=index.overflow + refused,
    )


@functools.partial(jax.jit, static_argnames="k")
def query_radius(
    index: EntryIndex,
    center: Float[Array, "q 3"],
    radius: Float[Array, "q"] | Float[Array, ""] | float,
    *,
    k: int = 32,
) -> Hits:
    """Entries within a radius (inclusive) of each centre; none for centres that are not finite.

    Args:
        center: world units.
        radius: world units, one for all or one each; cells of a coarser level serve larger ones.
        k: hits returned per query, in no particular order; `Hits.count` counts them all.
    """
    queries = center.shape[0]
    radius = jnp.broadcast_to(jnp.asarray(radius, jnp.float32), (queries,))
    usable = jnp.isfinite(center).all(-1) & (radius >= 0)
    center = jnp.where(usable[:, None], center, 0.0)
    square = radius * radius
    size = jnp.abs(center).max(-1) + jnp.abs(index.lattice.origin).max()
    reach = radius * (1 + _ROUNDING) + _ROUNDING * size
    first, last = _cells_within(center, reach, index.lattice)

    def is_hit(run: CurveRun, query: Array, slot: Array) -> Array:
        here, there = take_rows(run.position, slot), take_rows(center, query)
        distance = sum((a - b) * (a - b) for a, b in zip(here, there, strict=True))
        return distance <= square.at[query].get(mode="promise_in_bounds")

    def search(run: CurveRun, hits: Hits) -> Hits:
        start, end = find_codes(run, jnp.stack([first, last]))
        length = jnp.where(usable[:, None], end - start, 0)
        return collect(hits, start, length, run.entry, functools.partial(is_hit, run))

    return _search_runs(index, no_hits(queries, k), search)


@functools.partial(jax.jit, static_argnames=("height", "width", "k"))
def query_frustum(
    index: EntryIndex,
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
    *,
    height: int,
    width: int,
    near: float | Float[Array, ""] = 0.0,
    far: float | Float[Array, ""] = jnp.inf,
    k: int = 1 << 16,
) -> Hits:
    """Entries whose projection falls into each camera's image, whatever hides them.

    Args:
        w2c, intrinsics: the f cameras, pixels of an image of `height` x `width`.
        near, far: camera z in world units, between which entries are wanted: near < z <= far.
        k: hits returned per camera, in no particular order; `Hits.count` counts them all.
    """
    projection = product(intrinsics, w2c[:, :3])
    planes = _frustum_planes(projection, height, width, near, far)

    def is_hit(run: CurveRun, camera: Array, slot: Array) -> Array:
        x, y, z = take_rows(run.position, slot)
        table = projection.reshape(-1)

        def coordinate(row: int) -> Array:
            place = 12 * camera + 4 * row
            a, b, c, d = (table.at[place + i].get(mode="promise_in_bounds") for i in range(4))
            return a * x + b * y + c * z + d

        u, v, depth = coordinate(0), coordinate(1), coordinate(2)
        inside = (u >= 0) & (v >= 0) & (u < width * depth) & (v < height * depth)
        return inside & (depth > near) & (depth <= far)

    def search(run: CurveRun, hits: Hits) -> Hits:
        touched = _boxes_in_frustum(run, planes)
        begin = BLOCK * jnp.arange(touched.shape[1], dtype=jnp.int32)
        length = jnp.where(touched, jnp.minimum(run.count - begin, BLOCK)[None, :], 0)
        start = jnp.broadcast_to(begin[None, :], length.shape)
        return collect(hits, start, length, run.entry, functools.partial(is_hit, run))

    return _search_runs(index, no_hits(w2c.shape[0], k), search)


def renumber_entries(index: EntryIndex, new_id: Int[Array, "n"]) -> EntryIndex:
    """The index with entry i called `new_id[i]`, and without those whose new id is negative.

    For pruning and compaction of a bank; linear in the capacity, without a sort.
    """
    runs = tuple(renumber_run(run, new_id) for run in index.runs)
    count = jnp.stack([run.count for run in runs]).sum(dtype=jnp.int32)
    return dataclasses.replace(index, runs=runs, count=count)


def _search_runs(index: EntryIndex, hits: Hits, search: Callable[[CurveRun, Hits], Hits]) -> Hits:
    for run in index.runs:
        found = functools.partial(search, run)
        hits = lax.cond(run.count > 0, found, lambda hits: hits, hits)
    return hits


def _round_up(size: int) -> int:
    return -(-size // BLOCK) * BLOCK


def _run_sizes(capacity: int, batch: int) -> list[int]:
    sizes = []
    while batch * _GROWTH <= capacity:
        sizes.append(_round_up(batch))
        batch *= _GROWTH
    return [*sizes, _round_up(capacity)]


def _padded_run(
    position: Float[Array, "n 3"],
    entry: Int[Array, "n"],
    valid: Bool[Array, "n"],
    lattice: Lattice,
    size: int,
) -> CurveRun:
    pad = size - position.shape[0]
    return sort_run(
        jnp.pad(position, ((0, pad), (0, 0))),
        jnp.pad(entry, (0, pad), constant_values=-1),
        jnp.pad(valid, (0, pad)),
        lattice,
    )


def _cells_within(
    center: Float[Array, "q 3"], reach: Float[Array, "q"], lattice: Lattice
) -> tuple[UInt32[Array, "q 8"], UInt32[Array, "q 8"]]:
    """Stretches of the curve, [first, last), of the cells that a ball meets: at most eight.

    The cells' level is the finest whose side is no less than the ball's diameter.
    """
    size = jnp.abs(center).max(-1) + jnp.abs(lattice.origin).max()
    wide = reach + _ROUNDING * (reach + size)
    sides = lattice.cell * 2.0 ** jnp.arange(AXIS_BITS, dtype=jnp.float32)
    level = (2.0 * wide[:, None] > sides[None, :]).sum(-1, dtype=jnp.int32)[:, None]
    low = cell_of(center - reach[:, None], lattice) >> level
    high = cell_of(center + reach[:, None], lattice) >> level
    side = lattice.cell * jnp.exp2(level.astype(jnp.float32))
    stride = jnp.left_shift(jnp.uint32(1), (3 * level[:, 0]).astype(jnp.uint32))
    local = center - lattice.origin[None, :]
    first, last = [], []
    for corner in itertools.product((False, True), repeat=3):
        upper = jnp.array(corner)[None, :]
        chosen = jnp.where(upper, high, low)
        # A cell met twice counts once: where low is high, or the torus has but one.
        again = (upper & (((high ^ low) & ((1 << AXIS_BITS) - 1 >> level)) == 0)).any(-1)
        nearest = jnp.clip(local, chosen * side, (chosen + 1) * side)
        far_off = ((nearest - local) ** 2).sum(-1) > wide * wide
        start = code_of(chosen << level)
        skipped = again | (far_off & (level[:, 0] < AXIS_BITS))
        first.append(start)
        last.append(jnp.where(skipped, start, start + stride))
    return jnp.stack(first, axis=-1), jnp.stack(last, axis=-1)


def _frustum_planes(
    projection: Float[Array, "f 3 4"],
    height: int,
    width: int,
    near: float | Float[Array, ""],
    far: float | Float[Array, ""],
) -> Float[Array, "f 6 4"]:
    """Covectors that are not negative on the points inside the frustum."""
    x, y, z = (projection[:, row] for row in range(3))
    unit = jnp.array([[0.0, 0.0, 0.0, 1.0]])
    # An infinite distance times the zeros of `unit` would be no number.
    farthest = jnp.minimum(far, jnp.float32(1e30))
    sides = [x, width * z - x, y, height * z - y, z - near * unit, farthest * unit - z]
    return jnp.stack(sides, axis=1)


def _boxes_in_frustum(run: CurveRun, planes: Float[Array, "f 6 4"]) -> Bool[Array, "f m"]:
    """Which blocks' boxes are not wholly behind one plane."""
    held = run.low[:, 0] <= run.high[:, 0]
    low = jnp.where(held[:, None], run.low, 0.0)
    high = jnp.where(held[:, None], run.high, 0.0)
    center, extent = 0.5 * (low + high), 0.5 * (high - low)
    normal, offset = planes[..., :3], planes[..., 3:]
    value = product(normal, center.T) + offset
    reach = product(jnp.abs(normal), extent.T)
    sizes = product(jnp.abs(normal), jnp.abs(center).T)
    slack = 1e-5 * (sizes + jnp.abs(offset) + reach)
    return (value + reach + slack >= 0).all(1) & held[None, :]
