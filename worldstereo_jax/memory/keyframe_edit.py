"""Editing the bank of keyframes, and the entries with it (rows S30, S33).

A view's number in the entries' bitsets is its slot among the keyframes. So whenever slots change,
entries are told: bits of views that stay move along, and those of views that are gone get numbers
past the capacity, where no keyframe will ever stand. An entry is thus never said to have been seen
by a view that did not see it, and a view that is gone is still counted among those that did.
"""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.points import depth_to_points
from worldstereo_jax.memory.coverage import view_coverage
from worldstereo_jax.memory.entries import EntryBank, per_row
from worldstereo_jax.memory.entry_edit import merge_entries
from worldstereo_jax.memory.entry_update import DEFAULT_RULE, EntryRule
from worldstereo_jax.memory.entry_views import move_views, used_views
from worldstereo_jax.memory.spatial_stereo import (
    SpatialStereoMemory,
    init_spatial_memory,
    insert_keyframes,
    same_cameras,
    scene_scale,
)

# Mean difference of colours in [-1, 1] up to which two pictures from one camera are one view.
_SAME_PICTURE = 0.01
# Most numbers of what every view shows to every camera: 0.6 GB of them.
_MOST_CELLS = 160_000_000


class Views(typing.NamedTuple):
    """Keyframes and the entries whose bitsets name them."""

    stereo: SpatialStereoMemory
    entries: EntryBank


@jax.jit
def useful_keyframes(
    stereo: SpatialStereoMemory,
    budget: Int[Array, ""] | int,
    *,
    protected: Bool[Array, " v"] | None = None,
) -> Bool[Array, " v"]:
    """The `budget` keyframes without which least is lost (row S30).

    What all stored cameras see is cut into coarse cells, and every view shows some of them, the
    better the finer it resolves them (see `view_coverage`); of some hundred views the cells are
    coarser, so that what all show to all does not outgrow the views themselves. A cell that several
    views show comes as often, and counts so much less: a place does not weigh more for having been
    seen often. One after another the view goes whose cells the remaining ones show best: redundant
    views first. Of equals the later goes.

    Args:
        stereo: the bank.
        budget: most keyframes to keep, protected ones included.
        protected: kept even beyond the budget; the first keyframe, a world's input, when None.
    """
    if protected is None:
        protected = jnp.arange(stereo.capacity) == 0
    cell = _cell_side(*stereo.depth.shape)
    shown = view_coverage(
        stereo, stereo.w2c, stereo.intrinsics, cell=cell, stride=max(1, cell // 2)
    )
    seen_by = jnp.maximum((shown > 0).sum(1).astype(jnp.float32), 1.0)
    weight = jnp.where(stereo.valid[:, None], 1.0 / seen_by, 0.0)
    slots = jnp.arange(stereo.capacity, dtype=jnp.int32)
    budget = jnp.asarray(budget, jnp.int32)

    def rank(keep: Array, camera: Array) -> _Ranked:
        left = jnp.where(keep[:, None], shown[camera], -1.0)
        which = left.argmax(0).astype(jnp.int32)
        others = jnp.where(slots[:, None] == which[None], 0.0, left)
        return _Ranked(which, left.max(0), jnp.maximum(others.max(0), 0.0))

    def too_many(state: tuple[Array, _Ranked]) -> Array:
        keep, _ = state
        return (keep.sum() > budget) & (keep & ~protected).any()

    def drop(state: tuple[Array, _Ranked]) -> tuple[Array, _Ranked]:
        keep, found = state
        lost = (found.best - found.second) * weight
        lost = jnp.zeros(keep.shape, jnp.float32).at[found.which].add(lost)
        lost = jnp.where(keep & ~protected, lost, jnp.inf)
        last = lost.shape[0] - 1 - jnp.argmin(lost[::-1])
        keep = keep.at[last].set(False)
        # Of all cameras only those are looked at again where the view was of the two best.
        its = jnp.take(shown, last, axis=1)
        again = ((found.which == last) | ((its > 0) & (its >= found.second))).any(-1)
        order = jnp.argsort(~again)

        def renew(place: Array, found: _Ranked) -> _Ranked:
            camera = order[place]
            return jax.tree.map(lambda old, new: old.at[camera].set(new), found, rank(keep, camera))

        return keep, lax.fori_loop(0, again.sum(), renew, found)

    start = lax.map(lambda camera: rank(stereo.valid, camera), slots)
    return lax.while_loop(too_many, drop, (stereo.valid, start))[0]


class _Ranked(typing.NamedTuple):
    """Per camera and cell the view that shows it best, how well, and how well the next does."""

    which: Int[Array, "*f cells"]
    best: Float[Array, "*f cells"]
    second: Float[Array, "*f cells"]


def _cell_side(views: int, height: int, width: int) -> int:
    """Side of a cell in pixels: 8, doubled until all views by all cameras find room."""
    cell = 8
    while views**2 * -(-height // cell) * -(-width // cell) > _MOST_CELLS:
        cell *= 2
    return cell


@jax.jit
def keep_keyframes(
    stereo: SpatialStereoMemory, entries: EntryBank, keep: Bool[Array, " v"]
) -> Views:
    """The keyframes marked `keep`, moved together to the front, and entries that know it.

    Entries stay, also those that only views saw that are gone now: see the module for their bits;
    bits that find no place are left out and counted in `uncounted`. Clips are numbered anew, in
    their order, from 0 on.

    Args:
        stereo: the bank.
        entries: of the same world.
        keep: which of the slots.
    """
    keep = keep & stereo.valid
    count = keep.sum(dtype=jnp.int32)
    capacity = stereo.capacity
    order = jnp.nonzero(keep, size=capacity, fill_value=capacity)[0].astype(jnp.int32)
    filled = order < capacity
    safe = jnp.where(filled, order, 0)

    def take(field: Array, empty: Array) -> Array:
        found = field[safe]
        return jnp.where(per_row(filled, found), found, empty)

    empty = init_spatial_memory(1, 1, 1)
    names = ("images", "depth", "confidence", "measured", "w2c", "intrinsics", "valid", "source")
    fields = {name: take(getattr(stereo, name), getattr(empty, name)) for name in names}
    kept = dataclasses.replace(stereo, **fields, count=count)
    slot = jnp.where(keep, jnp.cumsum(keep, dtype=jnp.int32) - 1, -1)
    return _renumber_clips(Views(kept, _with_slots(entries, slot, capacity)))


def prune_keyframes(
    stereo: SpatialStereoMemory,
    entries: EntryBank,
    budget: Int[Array, ""] | int,
    *,
    protected: Bool[Array, " v"] | None = None,
) -> Views:
    """`keep_keyframes` of the `useful_keyframes` (row S30)."""
    return keep_keyframes(stereo, entries, useful_keyframes(stereo, budget, protected=protected))


@jax.jit
def keyframes_in_box(
    stereo: SpatialStereoMemory, low: Float[Array, "3"], high: Float[Array, "3"]
) -> Bool[Array, " v"]:
    """Keyframes that show any surface in the box from `low` to `high`, world units (row S33)."""

    def one(view: tuple[Array, Array, Array]) -> Array:
        points = depth_to_points(*view)
        inside = ((points >= low[None, None]) & (points <= high[None, None])).all(-1)
        return (inside & (view[0] > 0)).any()

    return stereo.valid & lax.map(one, (stereo.depth, stereo.w2c, stereo.intrinsics))


@functools.partial(jax.jit, static_argnames=("rule",))
def merge_keyframes(
    left: Views, right: Views, *, rule: EntryRule = DEFAULT_RULE
) -> tuple[Views, Bool[Array, " v"]]:
    """`left` with the keyframes and entries that `right` knows (row S33).

    A keyframe of `right` that shows from the same camera what one of `left` shows is that one;
    the others are appended, and what finds no room is counted. Clips of `right` are numbered after
    those of `left`, but for number 0, which is what both began with. Entries are merged as
    `merge_entries` does, under the views' new numbers.

    Args:
        left: gives the capacities.
        right: of the same world frame, image size and pyramid.
        rule: see `merge_entries`; static.

    Returns:
        Both together, and which keyframes of `right` are new.

    Raises:
        InputError: when image sizes or pyramids differ.
    """
    sizes = [x.stereo.images.shape[1:3] for x in (left, right)]
    widths = [x.entries.config.widths for x in (left, right)]
    if sizes[0] != sizes[1]:
        one, two = (f"{height}x{width}" for height, width in sizes)
        raise InputError(
            f"views of {one} and of {two} pixels (height x width) cannot be merged into one memory"
        )
    if widths[0] != widths[1]:
        raise InputError(
            f"entries with pyramids of {widths[0]} and of {widths[1]} channels cannot be merged"
        )
    one, other = left.stereo, right.stereo
    scale = jax.vmap(scene_scale)(other.depth)
    same = same_cameras(other.w2c, other.intrinsics, one.w2c, one.intrinsics, scale)
    same &= other.valid[:, None] & one.valid[None, :]
    twin = lax.map(lambda view: _same_picture(one.images, *view), (other.images, same))
    new = other.valid & (twin < 0)
    after = jnp.maximum(one.source.max(), left.entries.source.max())

    def clip(number: Int[Array, " k"]) -> Int[Array, " k"]:
        return jnp.where(number > 0, number + after, number)

    # Every clip keeps a number of its own here, so no frame is taken for one that is stored.
    stereo = insert_keyframes(
        one,
        other.images,
        other.depth,
        other.w2c,
        other.intrinsics,
        confidence=other.confidence,
        measured=other.measured,
        source=jnp.where(other.source > 0, other.source + after, -1),
        wanted=new,
    )
    stereo = dataclasses.replace(stereo, source=jnp.maximum(stereo.source, 0))
    slot = one.count + jnp.cumsum(new, dtype=jnp.int32) - 1
    slot = jnp.where(new & (slot < one.capacity), slot, -1)
    slot = jnp.where(twin >= 0, twin, slot)
    # Those of right's views that are gone come after those of left's.
    taken = used_views(left.entries.views | left.entries.denied)
    number = jnp.arange(taken.shape[0], dtype=jnp.int32)
    start = jnp.maximum(jnp.where(taken, number, -1).max() + 1, one.capacity)
    moved = _with_slots(right.entries, slot, start, words=left.entries.views.shape[-1])
    moved = dataclasses.replace(moved, source=clip(moved.source))
    entries = merge_entries(left.entries, moved, rule=rule)
    return _renumber_clips(Views(stereo, entries)), new


def _same_picture(
    images: Float[Array, "v h w 3"], image: Float[Array, "h w 3"], asked: Bool[Array, " v"]
) -> Int[Array, ""]:
    """The first of the images asked about that is the same picture, -1 for none."""
    order = jnp.argsort(~asked).astype(jnp.int32)

    def look(place: Array, found: Array) -> Array:
        slot = order[place]
        same = jnp.abs(images[slot] - image).mean() <= _SAME_PICTURE
        return jnp.where((found < 0) & same, slot, found)

    return lax.fori_loop(0, asked.sum(), look, jnp.int32(-1))


def next_number(stereo: SpatialStereoMemory, entries: EntryBank) -> Int[Array, ""]:
    """Number of a view that comes next: its slot, or past the capacity where it finds no room."""
    used = used_views(entries.views | entries.denied)
    number = jnp.arange(used.shape[0], dtype=jnp.int32)
    beyond = jnp.maximum(jnp.where(used, number, -1).max() + 1, stereo.capacity)
    return jnp.where(stereo.count < stereo.capacity, stereo.count, beyond)


def _with_slots(
    entries: EntryBank,
    slot: Int[Array, " v"],
    start: Int[Array, ""] | int,
    *,
    words: int | None = None,
) -> EntryBank:
    """Entries whose view i is called `slot[i]`; views without a slot count from `start` on."""
    used = used_views(entries.views | entries.denied)
    words = entries.views.shape[-1] if words is None else words
    places = used.shape[0]
    slot = jnp.pad(slot[:places], (0, max(places - slot.shape[0], 0)), constant_values=-1)
    gone = used & (slot < 0)
    number = jnp.where(gone, start + jnp.cumsum(gone, dtype=jnp.int32) - 1, slot)
    lost = (used & ((number < 0) | (number >= 32 * words))).sum(dtype=jnp.int32)
    return dataclasses.replace(
        entries,
        views=move_views(entries.views, number, words=words),
        denied=move_views(entries.denied, number, words=words),
        uncounted=entries.uncounted + lost,
    )


def _renumber_clips(views: Views) -> Views:
    """Clips numbered from 0 on, so that the number of keyframes is a number no clip has.

    Entries of a clip of which no keyframe is left go to the one before it.
    """
    stereo, entries = views
    largest = jnp.iinfo(jnp.int32).max
    ordered = jnp.sort(jnp.where(stereo.valid, stereo.source, largest))
    first = jnp.concatenate([jnp.ones((1,), bool), ordered[1:] != ordered[:-1]])
    distinct = jnp.sort(jnp.where(first, ordered, largest))

    def rank(source: Int[Array, " k"]) -> Int[Array, " k"]:
        place = jnp.searchsorted(distinct, source, side="right").astype(jnp.int32) - 1
        return jnp.maximum(place, 0)

    return Views(
        stereo=dataclasses.replace(stereo, source=jnp.where(stereo.valid, rank(stereo.source), 0)),
        entries=dataclasses.replace(
            entries, source=jnp.where(entries.valid, rank(entries.source), 0)
        ),
    )
