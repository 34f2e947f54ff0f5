"""How an entry's colour goes with the direction it is seen from (rows S24, S35).

A plane in the direction of view: colour = mean + G (direction - mean direction), fitted by weighted
least squares to all frames that saw the entry. What is stored are weighted moments, so that fusing
is a sum and the order of frames does not matter (row S12). Directions are vectors of the world, so
a turned world gives turned moments and the same colours (row S38). A highlight that wanders over
lacquer is near such a plane as long as views lie within its lobe; a mirror's reflections and what
moves are not, stay unexplained, and lose confidence instead of being copied.
"""

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.geometry.products import product
from worldstereo_jax.geometry.smooth import length
from worldstereo_jax.memory.entries import EntryBank

# Columns: mean direction (3), covariance of directions (6: xx yy zz xy xz yz), covariance of each
# colour with the direction (3 x 3, colour first).
_PLACES = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
# Variance of directions below which they tell nothing: the square of two degrees.
_STEADY = 1e-3
# Variance of colours in [-1, 1] that resampling textures leaves: smaller changes are not followed.
_GRAIN = 1e-3
_DOUBT = 0.25  # share of what the plane explains that still counts against an entry
_BEYOND = 2.0  # deviations of the directions seen, beyond which the colour changes no further


def first_appearance(direction: Float[Array, "n 3"]) -> Float[Array, "n 18"]:
    """Of entries seen once, from unit `direction`s: a mean, and nothing that varies."""
    return jnp.pad(direction, ((0, 0), (0, 15)))


def combine_appearance(
    left: EntryBank, right: EntryBank, share: Float[Array, " n"]
) -> Float[Array, "n 18"]:
    """Moments of both banks' entries together (Chan et al. 1979).

    Args:
        left, right: banks before they are joined, with n slots each.
        share: weight of the features of `right` among both, 0 .. 1.
    """
    a, b = left.appearance, right.appearance
    away = b[:, :3] - a[:, :3]
    changed = entry_colour(right) - entry_colour(left)
    spread = jnp.stack([away[:, i] * away[:, j] for i, j in _PLACES], -1)
    crossed = (changed[:, :, None] * away[:, None, :]).reshape(-1, 9)
    mixed = a + share[:, None] * (b - a)
    apart = jnp.concatenate([jnp.zeros_like(away), spread, crossed], -1)
    return mixed + (share * (1.0 - share))[:, None] * apart


def unexplained_variance(bank: EntryBank) -> Float[Array, " n"]:
    """Variance of the finest features that is left when their change with the view is taken out.

    As told from n frames, three of which the plane itself takes up; the whole of it where no more
    than those are there. At most `bank.feature_variance`.
    """
    spread, crossed = _moments(bank)
    slope = _slopes(spread, crossed)
    explained = _explained(slope, crossed)
    n = bank.observations.astype(jnp.float32)
    total = bank.feature_variance
    left = jnp.maximum(total - explained, 0.0) * n / jnp.maximum(n - 3.0, 1e-3)
    return jnp.where(n > 3.0, jnp.minimum(left, total), total)


def doubtful_variance(bank: EntryBank) -> Float[Array, " n"]:
    """Variance of the finest features that speaks against an entry (rows S6, S24).

    What does not go with the view, and a share of what does: where much moves, less is sure than
    where all stands still, also if a plane follows it; and a mirror is to be doubted.
    """
    unexplained = unexplained_variance(bank)
    return unexplained + _DOUBT * (bank.feature_variance - unexplained)


def appearance_change(bank: EntryBank, centre: Float[Array, "3"]) -> Float[Array, "n 3"]:
    """What to add to each entry's mean colours when it is seen from the world point `centre`.

    In units of the colours, [-1, 1]. The fitted change, by the share of the variance that the fit
    explains, so that chance differences between few views change nothing, and less where it is no
    larger than what resampling leaves; held beyond two deviations of the directions seen.
    """
    away = centre[None] - bank.position
    distance = length(away, keepdims=True)
    turn = away / jnp.where(distance > 0, distance, 1.0) - bank.appearance[:, :3]
    spread, crossed = _moments(bank)
    inverse = _inverse(spread)
    far = jnp.sqrt(jnp.maximum((turn * product(inverse, turn[..., None])[..., 0]).sum(-1), 1e-12))
    turn = turn * jnp.minimum(1.0, _BEYOND / far)[:, None]
    slope = _slopes(spread, crossed)
    change = product(slope, turn[..., None])[..., 0]
    explained = jnp.maximum(_explained(slope, crossed), 0.0)
    total = bank.feature_variance
    unexplained = unexplained_variance(bank) / jnp.where(total > 0, total, 1.0)
    kept = jnp.where((total > 0) & (distance[:, 0] > 0), 1.0 - unexplained, 0.0)
    return change * (kept * explained / (explained + _GRAIN))[:, None]


def entry_colour(bank: EntryBank) -> Float[Array, "n 3"]:
    """Mean colours in [-1, 1] of the first cell of each finest neighbourhood.

    One cell stands for all: highlights are wider than a neighbourhood. Missing channels are 0.
    """
    colour = bank.features[0][:, :3]
    return jnp.pad(colour, ((0, 0), (0, 3 - colour.shape[-1])))


def _moments(bank: EntryBank) -> tuple[Float[Array, "n 3 3"], Float[Array, "n 3 3"]]:
    """Covariance of directions, and of colours (rows) with directions (columns)."""
    xx, yy, zz, xy, xz, yz = jnp.moveaxis(bank.appearance[:, 3:9], -1, 0)
    rows = [jnp.stack(row, -1) for row in ((xx, xy, xz), (xy, yy, yz), (xz, yz, zz))]
    return jnp.stack(rows, -2), bank.appearance[:, 9:].reshape(-1, 3, 3)


def _slopes(spread: Float[Array, "n 3 3"], crossed: Float[Array, "n 3 3"]) -> Float[Array, "n 3 3"]:
    return product(crossed, _inverse(spread))


def _explained(slope: Float[Array, "n 3 3"], crossed: Float[Array, "n 3 3"]) -> Float[Array, " n"]:
    """Variance of the colours that goes with the direction, mean over channels."""
    return (slope * crossed).sum((-1, -2)) / 3.0


def _inverse(spread: Float[Array, "n 3 3"]) -> Float[Array, "n 3 3"]:
    """Of the covariance plus `_STEADY` on the diagonal, by cofactors: batched solvers are slow."""
    a, b, c = (spread[:, i] + _STEADY * jnp.eye(3, dtype=jnp.float32)[i][None] for i in range(3))
    cofactors = jnp.stack([jnp.cross(b, c), jnp.cross(c, a), jnp.cross(a, b)], -1)
    # No smaller than without any spread, whatever rounding did to the moments.
    return cofactors / jnp.maximum((a * cofactors[..., 0]).sum(-1), _STEADY**3)[:, None, None]
