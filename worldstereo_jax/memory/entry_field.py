"""The adaptive receptive field of entries, as keys of attention (rows S5, S15, S19).

The field is an ellipsoid around the entry: as wide as what its level of the pyramid looks at, wider
where it is uncertain, stretched along the slant at which it was seen, and flat across the surface.
"""

import functools

import jax
import jax.numpy as jnp

from pallas_kernels import TokenGeometry, ellipse_metric
from worldstereo_jax.array_types import Array, Float, Int
from worldstereo_jax.geometry.smooth import length, root
from worldstereo_jax.memory.entries import EntryBank, take_entries
from worldstereo_jax.memory.entry_features import Level
from worldstereo_jax.memory.masks import ViewSet, visibility_words

# A surface seen at a flatter angle than this is treated as seen at it, or its field has no end.
_LEAST_COSINE = 0.25


def entry_radii(bank: EntryBank, level: Level) -> Float[Array, "n 3"]:
    """Half lengths of the fields, world units: along the slant, across it, off the surface.

    Across: half of what the level looks at, in footprints (perspective and detail), up to twice
    that with falling confidence, plus one standard deviation of the position, both of its mean
    and of the measurements around it. Along the slant that divided by the viewing cosine. Off the
    surface half of it, and two standard deviations. 1 where there is no entry.
    """
    reach = 0.5 * level.cell * level.grid * bank.footprint
    told = bank.information > 0
    variance = jnp.where(told, 1.0 / jnp.where(told, bank.information, 1.0), 0.0) + bank.scatter
    deviation = root(variance)
    across = reach * (2.0 - bank.confidence) + deviation
    radii = jnp.stack([across / entry_cosine(bank), across, 0.5 * reach + 2.0 * deviation], -1)
    return jnp.where(bank.valid[:, None], radii, 1.0)


@functools.partial(jax.jit, static_argnames=("level",))
def entry_geometry(
    bank: EntryBank, index: Int[Array, " t"], level: Level, others: ViewSet
) -> TokenGeometry:
    """The entries at `index` as tokens, with a leading batch axis of 1.

    Position, normal and field are the entry's; the log weight is that of its confidence, which
    falls where features disagree (row S37), and of the viewing cosine.
    Places out of range are empty slots, which see nothing and are seen by nothing.

    Args:
        bank: any.
        index: slots, for instance of those in view that are worth most.
        level: of the pyramid whose features the tokens carry; static.
        others: the views on the other side of the attention, for visibility (row S14).
    """
    part = take_entries(bank, index)
    radii = entry_radii(part, level)
    position = jnp.where(part.valid[:, None], part.position, 0.0)
    weight = part.confidence * entry_cosine(part)
    t = index.shape[0]
    return TokenGeometry(
        position=position[None],
        metric=ellipse_metric(entry_axes(part), radii)[None],
        normal=part.normal[None],
        log_weight=jnp.log(jnp.clip(weight, 1e-3, 1.0))[None],
        segment=jnp.where(part.valid, 0, -1).astype(jnp.int32)[None],
        frame=jnp.zeros((1, t), jnp.int32),
        visibility=visibility_words(position, others, radii[:, 2])[None],
        valid=part.valid[None],
    )


def entry_cosine(bank: EntryBank) -> Float[Array, " n"]:
    """Between the normal and the mean line of sight; 1 where either is unknown."""
    size = length(bank.direction)
    cosine = jnp.abs((bank.normal * bank.direction).sum(-1)) / jnp.where(size > 0, size, 1.0)
    known = bank.normal.any(-1) & (size > 0)
    return jnp.where(known, jnp.clip(cosine, _LEAST_COSINE, 1.0), 1.0)


def entry_axes(bank: EntryBank) -> Float[Array, "n 3 3"]:
    """Orthonormal rows of each entry: along the slant, across it, and the normal; world frame."""

    def unit(vector: Float[Array, "n 3"], otherwise: Float[Array, "#n 3"]) -> Float[Array, "n 3"]:
        size = length(vector, keepdims=True)
        return jnp.where(size > 1e-3, vector / jnp.maximum(size, 1e-9), otherwise)

    view = unit(bank.direction, jnp.array([[0.0, 0.0, 1.0]]))
    normal = unit(bank.normal, view)
    # Head-on there is no slant, and any tangent does: of the axis that the normal is farthest from.
    least = jax.nn.one_hot(jnp.argmin(jnp.abs(normal), -1), 3)
    tangent = unit(jnp.cross(normal, least), normal)
    along = unit(view - (view * normal).sum(-1, keepdims=True) * normal, tangent)
    return jnp.stack([along, jnp.cross(normal, along), normal], axis=-2)
