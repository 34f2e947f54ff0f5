"""What stored entries say of the entries that a frame would add (row S12).

A frame votes on the entries that are there when it comes. Of what later frames add, earlier ones
are not there to be asked; but what they saw is: an entry that was seen along a line which the new
surface crosses was seen through it, and an entry through which the frame looks stands before what
the frame shows there. In both cases the views that saw the stored entry vote against the new one,
each once, with their own confidence, as they would had they come after the frame. So a wrong depth
is doubted from the start, and whether it came first or last makes no difference.
"""

import dataclasses

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_appearance import entry_colour
from worldstereo_jax.memory.entry_match import APART, Sighting
from worldstereo_jax.memory.entry_views import has_view

_EDGE = 0.5  # share of an entry's views beside a jump of depth from which on it is no witness


def hear_witnesses(
    entries: EntryBank,
    stored: EntryBank,
    sighting: Sighting,
    *,
    view: Int[Array, ""],
    shape: tuple[int, int],
    stride: int,
    gate: float,
    noise: float,
) -> EntryBank:
    """The frame's own entries with the votes of the stored ones against them (row S12).

    Per site one stored entry speaks, the most seen of those whose lines fall into the site, and for
    all of its views: many entries of one view cross one pixel, and each view has one vote. Where
    none does, the one seen by most views around the site speaks: lines of views that were farther
    away fall between the sites. A wrong view's entry that another view was fused into lies between
    what both told, so the more the measurements of an entry scatter beyond noise the farther away
    it must be to contradict.

    Args:
        entries: of the frame, one per site, in rows from the top; what is said against them, and by
            whom, is replaced.
        stored: the entries that were there before.
        sighting: what the frame says of them.
        view: the frame's number; what it saw itself is no witness.
        shape: static, rows and columns of sites.
        stride: static, pixels between them.
        gate: share of depth within which two measurements agree.
        noise: standard deviation of depth, as a share of depth.
    """
    says, through, apart = _contradictions(stored, sighting, view, gate=gate, noise=noise)
    pixel = jnp.where(through[:, None], sighting.crossing, sighting.pixel)
    speaker = _speakers(stored, says, pixel, shape, stride)
    safe = jnp.maximum(speaker, 0)
    heard = speaker >= 0
    against = jnp.where(heard, stored.support[safe], 0.0)
    shown = jnp.pad(entry_colour(stored)[safe], ((0, 0), (1, 0)), constant_values=1.0)
    return dataclasses.replace(
        entries,
        denied=jnp.where(heard[:, None], stored.views[safe], jnp.uint32(0)),
        against=against,
        through=jnp.where(through[safe], against, 0.0),
        beyond=jnp.where(apart[safe], against, 0.0)[:, None] * shown,
    )


def _contradictions(
    stored: EntryBank, sighting: Sighting, view: Int[Array, ""], *, gate: float, noise: float
) -> tuple[Bool[Array, " n"], Bool[Array, " n"], Bool[Array, " n"]]:
    """Which stored entries contradict the frame's surface; as seen through it; and by far."""
    seen = stored.valid & (stored.observations > 0) & ~has_view(stored.views, view)
    # Of what was only read from the memory those that measured it speak.
    seen &= (stored.edge < _EDGE) & (stored.support > 0)
    # Both from the nearer to the farther of entry and surface, as shares of the latter's distance,
    # and with the mean of what all views of the entry measured.
    first = _length(stored.anchor - stored.eye)
    behind = sighting.along * first / _positive(_length(stored.position - stored.eye))
    centre = stored.anchor + sighting.direction * sighting.distance[:, None]
    before = _length(stored.position - centre) / _positive(_length(sighting.point - centre))
    scatter = stored.scatter / jnp.square(_positive(stored.distance))
    least = 1.0 + gate + jnp.sqrt(jnp.maximum(scatter - noise**2, 0.0))
    through = seen & (sighting.along < 1.0) & (behind * least < 1.0)
    hides = seen & sighting.through & (before * least < 1.0)
    far = jnp.where(through, behind, before) * (1.0 + APART * gate) < 1.0
    return through | hides, through, far


def _speakers(
    stored: EntryBank,
    says: Bool[Array, " n"],
    pixel: Float[Array, "n 2"],
    shape: tuple[int, int],
    stride: int,
) -> Int[Array, " m"]:
    """Number of the stored entry that speaks at each of the sites, -1 where none does."""
    rows, columns = shape
    column, row = (jnp.floor(pixel[:, i] / stride).astype(jnp.int32) for i in (0, 1))
    says = says & (column < columns) & (row < rows)
    # Out of range on purpose: the scatters drop those.
    index = jnp.where(says, row * columns + column, rows * columns)
    most = jnp.zeros((rows * columns + 1,), jnp.float32).at[index].max(stored.support)
    first = says & (stored.support >= most[index])
    number = jnp.arange(says.shape[0], dtype=jnp.int32)
    speaker = jnp.full((rows * columns,), -1, jnp.int32)
    index = jnp.where(first, index, rows * columns)
    speaker = speaker.at[index].max(number, mode="drop").reshape(rows, columns)
    views = jnp.where(speaker >= 0, stored.observations[jnp.maximum(speaker, 0)], 0)
    around = [jnp.pad(speaker, 1, constant_values=-1), jnp.pad(views, 1)]
    for dy in range(3):
        for dx in range(3):
            other, by = (x[dy : dy + rows, dx : dx + columns] for x in around)
            # The site's own is replaced by what more views saw, not by what was seen more clearly:
            # the clearest of nine would make every vote count for more than it is worth.
            speaker = jnp.where(by > views, other, speaker)
            views = jnp.maximum(views, by)
    return speaker.reshape(-1)


def _length(vector: Float[Array, "n 3"]) -> Float[Array, " n"]:
    return jnp.linalg.norm(vector, axis=-1)


def _positive(value: Float[Array, " n"]) -> Float[Array, " n"]:
    return jnp.where(value > 0, value, 1.0)
