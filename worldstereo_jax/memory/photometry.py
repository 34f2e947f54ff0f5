"""Exposure and white balance of views, estimated from shared surface and taken out (row S35)."""

import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int

_ROUNDS = 20
_SCALE = 0.03  # of light 0 .. 1: residuals beyond it lose weight

TILES = 8
"""Along each side of the picture: parts of it that are asked apart how sure a gain is."""
_STEPS = 6  # of the gain of one view: it starts from a good guess
_DEVIATIONS = 3.0  # between a gain and 1, below which it is taken for 1
_LEAST = 0.015  # share of light below which a gain is taken for 1: no eye sees it
_LEAST_TILES = 6.0  # that must share surface, or the view keeps its light
_RATHER = 0.93  # of what an added light explains that a gain must explain to be preferred
_KNEE = 0.95  # of light: what is brighter may be cut off


def view_gains(
    colors: Float[Array, "v n 3"], seen: Bool[Array, "v n"]
) -> tuple[Float[Array, "v 3"], Float[Array, "n 3"]]:
    """Per view and channel, by how much its light exceeds the common one (row S35).

    Light = (colour + 1) / 2 is modelled as gain x the point's own light, solved by alternating
    weighted least squares with Cauchy weights, so that gloss, shadows and wrong matches have
    little say. Which view is right cannot be known: the gains' geometric mean over the views that
    see anything is 1.

    Args:
        colors: what v views show of n points, in [-1, 1].
        seen: which views show which points.

    Returns:
        gains [v, 3], 1 for views that share no point with another; the points' own colours
        [n, 3] in [-1, 1], 0 where nothing sees them.
    """
    light = 0.5 * (colors + 1.0)
    # A saturated channel says nothing of the gain.
    known = seen[..., None] & (light > 0.01) & (light < 0.99)
    shared = known & (known.sum(0) > 1)[None]
    views = shared.any(1)

    def points(gain: Array, weight: Array) -> Array:
        above = (weight * gain[:, None] * light).sum(0)
        return above / jnp.maximum((weight * (gain * gain)[:, None]).sum(0), 1e-9)

    def improve(_: Array, gain: Array) -> Array:
        start = points(gain, shared.astype(light.dtype))
        residual = light - gain[:, None] * start[None]
        weight = shared / (1.0 + (residual / _SCALE) ** 2)
        own = points(gain, weight)[None]
        found = (weight * light * own).sum(1) / jnp.maximum((weight * own * own).sum(1), 1e-9)
        log = jnp.log(jnp.where(views, jnp.maximum(found, 1e-3), 1.0))
        mean = log.sum(0) / jnp.maximum(views.sum(0), 1)
        return jnp.where(views, jnp.exp(log - mean[None]), 1.0)

    gain = lax.fori_loop(0, _ROUNDS, improve, jnp.ones((*colors.shape[:1], 3), light.dtype))
    own = points(gain, jnp.broadcast_to(seen[..., None], light.shape).astype(light.dtype))
    return gain, jnp.where(seen.any(0)[:, None], 2.0 * own - 1.0, 0.0)


def frame_gain(
    shown: Float[Array, "n 3"],
    own: Float[Array, "n 3"],
    weight: Float[Array, " n"],
    tile: Int[Array, " n"],
) -> Float[Array, "3"]:
    """By how much one view's light exceeds that of what is already known, or 1 (row S35).

    The model and its Cauchy weights are those of `view_gains`, with the points' own light given;
    errors of both sides count alike, so noise does not draw the gain to less. The answer is 1
    exactly, for all channels,

    - within the gain's own uncertainty, when no channel is further from 1 than three standard
      errors and 1.5 %. The error is told from how tiles of the picture differ, since neighbouring
      pixels err together: each tile's sum of residuals is one observation;
    - when fewer than about six tiles share points with what is known;
    - when light added to all of the picture explains the difference better than a gain: exposure
      multiplies, a sheen adds, and a sheen belongs to the entries (row S24).

    Args:
        shown: what the view shows of n points, in [-1, 1].
        own: their own colours, in [-1, 1].
        weight: of each pair, 0 where the view does not see the point.
        tile: where in the picture: row * TILES + column.
    """
    a, b = 0.5 * (shown + 1.0), 0.5 * (own + 1.0)
    # A saturated channel says nothing of the gain.
    known = (jnp.minimum(a, b) > 0.01) & (jnp.maximum(a, b) < 0.99)
    weight = jnp.where(known, weight[:, None], 0.0)

    def mean(above: Array, below: Array) -> Array:
        total = below.sum(0)
        return above.sum(0) / jnp.where(total > 0, total, 1.0)

    def improve(_: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
        gain, added = state
        by_gain = weight / (1.0 + jnp.square((a - gain[None] * b) / _SCALE))
        by_sum = weight / (1.0 + jnp.square((a - b - added[None]) / _SCALE))
        return mean(by_gain * a, by_gain * b), mean(by_sum * (a - b), by_sum)

    start = mean(weight * a, weight * b), mean(weight * (a - b), weight)
    gain, added = lax.fori_loop(0, _STEPS, improve, start)

    off = (a - gain[None] * b) / _SCALE
    calm = 1.0 / (1.0 + jnp.square(off))
    pull = weight * calm * off * _SCALE
    # How far the sum of pulls moves with the gain; less than nothing where residuals are too large.
    hold = weight * calm * calm * (1.0 - jnp.square(off)) * b
    sums = jax.ops.segment_sum(
        jnp.concatenate([pull, hold, weight * calm * b], -1), tile, TILES * TILES
    )
    pulls, holds, shares = jnp.split(sums, 3, -1)
    error = jnp.sqrt(jnp.square(pulls).sum(0)) / jnp.maximum(holds.sum(0), 1e-9)
    tiles = jnp.square(shares.sum(0)) / jnp.maximum(jnp.square(shares).sum(0), 1e-9)
    away = jnp.abs(jnp.log(jnp.maximum(gain, 1e-3)))
    sure = away > jnp.maximum(_DEVIATIONS * error / jnp.maximum(gain, 1e-3), _LEAST)

    # Both explanations are judged at the middle of both sides, so that noise favours neither.
    middle, apart = 0.5 * (a + b), a - b
    slope = 2.0 * (gain - 1.0) / (gain + 1.0)

    def cost(residual: Array) -> Array:
        return (weight * jnp.log1p(jnp.square(residual / _SCALE))).sum()

    before = cost(apart)
    by_gain, by_sum = (before - cost(apart - x) for x in (slope[None] * middle, added[None]))
    multiplied = by_gain > _RATHER * by_sum
    take = sure.any() & (tiles >= _LEAST_TILES).all() & multiplied
    return jnp.where(take, gain, 1.0)


def known_light(
    colors: Float[Array, "*n c"], gain: Float[Array, "c"]
) -> tuple[Float[Array, "*n c"], Float[Array, "*n c"]]:
    """Colours of a view in the light of what is known: the least and the most they may be.

    The gain divided out, in [-1, 1]. The two are one but near the white of too bright a view: what
    was cut off there may be anything up to white. A gain of 1 changes no bit.
    """
    gain = gain.reshape((1,) * (colors.ndim - 1) + gain.shape)
    light = 0.5 * (colors + 1.0)
    least = jnp.minimum(light / gain, 1.0)
    # Meets the division at the knee, and white at white.
    steep = (1.0 - _KNEE / gain) / (1.0 - _KNEE)
    most = jnp.where(gain > 1.0, jnp.maximum(least, 1.0 - steep * (1.0 - light)), least)
    same = gain == 1.0
    return jnp.where(same, colors, 2.0 * least - 1.0), jnp.where(same, colors, 2.0 * most - 1.0)


def remove_gain(colors: Float[Array, "*n 3"], gain: Float[Array, "3"]) -> Float[Array, "*n 3"]:
    """Colours in [-1, 1] as a view with gain 1 would show them; brighter than white is kept."""
    shape = (1,) * (colors.ndim - 1) + (3,)
    return (colors + 1.0) / gain.reshape(shape) - 1.0
