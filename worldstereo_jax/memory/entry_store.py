"""Entries together with their index: an update looks only at what is in view (rows S10, S29).

The index is asked for the entries in the frame's frustum; only those are matched, fused and
written back, and only what is new is merged into the index. So an update costs what the frame
shows and the logarithm of what the bank holds.
"""

import dataclasses
import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, Int
from worldstereo_jax.memory.entries import EntryBank, EntryConfig, init_entries
from worldstereo_jax.memory.entry_frame import EntryFrame
from worldstereo_jax.memory.entry_index import (
    EntryIndex,
    build_index,
    init_index,
    insert_entries,
    query_frustum,
)
from worldstereo_jax.memory.entry_update import DEFAULT_RULE, EntryRule, update_entries


@typing.no_type_check
@flax.struct.dataclass
class IndexedEntries:
    """A bank and the index of its anchors; slot i of the bank is entry i of the index.

    missed []: int32, entries in view that did not fit among the candidates of an update and were
    passed over: what they show may have been inserted again.
    """

    bank: EntryBank
    index: EntryIndex
    missed: Int[Array, ""]


def init_store(
    config: EntryConfig,
    *,
    cell: float | Float[Array, ""],
    origin: Float[Array, "3"] | None = None,
    batch: int = 1 << 15,
) -> IndexedEntries:
    """An empty bank with its index; arguments as in `init_entries` and `init_index`."""
    return IndexedEntries(
        bank=init_entries(config),
        index=init_index(config.capacity, cell=cell, origin=origin, batch=batch),
        missed=jnp.zeros((), jnp.int32),
    )


@functools.partial(jax.jit, static_argnames=("batch",))
def index_bank(
    bank: EntryBank, *, cell: float | Float[Array, ""], batch: int = 1 << 15
) -> IndexedEntries:
    """A bank with its index made anew, for instance after pruning, merging or loading."""
    index = build_index(bank.anchor, bank.valid, cell=cell, batch=batch)
    return IndexedEntries(bank=bank, index=index, missed=jnp.zeros((), jnp.int32))


@functools.partial(jax.jit, static_argnames=("rule", "most"))
def update_store(
    store: IndexedEntries,
    frame: EntryFrame,
    *,
    rule: EntryRule = DEFAULT_RULE,
    most: int = 1 << 17,
) -> IndexedEntries:
    """`update_entries` of what is in view, and the index with what is new.

    Equal to `update_entries` on the whole bank while no more than `most` entries are in view.
    Donate the store, or it is copied.

    Args:
        store: bank and index.
        frame: features, depth and camera.
        rule: static.
        most: entries looked at, static; what is in view beyond them is counted in `missed`.
    """
    height, width = frame.depth.shape
    hits = query_frustum(
        store.index,
        frame.w2c[None],
        frame.intrinsics[None],
        height=height,
        width=width,
        k=min(most, store.bank.capacity),
    )
    before = store.bank.count
    bank = update_entries(store.bank, frame, rule=rule, candidates=hits.entry[0])
    start = rule.stride // 2
    sites = len(range(start, height, rule.stride)) * len(range(start, width, rule.stride))
    number = before + jnp.arange(sites, dtype=jnp.int32)
    added = number < bank.count
    anchor = bank.anchor.at[number].get(mode="clip")
    index = insert_entries(store.index, anchor, jnp.where(added, number, 0), added)
    missed = store.missed + hits.overflow[0].astype(jnp.int32)
    return dataclasses.replace(store, bank=bank, index=index, missed=missed)


def build_store(
    store: IndexedEntries,
    frames: EntryFrame,
    *,
    rule: EntryRule = DEFAULT_RULE,
    most: int = 1 << 17,
) -> IndexedEntries:
    """`update_store` over frames stacked along a leading axis, as one scan."""

    def step(store: IndexedEntries, frame: EntryFrame) -> tuple[IndexedEntries, None]:
        return update_store(store, frame, rule=rule, most=most), None

    return jax.lax.scan(step, store, frames)[0]
