"""The surface a depth map shows, pixel by pixel: tangent planes, edges, pixels between surfaces.

Everything here works on inverse depth, because on a plane it is affine in pixel coordinates: the
plane through a pixel is one covector `l` with `inverse depth = l . (x, y, 1)`, exact at any
slant, and a homography carries it from camera to camera (see `pixel_transfer`).
"""

from collections.abc import Iterator, Sequence

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float
from worldstereo_jax.geometry.cameras import invert_rigid

_HIGHEST = lax.Precision.HIGHEST


def inverse_depth(depth: Float[Array, "*v h w"]) -> Float[Array, "*v h w"]:
    """1 / depth where depth is positive and finite, else 0 (which means: no surface); float32."""
    depth = jnp.asarray(depth, jnp.float32)
    good = jnp.isfinite(depth) & (depth > 0)
    return jnp.where(good, 1.0 / jnp.where(good, depth, 1.0), 0.0)


def tangent_planes(inverse: Float[Array, "h w"]) -> Float[Array, "h w 3"]:
    """Covectors of the tangent planes: `inverse depth at (x, y) = planes . (x, y, 1)`.

    Slopes are central differences where the two one-sided ones agree, and the flatter side
    where they do not, so that a plane at a silhouette does not lean towards the other surface.
    Pixels without depth get a zero covector.
    """
    gx = _slope(inverse, axis=1)
    gy = _slope(inverse, axis=0)
    h, w = inverse.shape
    x = jnp.arange(w, dtype=jnp.float32)[None, :] + 0.5
    y = jnp.arange(h, dtype=jnp.float32)[:, None] + 0.5
    covector = jnp.stack([gx, gy, inverse - gx * x - gy * y], -1)
    return jnp.where((inverse > 0)[..., None], covector, 0.0)


def between_surfaces(
    inverse: Float[Array, "h w"], *, tolerance: float = 0.03
) -> Bool[Array, "h w"]:
    """Pixels that hang between a near and a far surface: the bleeding of depth edges.

    A pixel hangs when its two neighbours along an axis differ by a jump (more than `tolerance`
    of its inverse depth and than what the slopes outside explain) and it continues neither side.
    A steep plane is no jump: its outside slopes are as large as the inside ones.
    """
    hanging = jnp.zeros(inverse.shape, bool)
    for axis in (0, 1):
        before2, before, after, after2 = _along(inverse, axis, (-2, -1, 1, 2))
        left, right = before - before2, after2 - after
        known = (before2 > 0) & (before > 0) & (after > 0) & (after2 > 0)
        jump = jnp.abs(after - before) - 2.0 * jnp.maximum(jnp.abs(left), jnp.abs(right))
        slack = tolerance * inverse
        apart = jnp.minimum(
            jnp.abs(inverse - (before + left)), jnp.abs(inverse - (after - right))
        ) > jnp.minimum(slack, 0.25 * jnp.abs(after - before))
        hanging |= known & (jump > 2.0 * slack) & apart
    return hanging & (inverse > 0)


def one_surface(
    inverse: Float[Array, "h w"], planes: Float[Array, "h w 3"], *, tolerance: float
) -> Bool[Array, "h w"]:
    """Pixels around which all 5x5 lie on one surface, within `tolerance` of inverse depth.

    Every pixel of the 3x3 neighbourhood must have its own 3x3 neighbourhood on its tangent plane.
    """
    slack = tolerance * inverse
    same = inverse > 0
    for _, beyond in _beyond_plane(inverse, planes):
        same &= ~(jnp.abs(beyond) > slack)
    # All of a 3x3 neighbourhood, of which what lies outside the image is no part.
    return lax.reduce_window(same, True, lax.min, (3, 3), (1, 1), "SAME")


def beside_jump(
    inverse: Float[Array, "h w"], planes: Float[Array, "h w 3"], *, tolerance: float
) -> Bool[Array, "h w"]:
    """Pixels with surface, one of whose eight neighbours is off their tangent plane (row S22).

    Off by more than `tolerance` of inverse depth, to either side; a neighbour without depth counts,
    since occlusions are where depth is often missing.
    """
    slack = tolerance * inverse
    found = jnp.zeros(inverse.shape, bool)
    for _, beyond in _beyond_plane(inverse, planes):
        found |= jnp.abs(beyond) > slack
    return found & (inverse > 0)


def nearer_beside(
    inverse: Float[Array, "h w"], planes: Float[Array, "h w 3"], *, tolerance: float
) -> Float[Array, "h w"]:
    """Largest inverse depth of those eight neighbours that stand before the tangent plane, or 0.

    A neighbour stands before it when it is nearer than the plane there by more than `tolerance` of
    inverse depth: another surface, which a point close by may belong to.
    """
    slack = tolerance * inverse
    found = jnp.zeros_like(inverse)
    for around, beyond in _beyond_plane(inverse, planes):
        found = jnp.maximum(found, jnp.where(beyond > slack, around, 0.0))
    return jnp.where(inverse > 0, found, 0.0)


def nearest_around(inverse: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """Largest inverse depth (nearest surface) in the 3x3 neighbourhood."""
    return lax.reduce_window(inverse, -jnp.inf, lax.max, (3, 3), (1, 1), "SAME")


def farthest_around(inverse: Float[Array, "h w"]) -> Float[Array, "h w"]:
    """Smallest positive inverse depth (farthest surface) in the 3x3 neighbourhood, 0 if none."""
    value = jnp.where(inverse > 0, inverse, jnp.inf)
    value = lax.reduce_window(value, jnp.inf, lax.min, (3, 3), (1, 1), "SAME")
    return jnp.where(jnp.isfinite(value), value, 0.0)


def shines_through(inverse: Float[Array, "h w"], *, tolerance: float) -> Bool[Array, "h w"]:
    """Pixels at which a farther surface shows through the gaps of a nearer one (row S34).

    Samples of a surface that comes close, or is seen steeply, lie apart, and what is behind shows
    between them. A pixel is such a gap when along its row, its column and both diagonals a surface
    nearer by more than `tolerance` of inverse depth stands on both sides, one or two pixels away.
    A slit one pixel wide stays, being open along itself, and so does a silhouette. (Compare the
    sectors of Pintus et al., "Real-time rendering of massive unstructured raw point clouds using
    screen-space operators", 2011.)
    """
    h, w = inverse.shape
    wide = jnp.pad(inverse, 2, mode="edge")
    farthest = (1.0 + tolerance) * inverse
    closed = inverse > 0
    for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        for side in (1, -1):
            corners = [(2 + side * k * dy, 2 + side * k * dx) for k in (1, 2)]
            one, two = (lax.slice(wide, (y, x), (y + h, x + w)) for y, x in corners)
            closed &= jnp.maximum(one, two) > farthest
    return closed


def inverse_intrinsics(intrinsics: Float[Array, "*v 3 3"]) -> Float[Array, "*v 3 3"]:
    """Inverses of upper triangular intrinsics [[fx, s, cx], [0, fy, cy], [0, 0, 1]]."""
    fx, s, cx = intrinsics[..., 0, 0], intrinsics[..., 0, 1], intrinsics[..., 0, 2]
    fy, cy = intrinsics[..., 1, 1], intrinsics[..., 1, 2]
    zero, one = jnp.zeros_like(fx), jnp.ones_like(fx)
    rows = [
        [1.0 / fx, -s / (fx * fy), (s * cy - cx * fy) / (fx * fy)],
        [zero, 1.0 / fy, -cy / fy],
        [zero, zero, one],
    ]
    return jnp.stack([jnp.stack(row, -1) for row in rows], -2)


def pixel_transfer(
    w2c_from: Float[Array, "4 4"],
    intrinsics_from: Float[Array, "3 3"],
    w2c_to: Float[Array, "4 4"],
    intrinsics_to: Float[Array, "3 3"],
) -> tuple[Float[Array, "3 3"], Float[Array, "3"]]:
    """Matrix A and vector b that carry pixels of one camera into another.

    A pixel p = (x, y, 1) with inverse depth w maps to q = A p + w b: its pixel there is
    q_xy / q_z and its inverse depth w / q_z (q_z is the ratio of the two depths, so the point
    lies in front of the camera when q_z > 0).
    """
    # Places do not survive half precision, whatever cameras come in.
    w2c_to, intrinsics_from, intrinsics_to = (
        jnp.asarray(x, jnp.float32) for x in (w2c_to, intrinsics_from, intrinsics_to)
    )
    relative = jnp.matmul(w2c_to, invert_rigid(w2c_from), precision=_HIGHEST)
    rotation = jnp.matmul(relative[:3, :3], inverse_intrinsics(intrinsics_from), precision=_HIGHEST)
    matrix = jnp.matmul(intrinsics_to, rotation, precision=_HIGHEST)
    return matrix, jnp.matmul(intrinsics_to, relative[:3, 3], precision=_HIGHEST)


def _along(
    array: Float[Array, "h w"], axis: int, steps: Sequence[int]
) -> list[Float[Array, "h w"]]:
    """For each step `out[i] = array[i + step]` along an axis, the border repeated."""
    size, most = array.shape[axis], max(map(abs, steps))
    pad = [(0, 0), (0, 0)]
    pad[axis] = (most, most)
    wide = jnp.pad(array, pad, mode="edge")
    return [lax.slice_in_dim(wide, most + s, most + s + size, axis=axis) for s in steps]


def _beyond_plane(
    inverse: Float[Array, "h w"], planes: Float[Array, "h w 3"]
) -> Iterator[tuple[Float[Array, "h w"], Float[Array, "h w"]]]:
    """Each of the eight neighbours' inverse depths, and by how much it exceeds the tangent plane.

    Both are NaN, hence neither more nor less than anything, where the neighbour is outside.
    """
    h, w = inverse.shape
    wide = jnp.pad(inverse, 1, constant_values=jnp.nan)
    for dy in (-1, 0, 1):
        level = inverse + dy * planes[..., 1]
        for dx in (-1, 0, 1):
            if (dy, dx) == (0, 0):
                continue
            around = lax.slice(wide, (1 + dy, 1 + dx), (1 + dy + h, 1 + dx + w))
            yield around, around - (level + dx * planes[..., 0])


def _slope(inverse: Float[Array, "h w"], axis: int) -> Float[Array, "h w"]:
    size = inverse.shape[axis]
    before, after = _along(inverse, axis, (-1, 1))
    index = jnp.arange(size).reshape((-1, 1) if axis == 0 else (1, -1))
    has_before = (before > 0) & (index > 0)
    has_after = (after > 0) & (index < size - 1)
    backward, forward = inverse - before, after - inverse
    # Below this difference the two sides are one surface, only noisy.
    noise = 1e-3 * inverse
    flatter = jnp.where(jnp.abs(forward) < jnp.abs(backward), forward, backward)
    steeper = jnp.where(jnp.abs(forward) < jnp.abs(backward), backward, forward)
    disagree = jnp.abs(steeper) > 2.0 * jnp.abs(flatter) + noise
    both = jnp.where(disagree, flatter, 0.5 * (forward + backward))
    one = jnp.where(has_before, backward, jnp.where(has_after, forward, 0.0))
    # A lone neighbour across a jump says nothing about the slope.
    one = jnp.where(jnp.abs(one) > 0.1 * inverse, 0.0, one)
    return jnp.where(has_before & has_after, both, one)
