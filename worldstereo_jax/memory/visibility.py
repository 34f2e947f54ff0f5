"""What of the bank's surfaces a new camera sees, and where the bank's views show it.

First every stored surface point is splatted, at the size of its footprint, into a z-buffer of
the target camera; the buffer only proposes depths. Then each target ray is intersected with the
tangent planes of the surfaces proposed, in every view, and the intersection is believed where a
view really shows that surface (occlusion test), front first, unless more confidence stands
against it: views that look through the point at something behind it (row S34).

Every test is relative to depth, so nothing depends on the unit of length (row S38).
"""

import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float
from worldstereo_jax.geometry.cameras import pixel_grid
from worldstereo_jax.memory.surface import (
    between_surfaces,
    farthest_around,
    inverse_depth,
    inverse_intrinsics,
    nearest_around,
    pixel_transfer,
    tangent_planes,
)

_LEVELS = 4  # splats up to 2**3 target pixels wide; a surface nearer than that shows cracks
_NEAR = 0.02  # a depth below this share of the other camera's depth is cut off
_HIGHEST = lax.Precision.HIGHEST


@typing.no_type_check
@flax.struct.dataclass
class SurfaceViews:
    """What of a bank's views does not depend on the target: made once for a whole path.

    inverse [v, h, w]: inverse depth, 0 where not used. planes [v, h, w, 3]: tangent planes, see
    `surface`. confidence [v, h, w]: 0 where not used. nearest [v, h, w]: largest inverse depth of
    the 3x3 neighbourhood. w2c [v, 4, 4], intrinsics [v, 3, 3].
    """

    inverse: Float[Array, "v h w"]
    planes: Float[Array, "v h w 3"]
    confidence: Float[Array, "v h w"]
    nearest: Float[Array, "v h w"]
    w2c: Float[Array, "v 4 4"]
    intrinsics: Float[Array, "v 3 3"]


@typing.no_type_check
@flax.struct.dataclass
class Lookup:
    """Where a target's surface falls in every view, and whether the view shows it.

    pixel [v, h, w, 2]: (x, y) in the view. planes [v, h, w, 3]: the view's tangent plane there.
    confidence [v, h, w]: of that pixel. agrees [v, h, w]: the view shows this surface.
    violates [v, h, w]: the view sees through it. residual [v, h, w]: relative difference of
    depth. density [v, h, w, 2]: smallest and largest number of view pixels per target pixel,
    over directions on the surface. cosine [v, h, w]: of the angle between the two lines of sight.
    """

    pixel: Float[Array, "v h w 2"]
    planes: Float[Array, "v h w 3"]
    confidence: Float[Array, "v h w"]
    agrees: Bool[Array, "v h w"]
    violates: Bool[Array, "v h w"]
    residual: Float[Array, "v h w"]
    density: Float[Array, "v h w 2"]
    cosine: Float[Array, "v h w"]


def prepare_views(
    depth: Float[Array, "v h w"],
    confidence: Float[Array, "v h w"],
    w2c: Float[Array, "v 4 4"],
    intrinsics: Float[Array, "v 3 3"],
    valid: Bool[Array, "v"],
) -> SurfaceViews:
    """Surfaces of the views: pixels between two surfaces and invalid views are left out."""
    inverse = jnp.where(valid[:, None, None], inverse_depth(depth), 0.0)
    keep = ~jax.vmap(between_surfaces)(inverse) & (inverse > 0) & (confidence > 0)
    planes = jax.vmap(tangent_planes)(inverse)
    inverse = jnp.where(keep, inverse, 0.0)
    return SurfaceViews(
        inverse=inverse,
        planes=jnp.where(keep[..., None], planes, 0.0),
        confidence=jnp.where(keep, confidence, 0.0),
        nearest=jax.vmap(nearest_around)(inverse),
        w2c=jnp.asarray(w2c, jnp.float32),
        intrinsics=jnp.asarray(intrinsics, jnp.float32),
    )


def visible_surface(
    views: SurfaceViews,
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
    *,
    height: int,
    width: int,
    tolerance: float,
) -> tuple[Float[Array, "h w"], Lookup]:
    """Inverse depth of the front-most surface that the views confirm (0 = hole), looked up.

    `tolerance` is the share of depth by which a view may differ and still see the same surface.
    """
    transfer = _to_views(views, target_w2c, target_intrinsics)
    best = jnp.zeros((height, width), jnp.float32)
    for proposal in splat_proposals(
        views, target_w2c, target_intrinsics, height=height, width=width
    ):
        inverse = _intersect(views, transfer, proposal, tolerance)
        support, against = _votes(views, transfer, inverse, tolerance)
        best = jnp.where((support > 0) & (against <= support), jnp.maximum(best, inverse), best)
    return best, _look(views, transfer, best, tolerance)


def splat_proposals(
    views: SurfaceViews,
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
    *,
    height: int,
    width: int,
) -> tuple[Float[Array, "h w"], Float[Array, "h w"], Float[Array, "h w"]]:
    """Three proposals of the target's inverse depth (0 = none): nearest, own, farthest.

    Each point goes into one cell of a pyramid of z-buffers, at the level whose cells are as wide
    as the point's footprint in the target (one scatter). `own` is the front-most point over a
    pixel's cells; `nearest` and `farthest` look at the cells around too, so that cracks are
    closed and both sides of a silhouette are proposed.
    """
    h, w = views.inverse.shape[1:]
    matrix, vector = jax.vmap(pixel_transfer, in_axes=(0, 0, None, None))(
        views.w2c, views.intrinsics, target_w2c, target_intrinsics
    )
    q = _carry(matrix, vector, _homogeneous(h, w), views.inverse)
    front = (views.inverse > 0) & (q[..., 2] > _NEAR)
    qz = jnp.where(front, q[..., 2], 1.0)
    pixel = q[..., :2] / qz[..., None]
    rows_x, rows_y = _jacobian(matrix, vector, views.planes, pixel, qz)
    front &= _determinant(rows_x, rows_y) > 0
    extent = jnp.maximum(jnp.abs(rows_x).sum(-1), jnp.abs(rows_y).sum(-1))
    level = jnp.ceil(jnp.log2(jnp.maximum(extent, 1.0)) - 0.5)
    level = jnp.clip(level, 0, _LEVELS - 1).astype(jnp.int32)
    inside = front & (pixel >= 0).all(-1) & (pixel[..., 0] < width) & (pixel[..., 1] < height)
    cell = jnp.where(inside[..., None], pixel, 0.0).astype(jnp.int32) >> level[..., None]
    shapes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(_LEVELS)]
    starts = [sum(r * c for r, c in shapes[:i]) for i in range(_LEVELS + 1)]
    columns = jnp.asarray([c for _, c in shapes], jnp.int32)[level]
    index = jnp.asarray(starts[:-1], jnp.int32)[level] + cell[..., 1] * columns + cell[..., 0]
    value = jnp.where(inside, views.inverse / qz, 0.0)
    buffer = jnp.zeros((starts[-1],), jnp.float32)
    buffer = buffer.at[index.reshape(-1)].max(value.reshape(-1), mode="promise_in_bounds")
    near = own = jnp.zeros((height, width), jnp.float32)
    far = jnp.full((height, width), jnp.inf, jnp.float32)
    for i, (rows, cols) in enumerate(shapes):
        plane = buffer[starts[i] : starts[i + 1]].reshape(rows, cols)
        near = jnp.maximum(near, _enlarge(nearest_around(plane), 2**i, height, width))
        own = jnp.maximum(own, _enlarge(plane, 2**i, height, width))
        behind = _enlarge(farthest_around(plane), 2**i, height, width)
        far = jnp.where(behind > 0, jnp.minimum(far, behind), far)
    return near, own, jnp.where(jnp.isfinite(far), far, 0.0)


def _to_views(
    views: SurfaceViews, target_w2c: Float[Array, "4 4"], target_intrinsics: Float[Array, "3 3"]
) -> tuple[Float[Array, "v 3 3"], Float[Array, "v 3"]]:
    transfer = jax.vmap(pixel_transfer, in_axes=(None, None, 0, 0))
    return transfer(target_w2c, target_intrinsics, views.w2c, views.intrinsics)


def _intersect(
    views: SurfaceViews,
    transfer: tuple[Float[Array, "v 3 3"], Float[Array, "v 3"]],
    proposal: Float[Array, "h w"],
    tolerance: float,
) -> Float[Array, "h w"]:
    """Inverse depth at which the target rays meet the views' surfaces near `proposal`.

    The ray is cut with the tangent plane under the proposed point, then again with the plane
    under the cut (exact on planes after one step); where both agree the view has the point.
    Of the views' answers the front-most and those that agree with it are averaged.
    """
    matrix, vector = transfer
    grid = _homogeneous(*proposal.shape)
    start = _carry(matrix, vector, grid, jnp.zeros_like(proposal))  # the ray's vanishing point

    def cut(
        guess: Float[Array, "v h w"],
    ) -> tuple[Float[Array, "v h w"], Float[Array, "v h w"]]:
        q = start + guess[..., None] * vector[:, None, None, :]
        _, planes, confidence, _ = _read(views, q, guess > 0)
        below = 1.0 - jnp.einsum("vhwi,vi->vhw", planes, vector, precision=_HIGHEST)
        above = (planes * start).sum(-1)
        met = (confidence > 0) & (below > _NEAR) & (above > 0)
        return jnp.where(met, above / jnp.where(met, below, 1.0), 0.0), confidence

    first, _ = cut(jnp.broadcast_to(proposal, start.shape[:-1]))
    second, confidence = cut(first)
    agrees = (second > 0) & (jnp.abs(second - first) <= tolerance * second)
    second = jnp.where(agrees, second, 0.0)
    front = second.max(0)
    member = agrees & (second >= (1.0 - 2.0 * tolerance) * front[None])
    weight = jnp.where(member, confidence, 0.0)
    total = weight.sum(0)
    return (weight * second).sum(0) / jnp.where(total > 0, total, 1.0)


def _votes(
    views: SurfaceViews,
    transfer: tuple[Float[Array, "v 3 3"], Float[Array, "v 3"]],
    inverse: Float[Array, "h w"],
    tolerance: float,
) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Confidence of the views that show the surface, and of those that see through it."""
    matrix, vector = transfer
    q = _carry(matrix, vector, _homogeneous(*inverse.shape), inverse)
    pixel, planes, confidence, nearest = _read(views, q, (inverse > 0)[None])
    agrees, violates, _ = _compare(q, pixel, planes, confidence, nearest, inverse, tolerance)
    support = jnp.where(agrees, confidence, 0.0).sum(0)
    return support, jnp.where(violates, confidence, 0.0).sum(0)


def _look(
    views: SurfaceViews,
    transfer: tuple[Float[Array, "v 3 3"], Float[Array, "v 3"]],
    inverse: Float[Array, "h w"],
    tolerance: float,
) -> Lookup:
    matrix, vector = transfer
    grid = _homogeneous(*inverse.shape)
    q = _carry(matrix, vector, grid, inverse)
    pixel, planes, confidence, nearest = _read(views, q, (inverse > 0)[None])
    agrees, violates, residual = _compare(q, pixel, planes, confidence, nearest, inverse, tolerance)
    # The view's plane as the target sees it gives how both pixel grids lie on the surface.
    below = 1.0 - jnp.einsum("vhwi,vi->vhw", planes, vector, precision=_HIGHEST)
    agrees &= below > _NEAR
    seen = jnp.einsum("vij,vhwi->vhwj", matrix, planes, precision=_HIGHEST)
    seen = seen / jnp.where(agrees, below, 1.0)[..., None]
    qz = jnp.where(agrees, q[..., 2], 1.0)
    rows_x, rows_y = _jacobian(matrix, vector, seen, pixel, qz)
    agrees &= _determinant(rows_x, rows_y) > 0
    return Lookup(
        pixel=pixel,
        planes=planes,
        confidence=confidence,
        agrees=agrees,
        violates=violates,
        residual=residual,
        density=_stretches(rows_x, rows_y),
        cosine=_cosine(matrix, views.intrinsics, grid, q),
    )


def _compare(
    q: Float[Array, "v h w 3"],
    pixel: Float[Array, "v h w 2"],
    planes: Float[Array, "v h w 3"],
    confidence: Float[Array, "v h w"],
    nearest: Float[Array, "v h w"],
    inverse: Float[Array, "h w"],
    tolerance: float,
) -> tuple[Bool[Array, "v h w"], Bool[Array, "v h w"], Float[Array, "v h w"]]:
    """Whether each view agrees with the surface or looks through it; relative residual."""
    known = confidence > 0
    shown = planes[..., 0] * pixel[..., 0] + planes[..., 1] * pixel[..., 1] + planes[..., 2]
    expected = inverse[None] / jnp.where(q[..., 2] > _NEAR, q[..., 2], 1.0)
    residual = jnp.abs(shown - expected) / jnp.where(known, jnp.maximum(shown, 1e-12), 1.0)
    # Looked through: everything around the pixel, not only its own surface, lies farther.
    violates = known & (expected > (1.0 + 3.0 * tolerance) * nearest)
    return known & (residual <= tolerance), violates, residual


def _read(
    views: SurfaceViews, q: Float[Array, "v h w 3"], wanted: Bool[Array, "#v h w"]
) -> tuple[
    Float[Array, "v h w 2"], Float[Array, "v h w 3"], Float[Array, "v h w"], Float[Array, "v h w"]
]:
    """Pixel, and the views' planes, confidence and nearest surface there (0 outside)."""
    v, h, w = views.inverse.shape
    front = q[..., 2] > _NEAR
    pixel = q[..., :2] / jnp.where(front, q[..., 2], 1.0)[..., None]
    inside = front & wanted & (pixel >= 0).all(-1) & (pixel[..., 0] < w) & (pixel[..., 1] < h)
    cell = jnp.where(inside[..., None], pixel, 0.0).astype(jnp.int32)
    index = (jnp.arange(v, dtype=jnp.int32)[:, None, None] * h + cell[..., 1]) * w + cell[..., 0]
    table = jnp.concatenate(
        [views.planes, views.confidence[..., None], views.nearest[..., None]], -1
    ).reshape(v * h * w, 5)
    row = table.at[index].get(mode="promise_in_bounds")
    confidence = jnp.where(inside, row[..., 3], 0.0)
    return pixel, row[..., :3], confidence, row[..., 4]


def _homogeneous(height: int, width: int) -> Float[Array, "h w 3"]:
    return jnp.concatenate([pixel_grid(height, width), jnp.ones((height, width, 1))], -1)


def _carry(
    matrix: Float[Array, "v 3 3"],
    vector: Float[Array, "v 3"],
    grid: Float[Array, "h w 3"],
    inverse: Float[Array, "*v h w"],
) -> Float[Array, "v h w 3"]:
    """Pixels with inverse depth to homogeneous pixels of the other camera, see `surface`."""
    q = jnp.einsum("vij,hwj->vhwi", matrix, grid, precision=_HIGHEST)
    inverse = jnp.broadcast_to(inverse, q.shape[:-1])
    return q + inverse[..., None] * vector[:, None, None, :]


def _jacobian(
    matrix: Float[Array, "v 3 3"],
    vector: Float[Array, "v 3"],
    planes: Float[Array, "v h w 3"],
    pixel: Float[Array, "v h w 2"],
    qz: Float[Array, "v h w"],
) -> tuple[Float[Array, "v h w 2"], Float[Array, "v h w 2"]]:
    """Derivatives of x and of y of the pixel carried over, along the plane, by (x, y) here."""
    column = jnp.swapaxes(matrix[:, :, :2], 1, 2)[:, None, None]  # [v, 1, 1, (x, y), 3]
    moved = column + planes[..., :2, None] * vector[:, None, None, None, :]
    rows = (moved[..., :2] - moved[..., 2:] * pixel[..., None, :]) / qz[..., None, None]
    return rows[..., 0], rows[..., 1]


def _determinant(
    rows_x: Float[Array, "v h w 2"], rows_y: Float[Array, "v h w 2"]
) -> Float[Array, "v h w"]:
    return rows_x[..., 0] * rows_y[..., 1] - rows_x[..., 1] * rows_y[..., 0]


def _stretches(
    rows_x: Float[Array, "v h w 2"], rows_y: Float[Array, "v h w 2"]
) -> Float[Array, "v h w 2"]:
    """Singular values, smallest first, of the 2x2 matrices with these rows."""
    square = (rows_x**2).sum(-1) + (rows_y**2).sum(-1)
    area = jnp.abs(_determinant(rows_x, rows_y))
    largest = jnp.sqrt(0.5 * (square + jnp.sqrt(jnp.maximum(square**2 - 4.0 * area**2, 0.0))))
    return jnp.stack([area / jnp.maximum(largest, 1e-12), largest], -1)


def _cosine(
    matrix: Float[Array, "v 3 3"],
    intrinsics: Float[Array, "v 3 3"],
    grid: Float[Array, "h w 3"],
    q: Float[Array, "v h w 3"],
) -> Float[Array, "v h w"]:
    """Cosine of the angle between the target's and the view's line of sight to the surface."""
    inverse = inverse_intrinsics(intrinsics)
    turn = jnp.matmul(inverse, matrix, precision=_HIGHEST)
    from_target = jnp.einsum("vij,hwj->vhwi", turn, grid, precision=_HIGHEST)
    from_view = jnp.einsum("vij,vhwj->vhwi", inverse, q, precision=_HIGHEST)
    dot = (from_target * from_view).sum(-1)
    length = (from_target**2).sum(-1) * (from_view**2).sum(-1)
    return dot * lax.rsqrt(jnp.maximum(length, 1e-20))


def _enlarge(
    plane: Float[Array, "a b"], factor: int, height: int, width: int
) -> Float[Array, "h w"]:
    """Each cell repeated `factor` times along both axes, cropped to the target."""
    tall = jnp.repeat(jnp.repeat(plane, factor, axis=0), factor, axis=1)
    return tall[:height, :width]
