"""Losses of the small image models."""

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float


def charbonnier(
    predicted: Float[Array, "*shape"], target: Float[Array, "*shape"], epsilon: float = 0.02
) -> Float[Array, ""]:
    """Mean of sqrt(d^2 + epsilon^2) - epsilon: quadratic below epsilon, absolute above."""
    difference = predicted - target
    return jnp.mean(jnp.sqrt(difference * difference + epsilon * epsilon) - epsilon)


def gradient_loss(
    predicted: Float[Array, "b h w c"], target: Float[Array, "b h w c"], epsilon: float = 0.02
) -> Float[Array, ""]:
    """Charbonnier loss between horizontal and vertical finite differences of two images."""
    vertical = charbonnier(jnp.diff(predicted, axis=1), jnp.diff(target, axis=1), epsilon)
    horizontal = charbonnier(jnp.diff(predicted, axis=2), jnp.diff(target, axis=2), epsilon)
    return vertical + horizontal


def log_depth_loss(
    log_depth: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
    *,
    scale_weight: float = 0.5,
) -> Float[Array, ""]:
    """Loss on log depth, part metric and part free of the image's scale.

    With e = log_depth - log(target) over valid pixels: mean |e| (metric) and mean |e - mean e|
    (scale-invariant, in the spirit of Eigen et al. 2014, eq. 3, with absolute values), mixed by
    `scale_weight`, the weight of the metric part. `target` in metres.
    """
    weight = valid.astype(jnp.float32)
    count = jnp.maximum(weight.sum(axis=(1, 2), keepdims=True), 1.0)
    error = (log_depth - jnp.log(jnp.where(valid, target, 1.0))) * weight
    mean = error.sum(axis=(1, 2), keepdims=True) / count
    total = jnp.maximum(weight.sum(), 1.0)
    metric = jnp.abs(error).sum() / total
    invariant = jnp.abs((error - mean) * weight).sum() / total
    return scale_weight * metric + (1.0 - scale_weight) * invariant


def log_depth_gradient_loss(
    log_depth: Float[Array, "b h w"],
    target: Float[Array, "b h w"],
    valid: Bool[Array, "b h w"],
) -> Float[Array, ""]:
    """Mean absolute difference of finite differences of log depth where both pixels are valid.

    Taken at strides 1, 2 and 4, so that edges are sharp and slopes are right.
    """
    error = jnp.where(valid, log_depth - jnp.log(jnp.where(valid, target, 1.0)), 0.0)
    loss = jnp.zeros((), jnp.float32)
    for stride in (1, 2, 4):
        e, ok = error[:, ::stride, ::stride], valid[:, ::stride, ::stride]
        for axis in (1, 2):
            size = e.shape[axis]
            both = _slice(ok, axis, 1, size) & _slice(ok, axis, 0, size - 1)
            difference = jnp.where(both, jnp.abs(jnp.diff(e, axis=axis)), 0.0)
            loss = loss + difference.sum() / jnp.maximum(both.sum(), 1).astype(jnp.float32)
    return loss


def _slice(x: Array, axis: int, start: int, stop: int) -> Array:
    index = [slice(None)] * x.ndim
    index[axis] = slice(start, stop)
    return x[tuple(index)]
