"""Growing the entry bank by a frame: match, fuse, contradict, insert (rows S9 to S13).

One program with static shapes: `update_entries` can be the body of a `lax.scan` over a trajectory
with the bank donated.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import unproject
from worldstereo_jax.geometry.smooth import length
from worldstereo_jax.memory.entries import (
    EntryBank,
    append_entries,
    map_entries,
    per_row,
    put_entries,
    take_entries,
)
from worldstereo_jax.memory.entry_appearance import (
    combine_appearance,
    doubtful_variance,
    entry_colour,
    first_appearance,
)
from worldstereo_jax.memory.entry_features import sample_map
from worldstereo_jax.memory.entry_frame import EntryFrame, FrameSurface, frame_surface
from worldstereo_jax.memory.entry_light import entry_gain, in_known_light, new_in_known_light
from worldstereo_jax.memory.entry_match import Sighting, sight_entries
from worldstereo_jax.memory.entry_views import (
    entry_confidence,
    has_view,
    set_view,
    standing_against,
)
from worldstereo_jax.memory.entry_witness import hear_witnesses
from worldstereo_jax.memory.surface import tangent_planes

# Grazing views give a feature at least this share of a frontal view's weight.
_LEAST_COSINE = 0.1


@dataclasses.dataclass(frozen=True)
class EntryRule:
    """How frames enter the bank.

    stride: pixels between neighbouring entries of one frame. noise: standard deviation of depth,
    as a share of depth. tolerance: share of depth by which two measurements of one surface may
    differ for reasons other than noise. least_confidence: pixels below it put no entry.
    """

    stride: int = 1
    noise: float = 0.005
    tolerance: float = 0.02
    least_confidence: float = 0.02

    def __post_init__(self) -> None:
        if self.stride < 1 or self.noise <= 0 or self.tolerance <= 0:
            raise InputError(
                "an entry rule needs a stride of at least 1 pixel, and noise and tolerance above "
                f"0, got {self.stride}, {self.noise} and {self.tolerance}"
            )

    @property
    def gate(self) -> float:
        """Share of depth within which a measurement is matched to an entry.

        Four standard deviations of the difference of two measurements, since cutting the tails
        off would draw the mean towards the first one.
        """
        return max(self.tolerance, 4.0 * 2.0**0.5 * self.noise)


DEFAULT_RULE = EntryRule()
"""Every pixel an entry, for depth that is good to half a percent."""


@functools.partial(jax.jit, static_argnames=("rule",))
def update_entries(
    bank: EntryBank,
    frame: EntryFrame,
    *,
    rule: EntryRule = DEFAULT_RULE,
    candidates: Int[Array, " m"] | None = None,
) -> EntryBank:
    """The bank after one more frame (rows S9 to S13).

    Entries that the frame shows are fused with it (row S12): position, normal and features are
    means weighted by what each frame knows, so errors fall as one over the root of their number.
    Entries that it contradicts lose confidence. Where its depth was read from the memory itself it
    only adds to colours and to the views that saw an entry: no position, no confidence, no vote,
    and what it inserts has the confidence of what it was read from. What lies within the footprint
    of no such entry is inserted, in one scatter (row S11), with what stored entries say against it
    (`entry_witness`); what finds no room is counted. A frame whose view an entry has already
    answered changes nothing there, so the same frame twice changes nothing. That needs a bit for
    the view: frames whose number is beyond the bitset are counted in `uncounted`.

    Args:
        bank: may be donated by the caller's jit.
        frame: features, depth and camera.
        rule: static.
        candidates: the entries that may be in view, each once, others out of range, for instance
            from a frustum query; all when None. The cost then no longer grows with the bank.

    Raises:
        InputError: when the frame's pyramid is not as wide as the bank's.
    """
    widths = tuple(level.shape[-1] for level in frame.features)
    if widths != bank.config.widths:
        raise InputError(
            f"frame has features of widths {widths}, but the bank holds {bank.config.widths}"
        )
    surface = frame_surface(frame, jump=rule.gate)
    part = bank if candidates is None else take_entries(bank, candidates)
    sighting = sight_entries(part, surface, gate=rule.gate)
    measured = _measure(frame, sighting, part.normal, rule)
    gain = _light(part, measured, frame, sighting)
    measured = in_known_light(measured, part, gain, frame.colours)
    fused = _fuse(part, measured, frame, sighting, rule)
    if candidates is None:
        bank = fused
    else:
        there = (candidates >= 0) & (candidates < bank.capacity)
        bank = put_entries(bank, jnp.where(there, candidates, bank.capacity), fused)
    fresh, new = _propose(part, frame, surface, sighting, rule)
    fresh = new_in_known_light(fresh, gain, frame.colours)
    unnamed = (frame.view < 0) | (frame.view >= 32 * bank.views.shape[-1])
    bank = dataclasses.replace(bank, uncounted=bank.uncounted + unnamed.astype(jnp.int32))
    return append_entries(bank, fresh, new)


def _light(
    part: EntryBank, measured: EntryBank, frame: EntryFrame, sighting: Sighting
) -> Float[Array, "3"]:
    """The frame's gain against the entries that it sees for the first time (row S35)."""
    seen = sighting.agrees & ~has_view(part.views, frame.view)
    height, width = frame.depth.shape
    return entry_gain(part, measured, sighting.pixel, seen, height=height, width=width)


def _fuse(
    part: EntryBank, measured: EntryBank, frame: EntryFrame, sighting: Sighting, rule: EntryRule
) -> EntryBank:
    """Entries after the frame's word on each: weighted means, votes, bits (row S12)."""
    seen = sighting.agrees & ~has_view(part.views, frame.view)
    denied = sighting.denies & ~has_view(part.denied, frame.view)
    denied &= ~has_view(part.views, frame.view)
    kept = _combine(part, measured, seen)
    against = jnp.where(denied, sighting.weight, 0.0)
    apart = jnp.where(sighting.apart, against, 0.0)[:, None]
    shown = jnp.concatenate([jnp.ones_like(apart), entry_colour(measured)], -1)
    kept = dataclasses.replace(
        kept,
        views=set_view(part.views, frame.view, seen),
        denied=set_view(part.denied, frame.view, denied),
        against=part.against + against,
        through=part.through + jnp.where(sighting.through, against, 0.0),
        beyond=part.beyond + apart * shown,
    )
    kept = rate_entries(kept, rule)
    # Entries of which the frame says nothing stay the same bit by bit.
    told = seen | denied
    return map_entries(lambda new, old: jnp.where(per_row(told, new), new, old), kept, part)


def rate_entries(bank: EntryBank, rule: EntryRule) -> EntryBank:
    """The bank with every entry's confidence told anew from what is stored of it (row S6).

    Of votes against an entry only a part counts where those for it balance them and both show the
    same mixture of colours, which is how panes and what lies behind them look; and what colour
    changes along with the direction of view counts for a part only (row S24).
    """
    confidence = entry_confidence(
        bank.backing,
        standing_against(bank),
        bank.scatter,
        doubtful_variance(bank),
        bank.distance,
        gate=rule.gate,
    )
    return dataclasses.replace(bank, confidence=jnp.where(bank.valid, confidence, 0.0))


def combine_entries(
    left: EntryBank, right: EntryBank, where: Bool[Array, " n"], rule: EntryRule
) -> EntryBank:
    """Entry by entry the two banks' knowledge of one place, `where` asked; `left` elsewhere.

    For merging banks (row S33): what both say is summed by weight as if all their frames had been
    seen by one. Anchor, eye and source are those of `left`.
    """
    joined = _combine(left, right, where)
    take = where[:, None]
    joined = dataclasses.replace(
        joined,
        views=jnp.where(take, left.views | right.views, left.views),
        denied=jnp.where(take, left.denied | right.denied, left.denied),
        against=jnp.where(where, left.against + right.against, left.against),
        through=jnp.where(where, left.through + right.through, left.through),
        beyond=jnp.where(take, left.beyond + right.beyond, left.beyond),
        protected=left.protected | (where & right.protected),
    )
    joined = rate_entries(joined, rule)
    # What is not joined stays the same bit by bit.
    return map_entries(lambda new, old: jnp.where(per_row(where, new), new, old), joined, left)


def _combine(left: EntryBank, right: EntryBank, where: Bool[Array, " n"]) -> EntryBank:
    """Weighted means and variances of both, entry by entry (Chan et al. 1979 for variances)."""
    count = left.observations + jnp.where(where, right.observations, 0)
    # A position that was read from the memory gives way to one that was measured, and never moves.
    information = jnp.where(where & (right.support > 0), right.information, 0.0)
    held = jnp.where((left.support > 0) | (information == 0), left.information, 0.0)
    by_position = _Mix(held, information)
    by_feature = _Mix(left.feature_weight, jnp.where(where, right.feature_weight, 0.0))
    by_view = _Mix(left.observations, jnp.where(where, right.observations, 0))
    by_support = _Mix(left.support, jnp.where(where, right.support, 0.0))
    position, scatter = by_position.moments(
        (left.position, left.scatter), (right.position, right.scatter)
    )
    features = [by_feature.mean(a, b) for a, b in zip(left.features, right.features, strict=True)]
    width = left.features[0].shape[-1]
    _, variance = by_feature.moments(
        (left.features[0], width * left.feature_variance),
        (right.features[0], width * right.feature_variance),
    )
    # Mean normals: unit vectors times how long their mean is.
    normal = by_support.mean(
        left.normal * left.normal_agreement[:, None],
        right.normal * right.normal_agreement[:, None],
    )
    size = length(normal)
    return dataclasses.replace(
        left,
        position=position,
        scatter=scatter,
        information=by_position.total,
        normal=normal / jnp.where(size > 0, size, 1.0)[:, None],
        normal_agreement=size,
        footprint=jnp.where(where, jnp.minimum(left.footprint, right.footprint), left.footprint),
        direction=by_view.mean(left.direction, right.direction),
        distance=by_view.mean(left.distance, right.distance),
        support=by_support.total,
        inherited=jnp.maximum(left.inherited, jnp.where(where, right.inherited, 0.0)),
        observations=count,
        features=tuple(features),
        feature_weight=by_feature.total,
        feature_variance=variance / width,
        appearance=combine_appearance(left, right, by_feature.share),
        edge=by_view.mean(left.edge, right.edge),
    )


class _Mix:
    """Weighted means of two sides, with weights per entry."""

    def __init__(self, left: Array, right: Array) -> None:
        self.total = left + right
        safe = jnp.where(self.total > 0, self.total, 1)
        self.share = (right / safe).astype(jnp.float32)

    def mean(self, left: Array, right: Array) -> Array:
        return left + per_row(self.share, left) * (right - left)

    def moments(self, left: tuple[Array, Array], right: tuple[Array, Array]) -> tuple[Array, Array]:
        """Mean [n, c] and variance [n] (summed over channels) from those of both sides."""
        (a, spread_a), (b, spread_b) = left, right
        apart = jnp.square(b - a).sum(-1)
        within = spread_a + self.share * (spread_b - spread_a)
        return self.mean(a, b), within + self.share * (1.0 - self.share) * apart


def _measure(
    frame: EntryFrame, sighting: Sighting, known_normal: Float[Array, "n 3"], rule: EntryRule
) -> EntryBank:
    """The frame's measurement of each of n places, as entries seen once."""
    height, width = frame.depth.shape
    n = sighting.depth.shape[0]
    weight = jnp.where(sighting.agrees, sighting.weight, 0.0)
    # One over the variance of depth; a doubtful pixel counts as a share of a certain one.
    information = weight / jnp.square(rule.noise * sighting.depth)
    normal = jnp.where(
        per_row(sighting.normal.any(-1), known_normal), sighting.normal, known_normal
    )
    cosine = jnp.abs((normal * sighting.direction).sum(-1))
    cosine = jnp.where(normal.any(-1), jnp.maximum(cosine, _LEAST_COSINE), 0.5)
    features = tuple(
        sample_map(level, sighting.pixel, height=height, width=width) for level in frame.features
    )
    views = jnp.zeros((n, 1), jnp.uint32)
    return EntryBank(
        position=sighting.point,
        anchor=sighting.point,
        eye=sighting.point + sighting.direction * sighting.distance[:, None],
        normal=normal,
        normal_agreement=normal.any(-1).astype(jnp.float32),
        footprint=sighting.footprint,
        direction=sighting.direction,
        distance=sighting.distance,
        views=views,
        denied=views,
        confidence=weight,
        support=jnp.where(sighting.measured, weight, 0.0),
        inherited=jnp.where(sighting.measured, 0.0, weight),
        against=jnp.zeros_like(weight),
        through=jnp.zeros_like(weight),
        beyond=jnp.zeros((n, 4), jnp.float32),
        observations=jnp.ones((n,), jnp.int32),
        information=information,
        scatter=jnp.zeros_like(weight),
        features=features,
        # Sharper views count more, by the number of their pixels on the surface (row S15).
        feature_weight=weight * cosine / jnp.square(sighting.footprint),
        feature_variance=jnp.zeros_like(weight),
        appearance=first_appearance(sighting.direction),
        edge=sighting.edge,
        spacing=jnp.full((n,), rule.stride, jnp.float32),
        valid=sighting.agrees,
        protected=jnp.zeros((n,), bool),
        source=jnp.broadcast_to(frame.source, (n,)),
        count=jnp.asarray(n, jnp.int32),
        overflow=jnp.zeros((), jnp.int32),
        uncounted=jnp.zeros((), jnp.int32),
    )


def _propose(
    part: EntryBank, frame: EntryFrame, surface: FrameSurface, sighting: Sighting, rule: EntryRule
) -> tuple[EntryBank, Bool[Array, " m"]]:
    """The frame's own entries, one per site, and which of them are new (rows S11, S12).

    Against them counts what stored entries say, as if the views of those had come after this one.
    """
    start, step = rule.stride // 2, rule.stride
    inverse = surface.inverse[start::step, start::step]
    confidence = surface.confidence[start::step, start::step]
    rows, columns = inverse.shape
    covered = _covered(inverse, sighting, rule)
    new = (confidence >= rule.least_confidence) & (inverse > 0) & ~covered
    x = jnp.arange(columns, dtype=jnp.float32) * step + (start + 0.5)
    y = jnp.arange(rows, dtype=jnp.float32) * step + (start + 0.5)
    shape = (rows, columns)
    pixel = jnp.stack(
        [jnp.broadcast_to(x[None, :], shape), jnp.broadcast_to(y[:, None], shape)], -1
    ).reshape(-1, 2)
    known = (inverse > 0).reshape(-1)
    depth = jnp.where(known, 1.0 / jnp.where(known, inverse.reshape(-1), 1.0), 0.0)
    point = unproject(pixel, depth, frame.w2c, frame.intrinsics)
    # Exactly 0 where nothing is known: next to nothing, squared, has no finite derivative.
    away = jnp.where(known[:, None], surface.centre[None] - point, 0.0)
    distance = length(away)
    normal = surface.table[:, 5:8].reshape(*surface.inverse.shape, 3)
    edge = surface.table[:, 8].reshape(surface.inverse.shape)
    measured = frame.measured[start::step, start::step].reshape(-1)
    own = Sighting(
        agrees=known,
        denies=jnp.zeros_like(known),
        through=jnp.zeros_like(known),
        apart=jnp.zeros_like(known),
        weight=confidence.reshape(-1),
        measured=measured,
        point=point,
        normal=normal[start::step, start::step].reshape(-1, 3),
        pixel=pixel,
        depth=jnp.where(known, depth, 1.0),
        edge=edge[start::step, start::step].reshape(-1),
        footprint=depth / surface.focal,
        direction=away / jnp.where(distance > 0, distance, 1.0)[:, None],
        distance=distance,
        crossing=pixel,
        along=jnp.ones_like(depth),
    )
    own = dataclasses.replace(own, footprint=jnp.where(known, own.footprint, 1.0))
    entries = _measure(frame, own, jnp.zeros_like(point), rule)
    bits = jnp.zeros((known.shape[0], part.views.shape[-1]), jnp.uint32)
    entries = dataclasses.replace(entries, views=set_view(bits, frame.view, known), denied=bits)
    entries = hear_witnesses(
        entries,
        part,
        sighting,
        view=frame.view,
        shape=shape,
        stride=step,
        gate=rule.gate,
        noise=rule.noise,
    )
    return rate_entries(entries, rule), new.reshape(-1)


def _covered(
    inverse: Float[Array, "gh gw"], sighting: Sighting, rule: EntryRule
) -> Bool[Array, "gh gw"]:
    """Sites with an agreeing entry within one site's footprint on the same surface.

    Entries that agree with the frame are written into a grid of half sites, nearest and farthest
    of each; a site then reads the twelve half sites whose centres lie within its radius, and
    asks each whether what is there lies on its tangent plane.
    """
    rows, columns = inverse.shape
    fine = jnp.floor(sighting.pixel * (2.0 / rule.stride)).astype(jnp.int32)
    inside = sighting.agrees & (fine[:, 0] < 2 * columns) & (fine[:, 1] < 2 * rows)
    index = jnp.where(inside, fine[:, 1] * (2 * columns) + fine[:, 0], 4 * rows * columns)
    value = 1.0 / sighting.depth
    near = jnp.zeros((4 * rows * columns,), jnp.float32).at[index].max(value, mode="drop")
    far = jnp.full((4 * rows * columns,), jnp.inf, jnp.float32)
    far = far.at[index].min(value, mode="drop")
    planes = tangent_planes(inverse)
    column = jnp.arange(columns, dtype=jnp.float32)[None, :]
    row = jnp.arange(rows, dtype=jnp.float32)[:, None]
    slack = 2.0 * rule.gate * inverse
    extremes = jnp.stack(
        [
            jnp.pad(buffer.reshape(2 * rows, 2 * columns), 1, constant_values=empty)
            for buffer, empty in ((near, 0.0), (far, jnp.inf))
        ]
    )
    covered = jnp.zeros((2, rows, columns), bool)
    for dy in range(-1, 3):
        for dx in range(-1, 3):
            if dy in (-1, 2) and dx in (-1, 2):
                continue  # the corners lie beyond the radius
            x, y = column + 0.5 * dx + 0.25, row + 0.5 * dy + 0.25
            meant = planes[..., 0] * x + planes[..., 1] * y + planes[..., 2]
            there = extremes[:, dy + 1 :: 2, dx + 1 :: 2][:, :rows, :columns]
            covered |= jnp.abs(there - meant[None]) <= slack[None]
    return covered.any(0) & (inverse > 0)


def build_entries(
    bank: EntryBank,
    frames: EntryFrame,
    *,
    rule: EntryRule = DEFAULT_RULE,
) -> EntryBank:
    """`update_entries` over frames stacked along a leading axis, as one scan."""

    def step(bank: EntryBank, frame: EntryFrame) -> tuple[EntryBank, None]:
        return update_entries(bank, frame, rule=rule), None

    return jax.lax.scan(step, bank, frames)[0]
