"""What a new frame says of stored entries: seen, denied, or nothing (rows S10, S34).

An entry is projected into the frame and compared with the surface there.
"""

import typing

import flax.struct
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float
from worldstereo_jax.geometry.smooth import length
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_frame import (
    FrameSurface,
    SurfaceSample,
    sample_surface_at,
    surface_points,
)

APART = 3.0
"""Gates between a surface and an entry that cannot be the same."""

# Cosine between two lines of sight beyond which they are held to see the two sides of one wall,
# whatever the normals.
_BACK = -0.5
# And between the normal of the frame's surface and the line along which an entry was first seen, if
# that line comes from behind the surface: by the pixel's own normal, which noise turns, and by the
# mean of those around.
_BEHIND = -0.3
_MARCH = 8  # steps along an entry's line of sight
_BISECT = 6  # halvings of the step in which that line meets a surface


@typing.no_type_check
@flax.struct.dataclass
class Sighting:
    """What the frame says of n entries.

    agrees [n]: it shows the entry's surface where the entry lies. through [n]: it looks through the
    entry at something behind. denies [n]: it does so, or shows a surface across the line along
    which the entry was seen, and measured that. apart [n]: either, by so much that entry and
    surface are two things and not one whose depth was told badly. weight [n]: confidence of the
    statement. measured [n]: the frame's depth there is its own and was not read from the memory.
    point [n, 3]: where the entry's ray meets the frame's surface. normal [n, 3]: of that surface.
    pixel [n, 2]. depth [n]: of that point. edge [n]: 1 beside a jump of its depth. footprint [n]:
    world size of one pixel there. direction [n, 3]: unit, to the camera. distance [n]: to it.
    crossing [n, 2]: pixel of the point in which the line along which the entry was seen crosses the
    surface. along [n]: distance of that point from the camera that saw the entry, as a share of the
    entry's; 1 where the line crosses no surface.
    """

    agrees: Bool[Array, "n"]
    denies: Bool[Array, "n"]
    through: Bool[Array, "n"]
    apart: Bool[Array, "n"]
    weight: Float[Array, "n"]
    measured: Bool[Array, "n"]
    point: Float[Array, "n 3"]
    normal: Float[Array, "n 3"]
    pixel: Float[Array, "n 2"]
    depth: Float[Array, "n"]
    edge: Float[Array, "n"]
    footprint: Float[Array, "n"]
    direction: Float[Array, "n 3"]
    distance: Float[Array, "n"]
    crossing: Float[Array, "n 2"]
    along: Float[Array, "n"]


def sight_entries(bank: EntryBank, surface: FrameSurface, *, gate: float) -> Sighting:
    """Compare every entry with the surface that a frame shows (rows S10, S34).

    Within `gate` (a share of depth) of the surface an entry is seen, unless from behind. In front
    of it by more than that it is looked through, which denies it: depth a little too near would
    otherwise be neither corrected nor doubted, and hide what is there. Behind the surface it is
    hidden, which says nothing, unless the surface also lies across the line along which the entry
    is said to have been seen: then one of the two is wrong. Beside a jump of depth it is open which
    side of it a pixel shows, and only what is in front of all around is looked through. Depth that
    was read from the memory itself is no witness against another part of it: it denies nothing.
    """
    sample = sample_surface_at(surface, bank.anchor)
    known = bank.valid & (sample.confidence > 0)
    ratio = sample.ratio
    direction, distance = _towards(surface.centre[None], bank.anchor)
    first, _ = _towards(bank.eye, bank.anchor)
    facing = (first * direction).sum(-1)
    behind = [(normal * first).sum(-1) < _BEHIND for normal in (sample.normal, sample.side)]
    same_side = (facing > _BACK) & ~(behind[0] & behind[1])
    agrees = known & (jnp.abs(ratio - 1.0) <= gate) & same_side
    before_all = sample.depth * sample.nearest
    through = (before_all * (1.0 + gate) < 1.0) | ((sample.edge == 0) & (ratio < 1.0 - gate))
    through &= known
    hidden = known & (ratio > 1.0 + gate)
    line = _line_is_crossed(bank, surface, hidden, gate=gate)
    blocked = line.crossed
    far = 1.0 + APART * gate
    depth = 1.0 / jnp.where(known, sample.inverse, 1.0)
    return Sighting(
        agrees=agrees,
        denies=(through & sample.measured) | (blocked & line.measured),
        through=through,
        apart=(through & (before_all * far < 1.0)) | (blocked & (ratio > far)),
        measured=sample.measured,
        weight=jnp.where(
            blocked, line.confidence, jnp.where(agrees | through, sample.confidence, 0.0)
        ),
        point=surface_points(surface, sample),
        normal=sample.normal,
        pixel=sample.pixel,
        depth=depth,
        edge=sample.edge,
        footprint=depth / surface.focal,
        direction=direction,
        distance=distance,
        crossing=line.pixel,
        along=line.along,
    )


class _Crossing(typing.NamedTuple):
    """Where n lines of sight cross a surface: `pixel` and `along` as in `Sighting`.

    confidence: of the surface there, 0 where the line crosses none. measured: as in `Sighting`, of
    the surface there.
    """

    crossed: Bool[Array, "n"]
    confidence: Float[Array, "n"]
    measured: Bool[Array, "n"]
    pixel: Float[Array, "n 2"]
    along: Float[Array, "n"]


def _line_is_crossed(
    bank: EntryBank, surface: FrameSurface, behind: Bool[Array, " n"], *, gate: float
) -> _Crossing:
    """Whether and where the frame's surface cuts the line from an entry behind it to its camera.

    The line leaves the surface's shadow either through the surface, which contradicts the entry,
    or past its silhouette, which is an ordinary occlusion. The step in which it comes out is
    halved until the two differ: on the surface the line's depth and the frame's are equal just
    before and just after; at a silhouette they jump.
    """
    line = bank.eye - bank.anchor

    def at(share: Float[Array, " n"]) -> SurfaceSample:
        return sample_surface_at(surface, bank.anchor + share[:, None] * line)

    def march(k: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = state
        share = jnp.full(low.shape, k / _MARCH, jnp.float32)
        ratio = at(share).ratio
        searching = high > 1.0
        out = searching & (ratio > 0) & (ratio < 1.0)
        low = jnp.where(searching & (ratio >= 1.0), share, low)
        return low, jnp.where(out, share, high)

    def halve(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = state
        middle = 0.5 * (low + high)
        ratio = at(middle).ratio
        hidden = ratio >= 1.0
        return jnp.where(hidden, middle, low), jnp.where(hidden, high, middle)

    start = jnp.zeros(behind.shape, jnp.float32), jnp.full(behind.shape, 2.0, jnp.float32)
    low, high = lax.fori_loop(1, _MARCH, march, start)
    came_out = behind & (high <= 1.0)
    low, high = lax.fori_loop(0, _BISECT, halve, (low, jnp.minimum(high, 1.0)))
    before, after = at(low), at(high)
    both = (before.confidence > 0) & (after.confidence > 0)
    continuous = (jnp.abs(before.ratio - 1.0) < gate) & (jnp.abs(after.ratio - 1.0) < gate)
    crossed = came_out & both & continuous
    return _Crossing(
        crossed=crossed,
        confidence=jnp.where(crossed, jnp.minimum(before.confidence, after.confidence), 0.0),
        measured=before.measured & after.measured,
        pixel=jnp.where(crossed[:, None], after.pixel, 0.0),
        along=jnp.where(crossed, 1.0 - high, 1.0),
    )


def _towards(
    centre: Float[Array, "#n 3"], points: Float[Array, "n 3"]
) -> tuple[Float[Array, "n 3"], Float[Array, " n"]]:
    away = jnp.broadcast_to(centre, points.shape) - points
    distance = length(away)
    # No small constant: a world in another unit must give the same directions.
    return away / jnp.where(distance > 0, distance, 1.0)[:, None], distance
