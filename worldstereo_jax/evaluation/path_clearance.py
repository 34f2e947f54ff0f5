"""How near a camera path comes to the stored surfaces, and whether it runs through one."""

import itertools
import typing

import jax
import numpy as np

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_cloud import CERTAIN, GIVEN
from worldstereo_jax.memory.entry_field import entry_axes, entry_cosine


class PathClearance(typing.NamedTuple):
    """Of f cameras: nearest [f], distance to the nearest surface entry, world units, infinite where
    there is none. through [f]: whether the straight way from the camera before meets a surface;
    False for the first.
    """

    nearest: Float[ndarray, "f"]
    through: Bool[ndarray, "f"]


def path_clearance(bank: EntryBank, centres: Float[ndarray, "f 3"]) -> PathClearance:
    """Where a path meets the surfaces that the entries make up.

    An entry counts as a rectangle in its tangent plane, twice as wide as the piece of surface that
    it stands for, so that no way slips between neighbours. Only entries that are sure enough for a
    reconstruction count (`entry_cloud.CERTAIN`).

    Args:
        bank: any.
        centres: where the cameras stand, world units.
    """
    least = np.where(np.asarray(bank.source) == 0, GIVEN, CERTAIN)
    slot = np.flatnonzero(np.asarray(bank.valid) & (np.asarray(bank.confidence) >= least))
    fields = (bank.position, *_pieces(bank))
    position, axes, cosine, width = (np.asarray(field, np.float64)[slot] for field in fields)
    reach = np.stack([width / cosine, width], axis=-1)
    away = [np.asarray(centre, np.float64) - position for centre in centres]
    nearest = [np.linalg.norm(a, axis=-1).min(initial=np.inf) for a in away]
    through = [False]
    for start, end in itertools.pairwise(away):
        before, after = ((a * axes[:, 2]).sum(-1) for a in (start, end))
        crosses = (before > 0) != (after > 0)
        share = before[crosses] / (before[crosses] - after[crosses])
        meets = start[crosses] + share[:, None] * (end[crosses] - start[crosses])
        beside = np.abs((meets[:, None] * axes[crosses, :2]).sum(-1))
        through.append(bool((beside <= reach[crosses]).all(-1).any()))
    return PathClearance(np.array(nearest, np.float32), np.array(through[: len(centres)], bool))


@jax.jit
def _pieces(bank: EntryBank) -> tuple[Array, Array, Array]:
    """Every entry's axes, cosine of the angle of view, and width across the slant."""
    return entry_axes(bank), entry_cosine(bank), bank.footprint * bank.spacing
