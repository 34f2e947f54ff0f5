"""Where a picture was taken, told by the entries it shows: its camera and depth are not known.

What its places show is told by looks alone (`entry_correspondence`), a pose by what agrees of that
(`absolute_pose`). Entries are not sought again around where the pose shows them: those would agree
with any pose, a wrong one too, and make the right one hardly better.
"""

import dataclasses
import functools
import math
import typing

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int, Key
from worldstereo_jax.geometry.absolute_pose import CameraPose, absolute_pose
from worldstereo_jax.memory.descriptors import structure_response
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_correspondence import match_entries, pattern_code
from worldstereo_jax.memory.entry_features import PYRAMID, Level, feature_pyramid, sample_map


@typing.no_type_check
@flax.struct.dataclass
class LocatedCamera:
    """A picture's pose in the world of a memory, and the p matches that tell it.

    pose: and how each match agrees with it. pixels [p, 2]: places in the picture, between its
    pixels. entry [p]: int32 slot that each shows. matched [p]: it shows one.
    """

    pose: CameraPose
    pixels: Float[Array, "p 2"]
    entry: Int[Array, " p"]
    matched: Bool[Array, " p"]

    @property
    def inliers(self) -> Int[Array, ""]:
        """How many matches agree with the pose."""
        return self.pose.inlier.sum()


@dataclasses.dataclass(frozen=True)
class LocationRule:
    """How a picture is located.

    places: most places of the picture that are looked for in the memory. margin: pixels at the
    border that are left out. hypotheses: see `absolute_pose`. tolerance: pixels by which an inlier
    may miss. levels: of the bank's pyramid.
    """

    places: int = 1024
    margin: int = 6
    hypotheses: int = 512
    tolerance: float = 2.0
    levels: tuple[Level, ...] = PYRAMID


DEFAULT_LOCATION = LocationRule()


@functools.partial(jax.jit, static_argnames="rule")
def locate_camera(
    bank: EntryBank,
    image: Float[Array, "h w 3"],
    intrinsics: Float[Array, "3 3"],
    key: Key[Array, ""],
    *,
    rule: LocationRule = DEFAULT_LOCATION,
) -> LocatedCamera:
    """The pose from which a picture of stored surfaces was taken (rows S10, S37).

    Whether it is to be believed, `inliers` says: a picture of another place has few.

    Args:
        bank: any; restored when it was quantised.
        image: in [-1, 1], at a scale at which its surfaces appear about as large as in the views
            that the entries come from: codes of a pattern know its size.
        intrinsics: of the picture, pixels.
        key: of the hypotheses; the same key gives the same pose.
        rule: static.

    Raises:
        InputError: when the picture's pyramid is not as wide as the bank's.
    """
    height, width = image.shape[:2]
    features = feature_pyramid(image, levels=rule.levels)
    corner = structure_response(image).corner
    pixels = _strongest_places(corner, rule.places, rule.margin)
    size = {"height": height, "width": width, "levels": rule.levels}
    told = match_entries(bank, features, pixels, **size)
    seen = _seen_at(bank, features, pixels, told.entry, **size)
    found = absolute_pose(
        bank.position[told.entry],
        seen,
        told.weight,
        intrinsics,
        key,
        tolerance=rule.tolerance,
        hypotheses=rule.hypotheses,
    )
    return LocatedCamera(found, seen, told.entry, told.valid)


def _strongest_places(response: Float[Array, "h w"], most: int, margin: int) -> Float[Array, "p 2"]:
    """The strongest pixel of each of at most `most` square cells: (x, y), all over the picture."""
    height, width = (size - 2 * margin for size in response.shape)
    side = max(math.ceil(math.sqrt(height * width / most)), 1)
    rows, columns = height // side, width // side
    inner = response[margin : margin + rows * side, margin : margin + columns * side]
    cells = inner.reshape(rows, side, columns, side).swapaxes(1, 2).reshape(rows * columns, -1)
    best = cells.argmax(1)
    cell = jnp.arange(rows * columns)
    x = margin + cell % columns * side + best % side
    y = margin + cell // columns * side + best // side
    return jnp.stack([x, y], -1).astype(jnp.float32) + 0.5


def _seen_at(
    bank: EntryBank,
    features: tuple[Float[Array, "..."], ...],
    pixels: Float[Array, "p 2"],
    entry: Int[Array, " p"],
    *,
    height: int,
    width: int,
    levels: tuple[Level, ...],
) -> Float[Array, "p 2"]:
    """Where around each pixel its entry looks most alike: the top of a parabola along each axis.

    An entry that a pixel shows lies up to half of one beside its centre.
    """
    wanted = pattern_code(tuple(level[entry] for level in bank.features), levels=levels)

    def likeness(shift: tuple[float, float]) -> Float[Array, " p"]:
        moved = pixels + jnp.array([shift])
        read = (sample_map(level, moved, height=height, width=width) for level in features)
        return (pattern_code(tuple(read), levels=levels) * wanted).sum(-1)

    middle, shifts = likeness((0.0, 0.0)), []
    for x, y in ((1.0, 0.0), (0.0, 1.0)):
        before, after = likeness((-x, -y)), likeness((x, y))
        curve = before - 2 * middle + after
        top = 0.5 * (before - after) / jnp.where(curve < -1e-6, curve, -jnp.inf)
        shifts.append(jnp.clip(top, -1.0, 1.0))
    return pixels + jnp.stack(shifts, -1)
