"""Fitting a predicted depth map to a partly known one."""

import typing

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float


class DepthAlignment(typing.NamedTuple):
    """Result of `align_depth`.

    depth   [h, w] the aligned prediction, in the reference's units; 0 where it has no depth
    scale   [] and shift []: 1/depth = scale / predicted + shift
    """

    depth: Float[Array, "h w"]
    scale: Float[Array, ""]
    shift: Float[Array, ""]


def align_depth(
    predicted: Float[Array, "h w"],
    reference: Float[Array, "h w"],
    valid: Bool[Array, "h w"],
    *,
    iterations: int = 10,
    min_pixels: int = 32,
) -> DepthAlignment:
    """Fit scale and shift in inverse depth so that `predicted` agrees with `reference`.

    Iteratively reweighted least squares with Cauchy weights as wide as the residuals' median, so
    that a minority of wrong pixels (edges, moving things) does not move the fit. Inverse depth is
    the quantity in which monocular predictions are right up to an affine map (Ranftl et al. 2020,
    section 5). A fit whose scale is not positive, or of fewer than `min_pixels` pixels, says the
    two maps have nothing in common; then the ratio of medians sets the scale alone, or scale 1
    stands where no pixel is known. Pixels that the shift would push to or beyond infinity get
    ten times the farthest known depth.

    Args:
        predicted: depth > 0 of every pixel, 0 where unknown; any unit.
        reference: depth of the known pixels, in the units wanted.
        valid: where `reference` counts; pixels with either depth not positive are left out.
        iterations: rounds of reweighting.
        min_pixels: fewer known pixels than this fit the scale only.
    """
    known = valid & (predicted > 0) & (reference > 0)
    x = jnp.where(predicted > 0, 1.0 / jnp.where(predicted > 0, predicted, 1.0), 0.0)
    y = jnp.where(known, 1.0 / jnp.where(known, reference, 1.0), 0.0)
    count = known.sum()
    ratio = _masked_median(y, known) / jnp.maximum(_masked_median(x, known), 1e-12)
    ratio = jnp.where(count > 0, ratio, 1.0)

    def refit(_: Array | int, fit: tuple[Array, Array]) -> tuple[Array, Array]:
        scale, shift = fit
        residual = jnp.abs(scale * x + shift - y)
        # A floor on the width: a perfect fit must not divide by zero.
        width = 1.5 * _masked_median(residual, known) + 1e-4 * _masked_median(y, known) + 1e-12
        weight = jnp.where(known, 1.0 / (1.0 + (residual / width) ** 2), 0.0)
        return _weighted_line(x, y, weight)

    scale, shift = jax.lax.fori_loop(0, iterations, refit, (ratio, jnp.zeros_like(ratio)))
    sound = (count >= min_pixels) & (scale > 0) & jnp.isfinite(scale) & jnp.isfinite(shift)
    scale = jnp.where(sound, scale, ratio)
    shift = jnp.where(sound, shift, 0.0)
    farthest = jnp.max(jnp.where(known, reference, 0.0))
    floor = jnp.where(count > 0, 0.1 / jnp.maximum(farthest, 1e-12), 0.0)
    inverse = jnp.maximum(scale * x + shift, floor)
    depth = jnp.where((predicted > 0) & (inverse > 0), 1.0 / jnp.maximum(inverse, 1e-12), 0.0)
    return DepthAlignment(depth, scale, shift)


def _weighted_line(x: Array, y: Array, weight: Array) -> tuple[Array, Array]:
    """Least squares of y = scale x + shift."""
    total = jnp.maximum(weight.sum(), 1e-12)
    mean_x, mean_y = (weight * x).sum() / total, (weight * y).sum() / total
    variance = (weight * (x - mean_x) ** 2).sum() / total
    covariance = (weight * (x - mean_x) * (y - mean_y)).sum() / total
    scale = covariance / jnp.maximum(variance, 1e-12)
    # A flat prediction has no slope to fit; only its level can be moved.
    scale = jnp.where(variance > 1e-12, scale, mean_y / jnp.maximum(mean_x, 1e-12))
    return scale, mean_y - scale * mean_x


def _masked_median(values: Array, mask: Array) -> Array:
    """Lower median of the masked values, 0 when there are none."""
    ordered = jnp.sort(jnp.where(mask, values, jnp.inf).ravel())
    count = mask.sum()
    return jnp.where(count > 0, ordered[jnp.maximum(count - 1, 0) // 2], 0.0)
