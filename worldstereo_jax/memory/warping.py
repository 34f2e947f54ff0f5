"""Stored features seen from a new camera: RGB and latents by one function (row S18).

`visibility` finds the surface each target pixel sees and where the bank's views show it; here
the features are read there, once, at sub-pixel positions and from one surface only, and the
views are weighed against each other. Latents use the depth and intrinsics at latent resolution.
"""

import functools
import typing
from collections.abc import Callable

import flax.struct
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.geometry.frame_check import check_cameras, check_shape
from worldstereo_jax.memory.resampling import sample_surface
from worldstereo_jax.memory.surface import inverse_depth
from worldstereo_jax.memory.visibility import Lookup, SurfaceViews, prepare_views, visible_surface

_BLUR = 4.0  # power of the penalty for views with fewer pixels than the target on the surface
_ALIAS = 0.5  # and for views with more, whose detail would alias
_TURN = 8.0  # penalty per (1 - cos) of the angle between the lines of sight: 30 degrees cost 1.07
# The same beside the candidate that turns least, where several are fused: 5 degrees cost 0.76, and
# 15 degrees leave a thousandth. For gloss more is better; matt surfaces, whose noise a mean of
# several views takes out, lose 0.3 dB.
_FOLLOW = 200.0


@typing.no_type_check
@flax.struct.dataclass
class Warped:
    """The bank seen by one target camera; mapped over a path, by f of them: leading axis f.

    features [h, w, c]: fused features, 0 in holes. mask [h, w]: 1 = hole, 0 = covered.
    depth [h, w]: camera z of the surface seen, world units, 0 in holes. weight [h, w]: sum of the
    views' weights, 0 in holes; at most the number of views. confidence [h, w]: of the depth, that
    of the surest view that shows the surface, 0 in holes.
    """

    features: Float[Array, "*f h w c"]
    mask: Float[Array, "*f h w"]
    depth: Float[Array, "*f h w"]
    weight: Float[Array, "*f h w"]
    confidence: Float[Array, "*f h w"]


@typing.no_type_check
@flax.struct.dataclass
class Candidates:
    """The k best views of each target pixel, not fused: aligned keys and values for attention.

    features [h, w, k, c] (0 where there is none), log_weight [h, w, k] (-inf where there is
    none; best first), view [h, w, k] int32 index into the bank, cosine [h, w, k] of the angle
    between the view's and the target's line of sight, mask, depth and confidence as in
    `Warped`.
    """

    features: Float[Array, "*f h w k c"]
    log_weight: Float[Array, "*f h w k"]
    view: Int[Array, "*f h w k"]
    cosine: Float[Array, "*f h w k"]
    mask: Float[Array, "*f h w"]
    depth: Float[Array, "*f h w"]
    confidence: Float[Array, "*f h w"]


def splat_depth(
    depth: Float[Array, "v h w"],
    confidence: Float[Array, "v h w"],
    w2c: Float[Array, "v 4 4"],
    intrinsics: Float[Array, "v 3 3"],
    valid: Bool[Array, "v"],
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
    *,
    height: int | None = None,
    width: int | None = None,
    tolerance: float = 0.02,
) -> Float[Array, "h w"]:
    """Depth map of the bank's visible surface in the target camera, 0 = hole (row S18)."""
    views = prepare_views(depth, confidence, w2c, intrinsics, valid, tolerance=tolerance)
    height, width = height or depth.shape[1], width or depth.shape[2]
    inverse, _ = visible_surface(
        views,
        target_w2c,
        target_intrinsics,
        height=height,
        width=width,
        tolerance=tolerance,
    )
    return inverse_depth(inverse)


def candidate_warp(
    features: Float[Array, "v h w c"],
    depth: Float[Array, "v h w"],
    confidence: Float[Array, "v h w"],
    w2c: Float[Array, "v 4 4"],
    intrinsics: Float[Array, "v 3 3"],
    valid: Bool[Array, "v"],
    *,
    k: int = 4,
    height: int | None = None,
    width: int | None = None,
    tolerance: float = 0.02,
    measured: Bool[Array, "v h w"] | None = None,
    refuted: Bool[Array, "v h w"] | None = None,
) -> Callable[[Float[Array, "4 4"], Float[Array, "3 3"]], Candidates]:
    """The function from a target camera to what the bank shows it (rows S15, S18).

    The bank is prepared, and its views judged by each other, once for all cameras. For each target
    pixel the function gives the `k` views that show its surface best.

    features [v, h, w, c], depth and confidence [v, h, w] and intrinsics belong to the same
    resolution; the target's is (height, width), by default the same. `tolerance` is the share of
    depth by which a view may differ from the surface and still be held to see it. `measured` is
    False where depth was read from the memory (see `SpatialStereoMemory`); None means all was
    measured. `refuted` are pixels whose depth is known to be wrong; None leaves the verdict to the
    views given.

    Features, depth, weights and confidence have derivatives by features, depth, confidence and
    cameras. Which views show a pixel, in which order, and the mask are choices, and have none.

    Raises InputError when an array has another shape, or does not hold floats.
    """
    check_shape("features", features, ("v", "h", "w", "c"))
    check_shape("depth", depth, features.shape[:3])
    check_shape("confidence", confidence, features.shape[:3])
    check_cameras(w2c, intrinsics, leading=features.shape[:1])
    views = prepare_views(
        depth,
        confidence,
        w2c,
        intrinsics,
        valid,
        tolerance=tolerance,
        measured=measured,
        refuted=refuted,
    )
    return functools.partial(
        _candidates,
        views,
        features,
        k=k,
        height=height or depth.shape[1],
        width=width or depth.shape[2],
        tolerance=tolerance,
    )


def warp_candidates(
    features: Float[Array, "v h w c"],
    depth: Float[Array, "v h w"],
    confidence: Float[Array, "v h w"],
    w2c: Float[Array, "v 4 4"],
    intrinsics: Float[Array, "v 3 3"],
    valid: Bool[Array, "v"],
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
    *,
    k: int = 4,
    height: int | None = None,
    width: int | None = None,
    tolerance: float = 0.02,
) -> Candidates:
    """For each target pixel the `k` views that show its surface best: see `candidate_warp`."""
    bank = (features, depth, confidence, w2c, intrinsics, valid)
    warp = candidate_warp(*bank, k=k, height=height, width=width, tolerance=tolerance)
    return warp(target_w2c, target_intrinsics)


def warp_views(
    features: Float[Array, "v h w c"],
    depth: Float[Array, "v h w"],
    confidence: Float[Array, "v h w"],
    w2c: Float[Array, "v 4 4"],
    intrinsics: Float[Array, "v 3 3"],
    valid: Bool[Array, "v"],
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
    *,
    k: int = 4,
    height: int | None = None,
    width: int | None = None,
    tolerance: float = 0.02,
) -> Warped:
    """The bank's features as the target camera would see them (row S18).

    Arguments as in `warp_candidates`; the `k` best views of a pixel are averaged with weights
    that prefer the sharper, more frontal, nearer and more confident ones.
    """
    found = warp_candidates(
        features,
        depth,
        confidence,
        w2c,
        intrinsics,
        valid,
        target_w2c,
        target_intrinsics,
        k=k,
        height=height,
        width=width,
        tolerance=tolerance,
    )
    return fuse_candidates(found)


def fuse_candidates(found: Candidates) -> Warped:
    """Weighted mean over the candidates of each pixel.

    Beyond their weight, candidates count less the farther they look past the one whose line of
    sight is nearest to the target's: a mean of all would take the gloss off a surface and blur a
    mirror, which look like what was seen from the nearest direction (row S24).
    """
    exists = jnp.isfinite(found.log_weight)
    nearest = jnp.where(exists, found.cosine, -1.0).max(-1, keepdims=True)
    # The best is set apart, so that weights of all that are small do not vanish.
    best = jnp.where(exists, found.log_weight, -jnp.inf).max(-1, keepdims=True)
    preferred = found.log_weight - jnp.where(jnp.isfinite(best), best, 0.0)
    share = jnp.where(exists, jnp.exp(preferred - _FOLLOW * (nearest - found.cosine)), 0.0)
    share = share / jnp.maximum(share.sum(-1, keepdims=True), 1e-20)
    return Warped(
        features=(found.features * share[..., None]).sum(-2),
        mask=found.mask,
        depth=found.depth,
        weight=jnp.exp(found.log_weight).sum(-1),
        confidence=found.confidence,
    )


def view_log_weight(look: Lookup, tolerance: float) -> Float[Array, "v h w"]:
    """How well each view shows the surface, -inf where it does not (row S15).

    log confidence, minus penalties for seeing it with fewer pixels than the target needs (far or
    slanted: blurred), with more (aliased), from another direction, and for disagreeing in depth.
    """
    blur = jnp.log(jnp.clip(look.density[..., 0], 1e-3, 1.0))
    alias = jnp.log(jnp.maximum(look.density[..., 1], 1.0))
    value = (
        jnp.log(jnp.maximum(look.confidence, 1e-6))
        + _BLUR * blur
        - _ALIAS * alias
        - _TURN * (1.0 - look.cosine)
        - 0.5 * (look.residual / tolerance) ** 2
    )
    return jnp.where(look.agrees, value, -jnp.inf)


def _candidates(
    views: SurfaceViews,
    features: Float[Array, "v h w c"],
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
    *,
    k: int,
    height: int,
    width: int,
    tolerance: float,
) -> Candidates:
    check_cameras(target_w2c, target_intrinsics)
    inverse, look = visible_surface(
        views,
        target_w2c,
        target_intrinsics,
        height=height,
        width=width,
        tolerance=tolerance,
    )
    weights = jnp.moveaxis(view_log_weight(look, tolerance), 0, -1)
    log_weight, view = lax.top_k(weights, min(k, weights.shape[-1]))

    def of_best(value: Float[Array, "v h w c"]) -> Float[Array, "h w k c"]:
        return jnp.take_along_axis(jnp.moveaxis(value, 0, 2), view[..., None], axis=2)

    # The barrier keeps all of this from being computed again for each of the sixteen taps.
    log_weight, view, pixels, planes, cosine = lax.optimization_barrier(
        (
            log_weight,
            view,
            of_best(look.pixel),
            of_best(look.planes),
            of_best(look.cosine[..., None])[..., 0],
        )
    )
    found = sample_surface(
        features, views.inverse, views.smooth, view, pixels, planes, tolerance=2.0 * tolerance
    )
    seen = jnp.isfinite(log_weight)
    covered = seen.any(-1)
    return Candidates(
        features=jnp.where(seen[..., None], found, 0.0),
        log_weight=log_weight,
        view=view,
        cosine=cosine,
        mask=1.0 - covered.astype(jnp.float32),
        depth=jnp.where(covered, inverse_depth(inverse), 0.0),
        confidence=jnp.where(look.agrees, look.confidence, 0.0).max(0),
    )
