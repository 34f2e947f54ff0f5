"""What entries add to the warp of the keyframes (rows S18, S28)."""

import dataclasses

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_views import share_beyond, views_at
from worldstereo_jax.memory.entry_warp import warp_entries
from worldstereo_jax.memory.warping import Warped


def entries_beyond(
    entries: EntryBank, index: Int[Array, "r"], valid: Bool[Array, "r"]
) -> EntryBank:
    """The entries that other views saw than those at `index` alone; the rest are not valid.

    What a view showed is read from the view itself, which also knows where it sees nothing.
    """
    share = share_beyond(entries.views, views_at(index, valid, entries.views.shape[-1]))
    return dataclasses.replace(entries, valid=entries.valid & (share > 0))


def add_entries(
    warped: Warped,
    entries: EntryBank,
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
) -> Warped:
    """The warp of the views along a path, completed by entries where no view shows anything.

    A view is sharper than what was fused from it; but the views that are warped are few, and the
    entries hold what all frames ever showed (rows S18, S28).

    Args:
        warped: along the path, leading axis f.
        entries: of the same world.
        w2c, intrinsics: the path.
    """
    _, height, width = warped.mask.shape

    def draw() -> Warped:
        return jax.lax.map(
            lambda camera: warp_entries(entries, *camera, height=height, width=width),
            (w2c, intrinsics),
        )

    def nothing() -> Warped:
        empty = jax.tree.map(jnp.zeros_like, warped)
        return dataclasses.replace(empty, mask=jnp.ones_like(warped.mask))

    found = jax.lax.cond(entries.valid.any(), draw, nothing)
    missing = (warped.mask > 0.5) & (found.mask < 0.5)

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(missing.reshape(missing.shape + (1,) * (old.ndim - 3)), new, old)

    return jax.tree.map(choose, warped, found)
