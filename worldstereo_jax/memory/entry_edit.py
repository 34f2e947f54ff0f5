"""Editing entry banks: select, delete, merge, undo (row S33)."""

import dataclasses
import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int, UInt32
from worldstereo_jax.memory.entries import EntryBank, append_entries, take_entries
from worldstereo_jax.memory.entry_cells import cell_level, nearest_in_cells
from worldstereo_jax.memory.entry_prune import compact_entries
from worldstereo_jax.memory.entry_update import DEFAULT_RULE, EntryRule, combine_entries
from worldstereo_jax.memory.entry_views import has_view, move_views, used_views

# Entries are one place when their footprints differ by no more than this factor: finer ones add
# detail, and coarser ones would lose it.
_SAME_SIZE = 1.5
_SAME_SIDE = 0.3  # least cosine between normals of one surface


@typing.no_type_check
@flax.struct.dataclass
class EntryHistory:
    """A bank and what it was before its last clip: undoing is exact, at twice the memory.

    Fusing cannot be taken back from the means alone, so the earlier bank itself is kept.
    """

    current: EntryBank
    before: EntryBank


def begin_clip(bank: EntryBank) -> EntryHistory:
    """Remember `bank` as it is; put the clip's frames into `current`."""
    return EntryHistory(current=bank, before=bank)


def undo_clip(history: EntryHistory) -> EntryBank:
    """The bank before the last clip, bit by bit."""
    return history.before


def select_box(
    bank: EntryBank, low: Float[Array, "3"], high: Float[Array, "3"]
) -> Bool[Array, " n"]:
    """Entries in the axis-aligned box from `low` to `high`, world units, both ends included."""
    inside = (bank.position >= low[None]) & (bank.position <= high[None])
    return bank.valid & inside.all(-1)


def select_view(bank: EntryBank, view: Int[Array, ""] | int) -> Bool[Array, " n"]:
    """Entries that view number `view` saw."""
    return bank.valid & has_view(bank.views, jnp.asarray(view, jnp.int32))


def select_source(bank: EntryBank, source: Int[Array, ""] | int) -> Bool[Array, " n"]:
    """Entries that clip number `source` put there."""
    return bank.valid & (bank.source == source)


def keep_entries(bank: EntryBank, where: Bool[Array, " n"]) -> EntryBank:
    """The selected entries only, without gaps."""
    return compact_entries(bank, where)


def delete_entries(bank: EntryBank, where: Bool[Array, " n"]) -> EntryBank:
    """The bank without the selected entries, protected or not, without gaps."""
    return compact_entries(bank, ~where)


@functools.partial(jax.jit, static_argnames=("rule",))
def merge_entries(
    left: EntryBank,
    right: EntryBank,
    *,
    rule: EntryRule = DEFAULT_RULE,
    view_offset: Int[Array, ""] | int = 0,
    source_offset: Int[Array, ""] | int = 0,
) -> EntryBank:
    """`left` with what `right` knows: the same places fused, the others appended (row S33).

    Places are the same when they lie within a footprint of each other, are seen at a like
    footprint and face the same side. Of several entries of `right` at one place of `left` the
    nearest is fused, and the others are left out as redundant. A place all of whose views `left`
    has already counted is not counted again, so merging a bank with itself changes nothing.

    Args:
        left: gives the capacity; what finds no room is counted in `overflow`.
        right: in the same world frame, with features of the same widths.
        rule: as in `update_entries`, for telling confidence; static.
        view_offset: added to the view numbers of `right`; views that then have no bit are counted
            in `uncounted`.
        source_offset: added to its clip numbers.
    """
    words = left.views.shape[-1]
    lost = lost_views(right.views, view_offset, words=words)
    right = dataclasses.replace(
        right,
        views=renumber_views(right.views, view_offset, words=words),
        denied=renumber_views(right.denied, view_offset, words=words),
        source=right.source + source_offset,
    )
    index, away = nearest_in_cells(
        left.position,
        cell_level(left.footprint),
        left.valid,
        right.position,
        cell_level(right.footprint),
    )
    there = take_entries(left, index)
    size = jnp.maximum(there.footprint, right.footprint)
    alike = size <= _SAME_SIZE * jnp.minimum(there.footprint, right.footprint)
    cosine = (there.normal * right.normal).sum(-1)
    side = (cosine >= _SAME_SIDE) | ~there.normal.any(-1) | ~right.normal.any(-1)
    same = right.valid & there.valid & alike & side & (away <= size)
    # Of several candidates for one place the nearest; the earlier of equally near ones.
    n, m = left.capacity, right.capacity
    place = jnp.where(same, index, n)
    nearest = jnp.full((n,), jnp.inf, jnp.float32).at[place].min(away, mode="drop")
    first = same & (away <= nearest[jnp.minimum(place, n - 1)])
    number = jnp.arange(m, dtype=jnp.int32)
    winner = jnp.full((n,), m, jnp.int32)
    winner = winner.at[jnp.where(first, place, n)].min(number, mode="drop")
    partner = take_entries(right, winner)
    fuse = partner.valid & ((partner.views & ~left.views) != 0).any(-1)
    merged = combine_entries(left, partner, fuse, rule)
    merged = dataclasses.replace(merged, uncounted=left.uncounted + right.uncounted + lost)
    return append_entries(merged, right, right.valid & ~same)


def renumber_views(
    bits: UInt32[Array, "n old"], offset: Int[Array, ""] | int, *, words: int
) -> UInt32[Array, "n words"]:
    """Bitsets in which view i is called i + offset; numbers that do not fit are dropped."""
    return move_views(bits, _moved(bits, offset), words=words)


def lost_views(
    bits: UInt32[Array, "n old"], offset: Int[Array, ""] | int, *, words: int
) -> Int[Array, ""]:
    """How many views that saw anything find no place when `renumber_views` moves them."""
    moved = _moved(bits, offset)
    return (used_views(bits) & ((moved < 0) | (moved >= 32 * words))).sum(dtype=jnp.int32)


def _moved(bits: UInt32[Array, "n old"], offset: Int[Array, ""] | int) -> Int[Array, " views"]:
    return jnp.arange(32 * bits.shape[-1], dtype=jnp.int32) + jnp.asarray(offset, jnp.int32)
