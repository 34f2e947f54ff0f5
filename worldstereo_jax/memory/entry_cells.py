"""Entries by the cell of space they lie in: who shares a cell, and who else is there.

Cells are cubes of the world's grid whose side is a power of two of the world's unit, chosen per
entry from its footprint, so the levels nest like an octree's. A cell is named by 64 bits of hash:
among a million entries the chance of a single collision is one in ten million.
"""

import itertools

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int, UInt32

# Odd constants of well-mixing integer hashes (Wang; Teschner et al. 2003).
_PRIMES = (
    (73856093, 19349663, 83492791, 2654435761),
    (2246822519, 3266489917, 668265263, 374761393),
)
_CORNERS = tuple(itertools.product((-0.5, 0.5), repeat=3))


def cell_level(footprint: Float[Array, " n"]) -> Int[Array, " n"]:
    """Largest level whose cells, of side 2 ** level, are no wider than the footprint."""
    safe = jnp.where(footprint > 0, footprint, 1.0)
    return jnp.floor(jnp.log2(safe)).astype(jnp.int32)


def cell_hash(
    position: Float[Array, "n 3"], level: Int[Array, " n"], *, salt: Int[Array, " n"] | None = None
) -> UInt32[Array, "2 n"]:
    """Name of the cell of side 2 ** level around each position, as two words.

    `salt` tells apart what shares a cell, for instance both sides of a wall.
    """
    side = jnp.exp2(level.astype(jnp.float32))
    cell = jnp.floor(position / side[:, None]).astype(jnp.int32)
    parts = [cell[:, 0], cell[:, 1], cell[:, 2], level if salt is None else level * 64 + salt]
    return jnp.stack([_mix(parts, primes) for primes in _PRIMES])


def best_of_cell(
    key: UInt32[Array, "2 n"], score: Float[Array, " n"], valid: Bool[Array, " n"]
) -> Bool[Array, " n"]:
    """Whether each entry has the highest score of those with its key; the earlier one of equals."""
    return (rank_in_cell(key, score, valid) == 0) & valid


def rank_in_cell(
    key: UInt32[Array, "2 n"], score: Float[Array, " n"], valid: Bool[Array, " n"]
) -> Int[Array, " n"]:
    """How many valid entries with its key have a higher score, or an equal one and come earlier.

    Sorts the keys: n log n, and no array larger than n. Meaningless where not valid.
    """
    n = score.shape[0]
    order = jnp.where(valid, -score, jnp.inf)
    slot = jnp.arange(n, dtype=jnp.int32)
    one, two, _, which = lax.sort((key[0], key[1], order, slot), num_keys=4)
    first = jnp.concatenate([jnp.ones((1,), bool), (one[1:] != one[:-1]) | (two[1:] != two[:-1])])
    rank = slot - lax.cummax(jnp.where(first, slot, 0))
    return jnp.zeros((n,), jnp.int32).at[which].set(rank)


def cell_numbers(key: UInt32[Array, "2 n"], valid: Bool[Array, " n"]) -> Int[Array, " n"]:
    """A number below n for each cell, the same for all that lie in it; n where not valid."""
    n = valid.shape[0]
    slot = jnp.arange(n, dtype=jnp.int32)
    one, two, which = lax.sort((key[0], key[1], slot), num_keys=2)
    new = (one[1:] != one[:-1]) | (two[1:] != two[:-1])
    number = jnp.cumsum(jnp.concatenate([jnp.zeros((1,), bool), new]), dtype=jnp.int32)
    return jnp.where(valid, jnp.zeros((n,), jnp.int32).at[which].set(number), n)


def count_in_cells(number: Int[Array, " n"], where: Bool[Array, " n"]) -> Int[Array, " n"]:
    """How many entries `where` asked lie in each entry's cell, by `cell_numbers`."""
    counts = jnp.zeros(number.shape, jnp.int32)
    counts = counts.at[number].add(where.astype(jnp.int32), mode="drop")
    return counts.at[number].get(mode="fill", fill_value=0)


def nearest_in_cells(
    position: Float[Array, "n 3"],
    level: Int[Array, " n"],
    valid: Bool[Array, " n"],
    query: Float[Array, "m 3"],
    query_level: Int[Array, " m"],
    *,
    depth: int = 6,
) -> tuple[Int[Array, " m"], Float[Array, " m"]]:
    """For each query the nearest stored point of its own level or one beside, and its distance.

    Looks into the eight cells of side 2 ** (level + 1) around the query, and at no more than
    `depth` points in each: complete within 2 ** level, which is between half a footprint and one.
    -1 and inf where there is none.
    """
    n = position.shape[0]
    if n == 0:
        none = jnp.full(query_level.shape, -1, jnp.int32)
        return none, jnp.full(query_level.shape, jnp.inf, jnp.float32)
    # Every stored point under the three levels from which it may be asked for.
    keys = [cell_hash(position, level + 1 + step) for step in (-1, 0, 1)]
    words = jnp.concatenate(keys, 1)
    slot = jnp.tile(jnp.arange(n, dtype=jnp.int32), 3)
    there = jnp.tile(valid, 3)
    # Empty slots go to the end under a key of their own.
    words = jnp.where(there[None], words, jnp.uint32(0xFFFFFFFF))
    one, two, slot = lax.sort((words[0], words[1], slot), num_keys=3)
    side = jnp.exp2(query_level.astype(jnp.float32) + 1.0)
    best = jnp.full(query_level.shape, jnp.inf, jnp.float32)
    index = jnp.full(query_level.shape, -1, jnp.int32)
    for corner in _CORNERS:
        offset = jnp.asarray(corner, jnp.float32)[None] * side[:, None]
        key = cell_hash(query + offset, query_level + 1)
        start = jnp.searchsorted(one, key[0], side="left").astype(jnp.int32)
        for step in range(depth):
            at = jnp.minimum(start + step, 3 * n - 1)
            found = slot[at]
            same = (one[at] == key[0]) & (two[at] == key[1]) & (start + step < 3 * n) & valid[found]
            away = jnp.linalg.norm(position[found] - query, axis=-1)
            away = jnp.where(same, away, jnp.inf)
            index = jnp.where(away < best, found, index)
            best = jnp.minimum(away, best)
    return index, best


def _mix(parts: list[Int[Array, " n"]], primes: tuple[int, ...]) -> UInt32[Array, " n"]:
    value = jnp.zeros(parts[0].shape, jnp.uint32)
    for part, prime in zip(parts, primes, strict=True):
        value = (value ^ (part.astype(jnp.uint32) * jnp.uint32(prime))) * jnp.uint32(0x9E3779B1)
        value = value ^ (value >> 15)
    return value
