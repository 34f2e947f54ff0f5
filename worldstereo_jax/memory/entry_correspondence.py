"""Which entries a picture shows, by their looks alone: its depth is not asked (rows S2, S10, S37).

The levels of the pyramid hold the colours around an entry on three scales. A level without its mean
colour, and of unit length, is a code of the local pattern that hardly changes with exposure or
white balance. So the codes are read off what is stored anyway, and take no room of their own.
"""

import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.geometry.products import product
from worldstereo_jax.geometry.smooth import arc_cosine, length
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_features import PYRAMID, Level, sample_map

_PAIRS = 1 << 24  # pixels times entries compared at once: 64 MB for each array over them
_FLAT = 1e-2  # squared length, of colours in [-1, 1], below which a level has no pattern to tell
_APART = 4.0  # footprints by which a second best must lie away from the best to be another place


@typing.no_type_check
@flax.struct.dataclass
class EntryMatches:
    """Which of a bank's entries p pixels show.

    entry [p]: int32 slot of the most similar one. valid [p]: no entry elsewhere is nearly as
    similar. weight [p]: 0 .. 1, how distinct the match is; 0 where not valid. ambiguity [p]:
    0 .. 1, angle to the best over angle to the second best at another place.
    """

    entry: Int[Array, " p"]
    valid: Bool[Array, " p"]
    weight: Float[Array, " p"]
    ambiguity: Float[Array, " p"]


def pattern_code(
    features: tuple[Float[Array, "n _"], ...], *, levels: tuple[Level, ...] = PYRAMID
) -> Float[Array, "n c"]:
    """Unit codes of the patterns that n rows of a pyramid hold (row S2).

    Each level counts the same: its colours less their mean, channel by channel, and what learned
    channels follow them. Levels that are flat count less.

    Args:
        features: per level [n, width].
        levels: what the widths stand for.
    """
    parts = []
    for rows, level in zip(features, levels, strict=True):
        colours = rows[:, : 3 * level.grid**2].reshape(-1, level.grid**2, 3)
        pattern = (colours - colours.mean(1, keepdims=True)).reshape(rows.shape[0], -1)
        for part in (pattern, rows[:, 3 * level.grid**2 :]):
            square = (part * part).sum(-1, keepdims=True)
            parts.append(part / jnp.sqrt(square + _FLAT))
    code = jnp.concatenate(parts, -1)
    return code / jnp.maximum(length(code, keepdims=True), 1e-6)


@functools.partial(jax.jit, static_argnames=("height", "width", "levels"))
def match_entries(
    bank: EntryBank,
    features: tuple[Float[Array, "..."], ...],
    pixels: Float[Array, "p 2"],
    *,
    height: int,
    width: int,
    camera: tuple[Float[Array, "4 4"], Float[Array, "3 3"]] | None = None,
    reach: float | Float[Array, ""] = 4.0,
    most_ambiguity: float | Float[Array, ""] = 0.8,
    least_confidence: float | Float[Array, ""] = 0.1,
    levels: tuple[Level, ...] = PYRAMID,
) -> EntryMatches:
    """The entry that each pixel of a picture shows, by descriptors with a ratio test.

    For pictures without depth; with a camera also where several surfaces lie on one ray, or none
    of the depths is to be trusted. All pairs are compared, in slabs.

    Args:
        bank: any, of the same levels; of a large one the part that may be in view
            (`entry_scope.read_in_view`).
        features: of the picture, from `feature_pyramid`: per level [rows, columns, width].
        pixels: (x, y), centres at +0.5.
        height, width: of the picture.
        camera: its w2c and intrinsics, if they are known.
        reach: pixels from a pixel to the entries that it may show, where the camera is known.
        most_ambiguity: from which on there is no match.
        least_confidence: of the entries that count.
        levels: of both pyramids; static.

    Raises:
        InputError: when the picture's pyramid is not as wide as the bank's.
    """
    widths = tuple(level.shape[-1] for level in features)
    if widths != bank.config.widths:
        raise InputError(
            f"picture has features of widths {widths}, but the bank holds {bank.config.widths}"
        )
    sampled = [sample_map(level, pixels, height=height, width=width) for level in features]
    wanted = pattern_code(tuple(sampled), levels=levels)
    held = pattern_code(bank.features, levels=levels)
    usable = bank.valid & (bank.confidence >= least_confidence)
    place = None
    if camera is not None:
        place, depth = project(bank.position, *camera)
        usable &= depth > 0

    def compare(part: tuple[Array, Array]) -> tuple[Array, Array, Array]:
        code, pixel = part
        there = usable
        if place is not None:
            there = there & (jnp.abs(place - pixel[None]).max(-1) <= reach)
        likeness = jnp.where(there, product(code[None], held.T)[0], -1.0)
        best = likeness.argmax().astype(jnp.int32)
        away = jnp.linalg.norm(bank.position - bank.position[best][None], axis=-1)
        here = away <= _APART * bank.footprint[best] * bank.spacing[best]
        return best, likeness.max(), jnp.where(here, -1.0, likeness).max()

    at_once = max(_PAIRS // bank.capacity, 1)
    best, first, second = lax.map(compare, (wanted, pixels), batch_size=at_once)
    angle, rival = (arc_cosine(jnp.clip(value, -1.0, 1.0)) for value in (first, second))
    ambiguity = jnp.minimum(angle / jnp.maximum(rival, 1e-6), 1.0)
    valid = (first > 0) & (ambiguity <= most_ambiguity)
    weight = jnp.where(valid, (1.0 - ambiguity) * first, 0.0)
    return EntryMatches(best, valid, weight, ambiguity)
