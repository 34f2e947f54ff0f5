"""Editing a world's whole memory: prune, undo, select, merge, all of its parts in step (row S33).

Points, keyframes and entries come from the same frames, so a keyframe holds what is needed to make
its part of the others again: `replay_keyframes` puts a memory together anew from some of its own
keyframes, as if nothing else had ever been seen.
"""

import dataclasses
import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entry_edit import keep_entries, select_box
from worldstereo_jax.memory.entry_prune import prune_entries
from worldstereo_jax.memory.global_geometric import (
    init_global_memory,
    insert_points,
    update_global_memory,
)
from worldstereo_jax.memory.keyframe_edit import (
    Views,
    keep_keyframes,
    keyframes_in_box,
    merge_keyframes,
    prune_keyframes,
)
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    WorldMemory,
    empty_memory,
    remember_frames,
)


@typing.no_type_check
@flax.struct.dataclass
class WorldHistory:
    """A memory and what it was before its last clip: undoing is exact, at twice the memory."""

    current: WorldMemory
    before: WorldMemory


def begin_clip(memory: WorldMemory) -> WorldHistory:
    """Remember `memory` as it is; put the clip into `current`."""
    return WorldHistory(current=memory, before=memory)


def undo_clip(history: WorldHistory) -> WorldMemory:
    """The memory before the last clip, bit by bit."""
    return history.before


def prune_world(
    memory: WorldMemory,
    *,
    views: int | None = None,
    entries: int | None = None,
    protected: Bool[Array, " v"] | None = None,
) -> WorldMemory:
    """The memory within a budget of keyframes and of entries (row S30); points stay.

    Args:
        memory: any.
        views: most keyframes, the least useful go first (see `useful_keyframes`); None keeps all.
        entries: most entries (see `prune_entries`); None keeps all.
        protected: keyframes that stay; the first when None. Entries carry their own protection.
    """
    kept = Views(memory.stereo, memory.entries)
    if views is not None:
        kept = prune_keyframes(*kept, views, protected=protected)
    if entries is not None:
        kept = Views(kept.stereo, prune_entries(kept.entries, entries))
    return dataclasses.replace(memory, stereo=kept.stereo, entries=kept.entries)


def replay_keyframes(
    config: RolloutConfig, memory: WorldMemory, keep: Bool[ndarray, " v"]
) -> WorldMemory:
    """The memory as if only the keyframes marked `keep` had ever been seen (row S33).

    Bit by bit what it was, or would have been, as long as every frame it is made of is still among
    its keyframes: none found no room, none was pruned.

    Args:
        config: how its points and entries are made; sizes are taken from the memory itself.
        memory: any.
        keep: which of the slots.
    """
    stereo = memory.stereo
    held = np.flatnonzero(np.asarray(keep) & np.asarray(stereo.valid))
    config = _own_sizes(config, memory)
    found = empty_memory(config)
    for slot in held:
        part = slice(slot, slot + 1)
        cameras = Cameras(w2c=stereo.w2c[part], intrinsics=stereo.intrinsics[part])
        # Its confidence is that of what it was read from, or already less.
        inherited = jnp.where(stereo.measured[part], 0.0, stereo.confidence[part])
        frames = stereo.images[part], stereo.depth[part], cameras, stereo.source[slot]
        found = remember_frames(
            config, found, *frames, confidence=stereo.confidence[part], inherited=inherited
        )
    return found


def forget_last_clip(config: RolloutConfig, memory: WorldMemory) -> WorldMemory:
    """The memory as if its last clip had not been made (row S33): see `replay_keyframes`.

    Raises:
        InputError: when there is no clip after what the memory began with.
    """
    source, valid = np.asarray(memory.stereo.source), np.asarray(memory.stereo.valid)
    last = source[valid].max(initial=0)
    if last == 0:
        raise InputError("the memory holds only what it began with: there is no clip to undo")
    return replay_keyframes(config, memory, source != last)


@jax.jit
def select_world(
    memory: WorldMemory, low: Float[Array, "3"], high: Float[Array, "3"]
) -> WorldMemory:
    """What lies in the box from `low` to `high`, world units (row S33).

    Points and entries in it, and the keyframes that show anything of it, whole as they are.
    """
    points = memory.points
    inside = ((points.positions >= low[None]) & (points.positions <= high[None])).all(-1)
    empty = dataclasses.replace(init_global_memory(points.capacity), overflow=points.overflow)
    entries = keep_entries(memory.entries, select_box(memory.entries, low, high))
    kept = keep_keyframes(memory.stereo, entries, keyframes_in_box(memory.stereo, low, high))
    return WorldMemory(
        points=insert_points(empty, points.positions, points.colors, inside & points.valid),
        stereo=kept.stereo,
        entries=kept.entries,
    )


def merge_worlds(config: RolloutConfig, left: WorldMemory, right: WorldMemory) -> WorldMemory:
    """`left` with what `right` knows (row S33): see `merge_keyframes`.

    Keyframes that are new add their points as a rollout would have done.

    Args:
        config: how points and entries are made; sizes are taken from `left`.
        left: gives the capacities.
        right: in the same world frame.

    Raises:
        InputError: when image sizes or pyramids differ.
    """
    merged, new = merge_keyframes(
        Views(left.stereo, left.entries),
        Views(right.stereo, right.entries),
        rule=config.entry_rule,
    )
    update = _point_update(_own_sizes(config, left))
    points, other = left.points, right.stereo
    for slot in np.flatnonzero(np.asarray(new)):
        points = update(
            points, other.images[slot], other.depth[slot], other.w2c[slot], other.intrinsics[slot]
        )
    return WorldMemory(points=points, stereo=merged.stereo, entries=merged.entries)


@functools.cache
def _point_update(config: RolloutConfig):
    return jax.jit(
        functools.partial(
            update_global_memory, radius_ndc=config.point_radius_ndc, edges=config.point_edges
        )
    )


def _own_sizes(config: RolloutConfig, memory: WorldMemory) -> RolloutConfig:
    height, width = memory.stereo.images.shape[1:3]
    return dataclasses.replace(
        config,
        height=height,
        width=width,
        bank_capacity=memory.stereo.capacity,
        point_capacity=memory.points.capacity,
        entry_capacity=memory.entries.capacity,
    )
