"""The order in which the chunked backend walks the rows of tiles, and how far each step loops."""

import typing
from collections.abc import Callable

import flax.struct
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Int

from pallas_kernels.block_mask import TileLists
from pallas_kernels.tiling import ChunkConfig

__all__ = [
    "Rows",
    "Schedule",
    "listed_tiles",
    "loop_trips",
    "make_schedule",
    "restore_rows",
    "run_schedule",
]


@flax.struct.dataclass
@typing.no_type_check
class Rows:
    """Rows of tiles that are computed side by side (a group), or groups of them [groups, ...].

    batch, head, tile int32 [w]: which row of which sample and mask head.
    index             int32 [w, capacity]: its listed tiles.
    count, partial    int32 [w]: how many are listed, and how many of them are partial.
    """

    batch: Int[Array, "w"]
    head: Int[Array, "w"]
    tile: Int[Array, "w"]
    index: Int[Array, "w capacity"]
    count: Int[Array, "w"]
    partial: Int[Array, "w"]


@flax.struct.dataclass
@typing.no_type_check
class Schedule:
    """All rows of a mask in groups.

    rows    Rows with leading axes [groups, w].
    trips   int32 [groups]: steps that a group loops.
    place   int32 [b, heads, n]: where each row stands in [groups * w].
    tiles   static: listed tiles per step.
    """

    rows: Rows
    trips: Int[Array, "groups"]
    place: Int[Array, "b heads n"]
    tiles: int = flax.struct.field(pytree_node=False)


def make_schedule(lists: TileLists, batch: int, config: ChunkConfig) -> Schedule:
    """Group the rows of `batch` samples, `config.rows` at a time, longest lists first.

    Sorting makes the rows of a group alike, so that looping to the longest wastes little: the
    steps times the rows of a group exceed the listed tiles by at most one group's longest list
    and one step per row.
    """
    _, heads, n, capacity = lists.index.shape
    total, width = batch * heads * n, config.rows

    def spread(x: Array) -> Array:
        return jnp.broadcast_to(x, (batch, *x.shape[1:])).reshape(total, *x.shape[3:])

    index, count, partial = (spread(x) for x in (lists.index, lists.count, lists.partial))
    index = jnp.pad(index, ((0, 0), (0, -capacity % config.tiles)))
    item = jnp.arange(total, dtype=jnp.int32)
    order = jnp.argsort(-count, stable=True).astype(jnp.int32) if width > 1 else item
    place = jnp.zeros_like(item).at[order].set(item) if width > 1 else item
    # Rows that fill up the last group repeat row 0 with an empty list; their results are dropped.
    spare = -total % width
    order = jnp.pad(order, (0, spare))
    real = jnp.arange(total + spare) < total

    def grouped(x: Array) -> Array:
        return x.reshape(-1, width, *x.shape[1:])

    count = jnp.where(real, count[order], 0)
    sample, row = jnp.divmod(order, jnp.int32(heads * n))
    head, tile = jnp.divmod(row, jnp.int32(n))
    rows = Rows(
        batch=grouped(sample),
        head=grouped(head),
        tile=grouped(tile),
        index=grouped(index[order]),
        count=grouped(count),
        partial=grouped(jnp.where(real, partial[order], 0)),
    )
    trips = -(-jnp.max(rows.count, axis=1) // config.tiles)
    return Schedule(rows, trips, place.reshape(batch, heads, n), config.tiles)


def listed_tiles(rows: Rows, at: Array, tiles: int) -> tuple[Array, Array, Array]:
    """Step `at` of a group: tiles [w, n], whether partial, whether listed at all."""
    start = at * tiles
    index = lax.dynamic_slice_in_dim(rows.index, start, tiles, axis=1)
    position = (start + jnp.arange(tiles, dtype=jnp.int32))[None]
    return index, position < rows.partial[:, None], position < rows.count[:, None]


def run_schedule(schedule: Schedule, group: Callable[[Rows, Array], typing.Any]) -> typing.Any:
    """Run `group(rows, trips)` for every group; results stacked as [groups, w, ...]."""
    _, out = lax.scan(
        lambda carry, step: (carry, group(*step)), None, (schedule.rows, schedule.trips)
    )
    return out


def restore_rows(x: Array, schedule: Schedule) -> Array:
    """[groups, w, ...] -> [b, heads, n, ...]."""
    return x.reshape(-1, *x.shape[2:])[schedule.place]


def loop_trips(lists: TileLists, batch: int, config: ChunkConfig) -> Int[Array, ""]:
    """Steps taken in all, groups and inner loops together: the work, in units of a step."""
    schedule = make_schedule(lists, batch, config)
    return jnp.sum(schedule.trips) + schedule.trips.shape[0]
