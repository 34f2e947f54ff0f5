"""Exposure and white balance of views, estimated from shared surface and taken out (row S35)."""

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float

_ROUNDS = 20
_SCALE = 0.03  # of light 0 .. 1: residuals beyond it lose weight


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


def remove_gain(colors: Float[Array, "*n 3"], gain: Float[Array, "3"]) -> Float[Array, "*n 3"]:
    """Colours in [-1, 1] as a view with gain 1 would show them; brighter than white is kept."""
    shape = (1,) * (colors.ndim - 1) + (3,)
    return (colors + 1.0) / gain.reshape(shape) - 1.0
