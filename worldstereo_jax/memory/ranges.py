"""From ragged ranges of slots to a fixed number of hits per query, in static shapes.

Every query names a few ranges of consecutive slots. All slots of all ranges are laid end to end and
walked in chunks, so that the work is their number and not the longest list times the queries.
"""

import typing
from collections.abc import Callable

import flax.struct
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Int

_CHUNK = 1 << 19  # slots tested at once: enough to fill the vector units, about 20 MB of scratch


@typing.no_type_check
@flax.struct.dataclass
class Hits:
    """What q queries found, at most k each.

    entry [q, k]: int32 ids, -1 behind the last. count [q]: int32, all that were found.
    """

    entry: Int[Array, "q k"]
    count: Int[Array, "q"]

    @property
    def valid(self) -> Bool[Array, "q k"]:
        """Which places of `entry` are filled."""
        return self.entry >= 0

    @property
    def overflow(self) -> Int[Array, "q"]:
        """Hits of each query that did not fit in k."""
        return jnp.maximum(self.count - self.entry.shape[1], 0)


def no_hits(queries: int, k: int) -> Hits:
    """Hits of queries that have found nothing yet."""
    return Hits(entry=jnp.full((queries, k), -1, jnp.int32), count=jnp.zeros((queries,), jnp.int32))


def collect(
    hits: Hits,
    start: Int[Array, "q m"],
    length: Int[Array, "q m"],
    entry: Int[Array, "n"],
    is_hit: Callable[[Int[Array, "c"], Int[Array, "c"]], Bool[Array, "c"]],
) -> Hits:
    """Add to `hits` the entries of the ranges' slots that pass a test, in the order of the slots.

    Args:
        hits: what earlier calls found.
        start, length: the m ranges of each query; they may be empty.
        entry: id of each slot.
        is_hit: (query [c], slot [c]) -> whether the slot belongs to the query's answer.
    """
    queries, k = hits.entry.shape
    ranges = start.shape[1]
    flat_length = length.reshape(-1)
    ends = jnp.cumsum(flat_length)
    total, offset = ends[-1], ends - flat_length
    first, last = offset[::ranges], ends[ranges - 1 :: ranges]  # of each query
    shift = start.reshape(-1) - offset
    count = queries * ranges
    chunk = min(_CHUNK, 1 << max(10, (16 * count - 1).bit_length()))
    step = jnp.arange(chunk, dtype=jnp.int32)
    number = jnp.arange(count, dtype=jnp.int32)

    def walk(state: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        base, open_range, found, seen = state
        local = offset - base
        begins = (flat_length > 0) & (local >= 0) & (local < chunk)
        mark = jnp.zeros((chunk,), jnp.int32).at[0].set(open_range)
        mark = mark.at[jnp.where(begins, local, chunk)].set(number, mode="drop")
        which = lax.cummax(mark)
        query = which // ranges
        inside = base + step < total
        slot = jnp.where(inside, shift.at[which].get(mode="promise_in_bounds") + base + step, 0)
        hit = inside & is_hit(query, slot)
        running = jnp.concatenate([jnp.zeros((1,), jnp.int32), jnp.cumsum(hit, dtype=jnp.int32)])
        before = running.at[jnp.clip(first - base, 0, chunk)].get(mode="promise_in_bounds")
        after = running.at[jnp.clip(last - base, 0, chunk)].get(mode="promise_in_bounds")
        rank = running[:-1] + (seen - before).at[query].get(mode="promise_in_bounds")
        place = jnp.where(hit & (rank < k), query * k + rank, queries * k)
        found = found.at[place].set(entry.at[slot].get(mode="promise_in_bounds"), mode="drop")
        return base + chunk, which[-1], found, seen + after - before

    zero = jnp.zeros((), jnp.int32)
    _, _, found, seen = lax.while_loop(
        lambda state: state[0] < total, walk, (zero, zero, hits.entry.reshape(-1), hits.count)
    )
    return Hits(entry=found.reshape(queries, k), count=seen)
