"""The entries of a bank that become tokens of their own: few, and only those that add something.

Views that the model attends to as references show what they saw better than anything fused from
them. What only other views saw enters as entries: of those that the target can see, one for every
cell of space as wide as a token of the target, the most valuable of the cell, within a budget
(rows S14, S26, S28). So hundreds of views cost as many keys as the surface has tokens.
"""

import dataclasses
import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels import BlockMask, CorrespondenceRule, TokenGeometry, from_geometry
from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers, project
from worldstereo_jax.geometry.products import product
from worldstereo_jax.memory.entries import EntryBank, take_entries
from worldstereo_jax.memory.entry_appearance import appearance_change
from worldstereo_jax.memory.entry_cells import best_of_cell, cell_hash, cell_level
from worldstereo_jax.memory.entry_features import PYRAMID, Level
from worldstereo_jax.memory.entry_field import entry_cosine, entry_geometry
from worldstereo_jax.memory.entry_views import share_beyond, views_at
from worldstereo_jax.memory.masks import TOKEN, ViewSet

GEOMETRY_CHANNELS = 9
"""Channels of an entry's token beside its pyramid: see `select_entry_tokens`."""
# Side in pixels of the cells in which entries hide each other, and the share of depth within which
# they do not.
_CELL, _TOLERANCE = 4, 0.05


@typing.no_type_check
@flax.struct.dataclass
class EntryTokens:
    """At most e entries as keys and values of attention.

    features [e, c]: see `select_entry_tokens`; 0 where not valid. geometry: with leading axis e,
    visibility in the target's frames. valid [e]. left_out []: int32, entries that would have added
    something and found no room.
    """

    features: Float[Array, "e c"]
    geometry: TokenGeometry
    valid: Bool[Array, "e"]
    left_out: Int[Array, ""]


class Sightings(typing.NamedTuple):
    """What a path sees of n entries.

    frames [n]: int32, frames that show it unoccluded. scale [n]: least depth over focal length
    among them, world units a pixel; inf where none does.
    """

    frames: Int[Array, "n"]
    scale: Float[Array, "n"]


def entry_token_width(widths: tuple[int, ...]) -> int:
    """Channels of a token made of entries whose pyramid levels have these widths."""
    return sum(widths) + GEOMETRY_CHANNELS


@functools.partial(jax.jit, static_argnames=("count", "levels", "field", "least_confidence"))
def select_entry_tokens(
    bank: EntryBank,
    targets: ViewSet,
    attended: Int[Array, "r"],
    attended_valid: Bool[Array, "r"],
    *,
    count: int,
    levels: tuple[Level, ...] = PYRAMID,
    field: int = 1,
    least_confidence: float = 0.1,
) -> EntryTokens:
    """The `count` entries of most value to a path, at most one per token-sized cell of space.

    Considered are entries of at least the least confidence that a frame of the target sees (in its
    picture, hidden neither by nearer entries nor by the target's own depth where it is known) and
    that not the attended views alone saw. Value: the entry's confidence and viewing cosine (row
    S15), times the share of its views that are not attended (what it adds), times its resolution
    over the target's up to 1, times the share of frames that see it (its coverage). Cells have the
    side of the nearest target token, rounded to a power of two of the path's least pixel, lie along
    the first target camera's axes, and hold one entry per octant of normals, so that the two sides
    of a thin wall do not compete. Of equals the earlier is taken,
    so the result is a function of the arguments alone.

    Features: the pyramid's levels, finest first, their colours as seen from the middle of the path
    where they are known to change with the view (row S24); normal and mean direction to the cameras
    that saw the entry, in the first target camera's axes, so that nothing turns with the world (row
    S38); confidence; log2 of its pixel over the target's; share of views that are not attended.
    Neighbourhoods keep the axes of the pictures they were seen in.

    Args:
        bank: of the world.
        targets: the path, with the depth that is known of it, 0 elsewhere.
        attended: numbers of the views that are attended to as references.
        attended_valid: False where `attended` holds no view.
        count: the budget, at least 1; static.
        levels: of the bank's pyramid; static.
        field: the level whose neighbourhood is the token's field; static.
        least_confidence: static.

    Raises:
        InputError: when the budget is not positive.
    """
    if count < 1:
        raise InputError(f"a budget of entry tokens must be at least 1, got {count}")
    bits = views_at(attended, attended_valid, bank.views.shape[-1])
    sure = bank.valid & (bank.confidence >= least_confidence)
    seen = see_entries(bank.position, sure, targets)
    added = share_beyond(bank.views, bits)
    usable = sure & (seen.frames > 0) & (added > 0)
    pixel = jnp.where(usable, seen.scale, 1.0)
    footprint = jnp.where(bank.footprint > 0, bank.footprint, pixel)
    value = bank.confidence * entry_cosine(bank) * added
    value = value * jnp.minimum(pixel / footprint, 1.0)
    value = value * seen.frames.astype(jnp.float32) / targets.depth.shape[0]
    # The path's own axes and unit, so that no choice turns on how the world is laid (row S38).
    w2c = targets.w2c[0]
    turn = w2c[:3, :3]
    unit = jnp.where(usable, pixel, jnp.inf).min()
    unit = jnp.where(jnp.isfinite(unit), unit, 1.0)
    place = (product(bank.position, turn.T) + w2c[:3, 3][None]) / unit
    # Rounded, not cut: on average as wide as a token.
    level_of = cell_level(TOKEN * (pixel / unit) * 2.0**0.5)
    key = cell_hash(place, level_of, salt=_octant(product(bank.normal, turn.T)))
    best = best_of_cell(key, value, usable)

    held = min(count, bank.capacity)
    worth, index = lax.top_k(jnp.where(best, value, -1.0), held)
    index = jnp.where(worth > 0, index, bank.capacity)
    index = jnp.pad(index, (0, count - held), constant_values=bank.capacity).astype(jnp.int32)
    part = take_entries(bank, index)
    safe = jnp.minimum(index, bank.capacity - 1)
    detail = jnp.log2(footprint[safe] / pixel[safe])
    middle = targets.w2c[targets.w2c.shape[0] // 2]
    change = appearance_change(part, camera_centers(middle))
    features = jnp.concatenate(
        [
            *_recoloured(part, levels, change),
            product(part.normal, turn.T),
            product(part.direction, turn.T),
            jnp.stack([part.confidence, detail, added[safe]], -1),
        ],
        -1,
    )
    geometry = entry_geometry(bank, index, levels[field], targets)
    return EntryTokens(
        features=jnp.where(part.valid[:, None], features, 0.0),
        geometry=jax.tree.map(lambda leaf: leaf[0], geometry),
        valid=part.valid,
        left_out=best.sum(dtype=jnp.int32) - part.valid.sum(dtype=jnp.int32),
    )


def see_entries(
    position: Float[Array, "n 3"], valid: Bool[Array, "n"], targets: ViewSet
) -> Sightings:
    """Which frames of a path see entries, by a z-buffer of the entries and the path's own depth.

    An entry is hidden in a frame by a valid one that falls into the same cell of 4 x 4 pixels, or
    by known depth at its pixel, when that is nearer by more than 5 % (rows S14, S34).

    Args:
        position: world units.
        valid: entries that may be seen and may hide others.
        targets: the path; depth 0 hides nothing, and frames that are not valid see nothing.
    """
    _, height, width = targets.depth.shape
    rows, columns = -(-height // _CELL), -(-width // _CELL)

    def add(total: Sightings, view: tuple[Array, ...]) -> tuple[Sightings, None]:
        depth, w2c, intrinsics, there = view
        pixels, z = project(position, w2c, intrinsics)
        x, y = pixels[:, 0], pixels[:, 1]
        inside = valid & there & (z > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        column, row = jnp.where(inside[:, None], pixels, 0.0).astype(jnp.int32).T
        place = row // _CELL * columns + column // _CELL
        z = jnp.where(inside, z, jnp.inf)
        front = jnp.full((rows * columns,), jnp.inf, jnp.float32).at[place].min(z)
        known = jnp.where(depth > 0, depth, jnp.inf)[row, column]
        nearest = jnp.minimum(front[place], known)
        seen = inside & (z <= (1.0 + _TOLERANCE) * nearest)
        focal = jnp.sqrt(jnp.abs(intrinsics[0, 0] * intrinsics[1, 1]))
        scale = jnp.where(seen, z / focal, jnp.inf)
        return Sightings(
            total.frames + seen.astype(jnp.int32), jnp.minimum(total.scale, scale)
        ), None

    n = position.shape[0]
    start = Sightings(jnp.zeros((n,), jnp.int32), jnp.full((n,), jnp.inf, jnp.float32))
    views = (targets.depth, targets.w2c, targets.intrinsics, targets.valid)
    return lax.scan(add, start, views)[0]


def entry_block_mask(
    entries: TokenGeometry,
    target: TokenGeometry,
    *,
    rule: CorrespondenceRule | None = None,
    strength: Float[Array, "..."] | float | None = None,
    tile: int = 128,
) -> BlockMask:
    """The correspondence pattern of target tokens by entries (rows S14, S15, S17, S19).

    A token sees the entries in its field, and those in whose field it lies, whose normals agree
    with its own and which its frame does not hide: an entry of uncertain place is found from
    further away. Entries belong to no view, so none of them hides the token.

    Args:
        entries, target: with a leading batch axis, each in the order of its tokens.
        rule: what counts as the same place; by default the wider field of the two decides.
        strength: None for the hard mask, else that of the soft constraint.
        tile: tokens of either side per tile.
    """
    if rule is None:
        rule = CorrespondenceRule(field="either")
    everywhere = jnp.full_like(target.visibility, jnp.uint32(0xFFFFFFFF))
    return from_geometry(
        dataclasses.replace(target, visibility=everywhere),
        entries,
        rule=rule,
        strength=strength,
        tile_q=tile,
        tile_k=tile,
    )


def _recoloured(
    part: EntryBank, levels: tuple[Level, ...], change: Float[Array, "e 3"]
) -> list[Float[Array, "e _"]]:
    """The pyramid with `change` added to every colour in it; learned channels stay."""
    found = []
    for features, level in zip(part.features, levels, strict=False):
        cells = min(level.grid**2, features.shape[-1] // 3)
        added = jnp.tile(change, (1, cells))
        room = features.shape[-1] - added.shape[-1]
        found.append(features + jnp.pad(added, ((0, 0), (0, room))))
    return found + list(part.features[len(levels) :])


def _octant(normal: Float[Array, "n 3"]) -> Int[Array, "n"]:
    facing = (normal > 0).astype(jnp.int32)
    return facing[:, 0] + 2 * facing[:, 1] + 4 * facing[:, 2]
