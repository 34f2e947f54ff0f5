"""The entries' surfaces as a coloured point cloud: the memory's reconstruction (row S27).

An entry is a piece of surface, as long along its slant as the ray that saw it was grazing. A cloud
of the entries' middles alone has gaps there; here every piece is filled with points in its tangent
plane, as close as asked. Numpy, since how many there are depends on what is stored.
"""

import functools
from typing import NamedTuple

import jax
import numpy as np

from worldstereo_jax.array_types import Array, Float, Int, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_features import PYRAMID, Level
from worldstereo_jax.memory.entry_field import entry_axes, entry_cosine
from worldstereo_jax.memory.entry_points import entry_colors

CERTAIN, GIVEN = 0.6, 0.1
"""Least confidence of what belongs into a reconstruction: of what clips put there, and of what the
image put there that the memory began with. Its depth is given where theirs is estimated, so it is
doubted only where it is contradicted. Chosen on scenes that no table uses."""

_MOST = 20_000_000  # points that may be asked for: about 3 GB while they are made


class SurfaceCloud(NamedTuple):
    """Points of surfaces: positions [n, 3], world units; colors [n, 3] in [-1, 1]; normals [n, 3],
    unit, towards the cameras, 0 where unknown; entry [n]: the slot each point comes from.
    """

    positions: Float[ndarray, "n 3"]
    colors: Float[ndarray, "n 3"]
    normals: Float[ndarray, "n 3"]
    entry: Int[ndarray, "n"]


def surface_cloud(
    bank: EntryBank,
    *,
    spacing: float | None = None,
    least_confidence: float = CERTAIN,
    least_given: float = GIVEN,
    levels: tuple[Level, ...] = PYRAMID,
) -> SurfaceCloud:
    """The surfaces of all entries that are sure enough, filled with points (row S27).

    A piece spans its footprint times its spacing across the slant, and that over the cosine of
    the angle of view along it.

    Args:
        bank: with features of the widths of `levels`.
        spacing: greatest distance between neighbouring points of a piece, world units; each
            piece's own width when None.
        least_confidence: of the entries that count, 0 to 1.
        least_given: of those of source 0, if less: the image that the memory began with.
        levels: of the pyramid.

    Raises:
        InputError: when the spacing is not positive, or so small that the cloud would not fit into
            memory.
    """
    if spacing is not None and not 0 < spacing < np.inf:
        raise InputError(f"points of a surface need a positive spacing, got {spacing}")
    given = np.asarray(bank.source) == 0
    least = np.where(given, min(least_given, least_confidence), least_confidence)
    slot = np.flatnonzero(np.asarray(bank.valid) & (np.asarray(bank.confidence) >= least))
    known = (*_pieces(bank, levels), bank.position, bank.normal)
    axes, cosine, width, colors, position, normal = (np.asarray(x)[slot] for x in known)
    sides = np.stack([width / cosine, width], axis=-1)
    step = width[:, None] if spacing is None else np.float32(spacing)
    # Rounded with room for error: a piece seen head-on is one point.
    counts = np.maximum(np.ceil(sides / step - 1e-4), 1.0)
    total = counts.prod(-1).sum()
    if spacing is not None and total > _MOST:
        raise InputError(
            f"surfaces with points {spacing:g} apart would have {total:,.0f} points; ask for a "
            f"wider spacing ({_MOST:,} points are the most)"
        )
    number = counts.astype(np.int64)
    each = number.prod(-1)
    piece = np.repeat(np.arange(len(slot)), each)
    inside = np.arange(len(piece)) - np.repeat(np.cumsum(each) - each, each)
    place = np.stack(np.divmod(inside, number[piece, 1]), axis=-1)
    offset = ((place + 0.5) / number[piece] - 0.5) * sides[piece]
    points = position[piece] + (offset[:, :, None] * axes[piece, :2]).sum(1)
    return SurfaceCloud(points.astype(np.float32), colors[piece], normal[piece], slot[piece])


@functools.partial(jax.jit, static_argnames="levels")
def _pieces(bank: EntryBank, levels: tuple[Level, ...]) -> tuple[Array, ...]:
    """Every entry's axes, cosine of the angle of view, width across the slant, and colour."""
    width = bank.footprint * bank.spacing
    return entry_axes(bank), entry_cosine(bank), width, entry_colors(bank, levels=levels)
