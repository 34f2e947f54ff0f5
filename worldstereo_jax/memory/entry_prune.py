"""Keeping only the entries that add something, within a budget (rows S28, S30)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int, UInt32
from worldstereo_jax.geometry.products import product
from worldstereo_jax.memory.entries import EntryBank, take_entries
from worldstereo_jax.memory.entry_cells import (
    cell_hash,
    cell_level,
    cell_numbers,
    count_in_cells,
    rank_in_cell,
)

_LEVELS = 3  # cells of one, two and four footprints, in which entries compete
_BLOCK = 3  # and cells of eight, each of which loses the same share of its entries
_EDGE = 0.25  # entries at edges go when this share of them is left of the others
_OFF_BORDER = 0.37  # of a footprint, so that surfaces through the origin lie on no cell's border
_EQUALS = 0.05  # weight of the confidence: less than between the third and the fourth of a cell


@functools.partial(jax.jit, static_argnames=("least_confidence",))
def prune_entries(
    bank: EntryBank, budget: Int[Array, ""] | int, *, least_confidence: float = 0.1
) -> EntryBank:
    """The `budget` entries that matter most, in their order of arrival, without gaps (row S30).

    First go entries below `least_confidence`, then duplicates within one footprint. After that
    every block of eight footprints loses the same share of its entries, so that what is left covers
    every surface evenly more thinly; entries at edges of depth, which draw the silhouettes, go four
    times as slowly (row S22). Among equals the more confident stay. Protected entries always
    stay, even where they alone exceed the budget. The `spacing` of those that stay is widened by
    what was taken from their block.

    Args:
        bank: any; `overflow` is kept.
        budget: most entries to keep, protected ones included.
        least_confidence: static.
    """
    worth = entry_worth(bank)
    worth = jnp.where(bank.confidence >= least_confidence, worth, -1.0)
    worth = jnp.where(bank.protected, jnp.inf, worth)
    worth = jnp.where(bank.valid, worth, -jnp.inf)
    # Stable, so that of equals the earlier stays.
    rank = jnp.argsort(jnp.argsort(-worth, stable=True), stable=True)
    keep = bank.valid & (((worth >= 0) & (rank < budget)) | bank.protected)
    block = cell_numbers(_block(bank), bank.valid)
    # Only among those of which each stands for its own place.
    single = bank.valid & ((worth >= 1.0) | bank.protected)
    before, after = (count_in_cells(block, x) for x in (single, single & keep))
    wider = jnp.sqrt(before / jnp.maximum(after, 1))
    spacing = jnp.where(after > 0, bank.spacing * wider, bank.spacing)
    return compact_entries(dataclasses.replace(bank, spacing=spacing), keep)


def entry_worth(bank: EntryBank) -> Float[Array, " n"]:
    """How much is lost with each entry, in [0, 2]; 0 where empty.

    Entries that share a cell within one footprint are duplicates: all but the best of them are
    worth less than 1, the less the more are better. The others are worth 1 and what share of their
    block comes after them, when the block is sorted so that every cell of four, then of two
    footprints keeps its best for long. At edges of depth that share counts from three quarters up.
    """
    place, level = _placed(bank)
    best, single = bank.valid, bank.valid
    order = jnp.zeros_like(bank.confidence)
    double = order
    for step in range(_LEVELS):
        rank = rank_in_cell(cell_hash(place, level + step), bank.confidence, best)
        order = order + jnp.where(best, 1.0 / (1.0 + rank.astype(jnp.float32)), 0.0)
        best &= rank == 0
        if step == 0:
            single, double = best, order
    order = order + _EQUALS * bank.confidence
    key = _block(bank)
    rank = rank_in_cell(key, order, single)
    among = count_in_cells(cell_numbers(key, bank.valid), single)
    gone = rank / jnp.maximum(among, 1) * jnp.where(_at_edge(bank), _EDGE, 1.0)
    worth = jnp.where(single, 2.0 - gone, 0.9 * double)
    # Next to nothing, but it decides between equals.
    return jnp.where(bank.valid, worth * (1.0 - 1e-3 * (1.0 - bank.confidence)), 0.0)


def _block(bank: EntryBank) -> UInt32[Array, "2 n"]:
    """Names of the blocks; entries at edges have their own, and so have the two sides of a wall.

    Sides are told by where the entry was seen from: normals are noisy.
    """
    facing = (product(bank.anchor - bank.eye, _own_axes(bank).T) > 0).astype(jnp.int32)
    octant = facing[:, 0] + 2 * facing[:, 1] + 4 * facing[:, 2]
    salt = octant + 8 * _at_edge(bank).astype(jnp.int32)
    place, level = _placed(bank)
    return cell_hash(place, level + _BLOCK, salt=salt)


def _placed(bank: EntryBank) -> tuple[Float[Array, "n 3"], Int[Array, " n"]]:
    """Positions and cell levels on the bank's own axes, from its first entry, in its footprints.

    So what is kept does not turn on how the world is laid, nor on its unit (row S38).
    """
    first = jnp.argmax(bank.valid)
    unit = bank.footprint[first]
    unit = jnp.where(unit > 0, unit, 1.0)
    place = product(bank.position - bank.anchor[first][None], _own_axes(bank).T) / unit
    return place + _OFF_BORDER, cell_level(bank.footprint / unit)


def _own_axes(bank: EntryBank) -> Float[Array, "3 3"]:
    """Axes that turn with the bank, as rows: along a first line in it, and to the side of its last.

    The first line is the one along which the first entry that a view saw was seen; where none was,
    from the first entry to the one half way. The world's own where there is nothing to tell a side
    by.
    """
    seen = bank.valid & (bank.anchor != bank.eye).any(-1)
    sight = jnp.argmax(seen)
    first, last = jnp.argmax(bank.valid), bank.capacity - 1 - jnp.argmax(bank.valid[::-1])
    start = jnp.where(seen.any(), bank.eye[sight], bank.anchor[first])
    ahead = jnp.where(seen.any(), bank.anchor[sight], bank.anchor[(first + last) // 2]) - start
    aside = bank.anchor[last] - start
    ahead = ahead / jnp.maximum(jnp.linalg.norm(ahead), 1e-30)
    across = aside - (aside * ahead).sum() * ahead
    length = jnp.linalg.norm(across)
    across = across / jnp.maximum(length, 1e-30)
    axes = jnp.stack([across, jnp.cross(ahead, across), ahead])
    found = ahead.any() & (length > 1e-3 * jnp.linalg.norm(aside))
    return jnp.where(found, axes, jnp.eye(3, dtype=jnp.float32))


def _at_edge(bank: EntryBank) -> Bool[Array, " n"]:
    return bank.edge > 0.5


def compact_entries(bank: EntryBank, keep: Bool[Array, " n"]) -> EntryBank:
    """The entries marked `keep`, moved together to the front in their order; the rest is empty."""
    keep = keep & bank.valid
    index = jnp.nonzero(keep, size=bank.capacity, fill_value=bank.capacity)[0]
    moved = take_entries(bank, index.astype(jnp.int32))
    return dataclasses.replace(
        moved,
        count=keep.sum(dtype=jnp.int32),
        overflow=bank.overflow,
        uncounted=bank.uncounted,
    )


def protect_entries(bank: EntryBank, where: Bool[Array, " n"]) -> EntryBank:
    """Mark entries that pruning must keep."""
    return dataclasses.replace(bank, protected=bank.protected | (where & bank.valid))
