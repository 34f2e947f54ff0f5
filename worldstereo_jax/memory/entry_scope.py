"""Work on the part of a bank that cameras see: what lies elsewhere costs next to nothing (row S10).

Those in view are taken out as a small bank, in the order of their slots, and read or updated there;
of all others only the place is looked at, in one pass. That pass is why a rollout keeps no index of
its entries: over a million of them and 21 cameras it takes 25 ms on one core, less than it takes an
index (`entry_store`) to merge what a clip adds. Beyond some millions the index is faster.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.geometry.products import product
from worldstereo_jax.memory.entries import EntryBank, take_entries
from worldstereo_jax.memory.entry_frame import EntryFrame
from worldstereo_jax.memory.entry_update import DEFAULT_RULE, EntryRule, update_entries

_MARGIN = 2.0  # pixels around the pictures: rounding must not decide who is looked at

_Read = TypeVar("_Read")


class InView(NamedTuple):
    """Entries that cameras see, whatever hides them.

    slot [m]: int32, of the first m in ascending order, and the number of slots, which is out of
    range, behind the last. count []: int32, all of them.
    """

    slot: Int[Array, " m"]
    count: Int[Array, ""]


def slots_in_view(
    position: Float[Array, "n 3"],
    valid: Bool[Array, "n"],
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
    *,
    height: int,
    width: int,
    most: int,
) -> InView:
    """Which valid positions at least one camera has in its picture, or within 2 pixels of it.

    Args:
        position: world units.
        valid: which to look at.
        w2c, intrinsics: the cameras, pixels of `height` x `width` pictures.
        most: slots returned.
    """
    x, y, z = position.T
    n = position.shape[0]

    def look(seen: Array, camera: Array) -> tuple[Array, None]:
        u, v, depth = (a * x + b * y + c * z + d for a, b, c, d in camera)
        beside = _MARGIN * depth
        inside = (depth > 0) & (u >= -beside) & (u < width * depth + beside)
        return seen | (inside & (v >= -beside) & (v < height * depth + beside)), None

    seen, _ = lax.scan(look, jnp.zeros((n,), bool), product(intrinsics, w2c[:, :3]))
    seen &= valid
    place = jnp.cumsum(seen, dtype=jnp.int32) - 1
    # Out of range on purpose: the scatter drops what is not seen, and what finds no room.
    place = jnp.where(seen, place, most)
    slot = jnp.full((most,), n, jnp.int32)
    slot = slot.at[place].set(jnp.arange(n, dtype=jnp.int32), mode="drop")
    return InView(slot, seen.sum(dtype=jnp.int32))


def read_in_view(
    read: Callable[[EntryBank], _Read],
    bank: EntryBank,
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
    *,
    height: int,
    width: int,
    most: int,
) -> _Read:
    """`read(bank)`, at the cost of what the cameras see of it.

    Args:
        read: what depends on the entries in view of the cameras alone, and on their order but not
            on their slots. It is called with these alone, or with the whole bank where that has no
            more than `most` slots or more than `most` of its entries are in view.
        bank: any.
        w2c, intrinsics: the cameras, pixels of `height` x `width` pictures.
        most: static.
    """
    if bank.capacity <= most:
        return read(bank)
    found = slots_in_view(
        bank.position, bank.valid, w2c, intrinsics, height=height, width=width, most=most
    )

    def part() -> _Read:
        return read(take_entries(bank, found.slot))

    return lax.cond(found.count <= most, part, lambda: read(bank))


@functools.partial(jax.jit, static_argnames=("rule", "most"))
def update_in_view(
    bank: EntryBank, frame: EntryFrame, *, rule: EntryRule = DEFAULT_RULE, most: int
) -> EntryBank:
    """`update_entries`, at the cost of what the frame sees of the bank.

    Args:
        bank, frame, rule: as in `update_entries`.
        most: entries looked at alone; the whole bank is where it has no more slots, or where more
            are in view. Static.
    """
    if bank.capacity <= most:
        return update_entries(bank, frame, rule=rule)
    height, width = frame.depth.shape
    cameras = frame.w2c[None], frame.intrinsics[None]
    # An update compares with where entries were first put.
    found = slots_in_view(bank.anchor, bank.valid, *cameras, height=height, width=width, most=most)

    def part(bank: EntryBank) -> EntryBank:
        return update_entries(bank, frame, rule=rule, candidates=found.slot)

    def whole(bank: EntryBank) -> EntryBank:
        return update_entries(bank, frame, rule=rule)

    return lax.cond(found.count <= most, part, whole, bank)
