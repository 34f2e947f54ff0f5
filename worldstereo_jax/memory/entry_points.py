"""Entries as coloured points, and points as entries (row S26): a fused reconstruction (row S27)."""

import dataclasses

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.points import PointCloud
from worldstereo_jax.memory.entries import EntryBank, append_entries, init_entries
from worldstereo_jax.memory.entry_appearance import first_appearance
from worldstereo_jax.memory.entry_features import PYRAMID, Level

POINT_CONFIDENCE = 0.2
"""Of a bare point: it has been seen by no view that could be asked."""


def entry_colors(bank: EntryBank, *, levels: tuple[Level, ...] = PYRAMID) -> Float[Array, "n 3"]:
    """Colours in [-1, 1]: the middle of each entry's finest neighbourhood."""
    middle = 3 * (levels[0].grid ** 2 // 2)
    return bank.features[0][:, middle : middle + 3]


def entries_to_points(
    bank: EntryBank, *, least_confidence: float = 0.1, levels: tuple[Level, ...] = PYRAMID
) -> PointCloud:
    """The bank as a point cloud for the global-geometric memory, one point per slot (row S26).

    Slots that are empty or below `least_confidence` are not valid and hold zeros.
    """
    keep = bank.valid & (bank.confidence >= least_confidence)
    return PointCloud(
        points=jnp.where(keep[:, None], bank.position, 0.0),
        colors=jnp.where(keep[:, None], entry_colors(bank, levels=levels), 0.0),
        valid=keep,
    )


def entries_from_points(
    bank: EntryBank,
    cloud: PointCloud,
    *,
    footprint: Float[Array, " m"],
    normal: Float[Array, "m 3"] | None = None,
    source: Int[Array, ""] | int = 0,
    levels: tuple[Level, ...] = PYRAMID,
) -> EntryBank:
    """Append points as entries that no view has seen yet (row S26).

    Their neighbourhoods have the point's colour everywhere, and learned channels are 0; their
    weight is that of a doubtful pixel, so the first frame that shows the place decides what it
    looks like. What finds no room is counted.

    Args:
        bank: with features of the widths of `levels`.
        cloud: m points, colours in [-1, 1]; those not valid are left out.
        footprint: world size of the surface that each point stands for.
        normal: unit, world frame; unknown when None.
        source: number of the clip.
        levels: of the pyramid.

    Raises:
        InputError: when the bank's levels are others.
    """
    m = footprint.shape[0]
    widths = tuple(level.shape[-1] for level in bank.features)
    colours = tuple(3 * level.grid**2 for level in levels)
    if len(widths) != len(levels) or any(w < c for w, c in zip(widths, colours, strict=True)):
        raise InputError(f"levels of {colours} colour channels do not fit a bank of {widths}")
    features = [
        jnp.pad(jnp.tile(cloud.colors, (1, level.grid**2)), ((0, 0), (0, width - colour)))
        for level, width, colour in zip(levels, widths, colours, strict=True)
    ]
    points = jnp.where(cloud.valid[:, None], cloud.points, 0.0)
    size = jnp.where(cloud.valid & (footprint > 0), footprint, 1.0)
    normal = jnp.zeros((m, 3), jnp.float32) if normal is None else normal
    config = bank.config
    empty = init_entries(type(config)(m, widths, config.views))
    entries = dataclasses.replace(
        empty,
        position=points,
        anchor=points,
        eye=points,  # seen by none: neither its back nor its line of sight is known
        normal=normal,
        normal_agreement=normal.any(-1).astype(jnp.float32),
        footprint=size,
        confidence=jnp.full((m,), POINT_CONFIDENCE, jnp.float32),
        # What a point is known to lies within its own size, and with little weight.
        information=POINT_CONFIDENCE / jnp.square(size),
        features=tuple(features),
        feature_weight=0.01 * POINT_CONFIDENCE / jnp.square(size),
        appearance=first_appearance(jnp.zeros((m, 3), jnp.float32)),
        spacing=jnp.ones((m,), jnp.float32),
        support=jnp.full((m,), 0.25 * POINT_CONFIDENCE / (1.0 - POINT_CONFIDENCE), jnp.float32),
        valid=jnp.ones((m,), bool),
        source=jnp.broadcast_to(jnp.asarray(source, jnp.int32), (m,)),
    )
    return append_entries(bank, entries, _usable(cloud, footprint))


def _usable(cloud: PointCloud, footprint: Float[Array, " m"]) -> Bool[Array, " m"]:
    return cloud.valid & (footprint > 0) & jnp.isfinite(cloud.points).all(-1)
