"""Keeping only the entries that add something, within a budget (rows S28, S30)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.memory.entries import EntryBank, take_entries
from worldstereo_jax.memory.entry_cells import cell_hash, cell_level, rank_in_cell

# Cells of one, two, four and eight footprints in which entries compete.
_LEVELS = 4
_EQUALS = 0.05  # weight of the confidence: less than between the third and the fourth of a cell


@functools.partial(jax.jit, static_argnames=("least_confidence",))
def prune_entries(
    bank: EntryBank, budget: Int[Array, ""] | int, *, least_confidence: float = 0.1
) -> EntryBank:
    """The `budget` entries that matter most, in their order of arrival, without gaps (row S30).

    First go entries below `least_confidence`. Then an entry stays the longer the larger the cell
    whose best entry it is: duplicates within one footprint go first, and under a tight budget what
    is left still covers every surface, evenly more thinly. Among equals the more confident stay.
    Protected entries always stay, even where they alone exceed the budget.

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
    return compact_entries(bank, keep)


def entry_worth(bank: EntryBank) -> Float[Array, " n"]:
    """How much is lost with each entry, in [0, levels + 1]; 0 where empty.

    The number of cell sizes, from the entry's footprint up, at which it is the best of its cell,
    plus 1 / 2, 1 / 3, ... for the second, third, ... of the cell that it loses, so that every cell
    is thinned before any is emptied; the confidence decides between equals. Entries whose normals
    point into different octants do not compete: they may be the two sides of a thin wall.
    """
    level = cell_level(bank.footprint)
    facing = (bank.normal > 0).astype(jnp.int32)
    octant = facing[:, 0] + 2 * facing[:, 1] + 4 * facing[:, 2]
    worth = jnp.zeros_like(bank.confidence)
    best = bank.valid
    for step in range(_LEVELS):
        key = cell_hash(bank.position, level + step, salt=octant)
        rank = rank_in_cell(key, bank.confidence, best)
        worth = worth + jnp.where(best, 1.0 / (1.0 + rank), 0.0)
        best &= rank == 0
    return jnp.where(bank.valid, worth + _EQUALS * bank.confidence, 0.0)


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
