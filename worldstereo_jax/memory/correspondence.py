"""Which pixel of one view shows what a pixel of another shows, from depth and cameras (row S8).

Implicit: computed from geometry when asked for. Explicit: the same result kept for chosen pairs.
Patch level groups pixels by token, the form that attention uses.
"""

import typing

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import pixel_grid
from worldstereo_jax.geometry.frame_check import check_cameras, check_shape
from worldstereo_jax.memory.surface import inverse_depth, pixel_transfer, tangent_planes
from worldstereo_jax.memory.transfer import determinant, surface_jacobian

_NEAR = 0.02  # a depth below this share of the other camera's depth is cut off


@typing.no_type_check
@flax.struct.dataclass
class PatchMatches:
    """The k patches of a second view that each of t patches of a first one lands in.

    key [t, k]: int32 patch index, row-major, most shared first, -1 where there are fewer. share
    [t, k]: share of the patch's pixels that correspond to a pixel of that key patch, 0 where none.
    """

    key: Int[Array, "t k"]
    share: Float[Array, "t k"]


@typing.no_type_check
@flax.struct.dataclass
class StoredCorrespondences:
    """Explicit dense correspondences of p pairs of views.

    pairs [p, 2]: int32 places of the first and the second view in the bank. pixels [p, h, w, 2]:
    (x, y) in the second view of each pixel of the first. valid [p, h, w]: where they hold.
    """

    pairs: Int[Array, "p 2"]
    pixels: Float[Array, "p h w 2"]
    valid: Bool[Array, "p h w"]


def dense_correspondence(
    depth_a: Float[Array, "h w"],
    w2c_a: Float[Array, "4 4"],
    intrinsics_a: Float[Array, "3 3"],
    depth_b: Float[Array, "hb wb"],
    w2c_b: Float[Array, "4 4"],
    intrinsics_b: Float[Array, "3 3"],
    *,
    tolerance: float = 0.02,
    most_drift: float = 1.0,
) -> tuple[Float[Array, "h w 2"], Bool[Array, "h w"]]:
    """Where each pixel of view a falls in view b, and whether b shows that surface (rows S8, S10).

    Args:
        depth_a: camera z of a, world units, 0 = unknown; depth_b likewise.
        w2c_a: world to camera of a.
        intrinsics_a: pixels of a.
        depth_b, w2c_b, intrinsics_b: the other view.
        tolerance: share of depth by which b's surface may differ from a's point; nearer is an
            occlusion, farther a contradiction.
        most_drift: pixels of a by which the point that b shows there may miss when brought back.

    Returns:
        (x, y) in b [h, w, 2], meaningful where the projection lies in front of b; valid [h, w]: not
        where b sees the other side of a thin wall, as the tangent planes of both say.

    Raises:
        InputError: when an array has another shape, or does not hold floats.
    """
    for depth, w2c, intrinsics in (
        (depth_a, w2c_a, intrinsics_a),
        (depth_b, w2c_b, intrinsics_b),
    ):
        check_shape("depth", depth, ("h", "w"))
        check_cameras(w2c, intrinsics)
    inverse_a, inverse_b = inverse_depth(depth_a), inverse_depth(depth_b)
    forward = pixel_transfer(w2c_a, intrinsics_a, w2c_b, intrinsics_b)
    grid = pixel_grid(*depth_a.shape)
    pixels, expected, front = _carry(forward, grid, inverse_a)
    plane, shown, inside = _read_plane(inverse_b, pixels)
    agrees = jnp.abs(shown - expected) <= tolerance * shown
    # Back again from what b shows there: also refuses a's own depth at a wrong slant.
    backward = pixel_transfer(w2c_b, intrinsics_b, w2c_a, intrinsics_a)
    returned, _, in_front_again = _carry(backward, pixels, shown)
    drift = jnp.linalg.norm(returned - grid, axis=-1)
    # Seen from its back a surface is mirrored; noise mirrors one of the two planes, rarely both.
    agrees &= _is_face(forward, tangent_planes(inverse_a), pixels) | _is_face(
        backward, plane, returned
    )
    valid = (inverse_a > 0) & front & inside & (shown > 0) & agrees
    return pixels, valid & in_front_again & (drift <= most_drift)


def hidden_pixels(
    depth_a: Float[Array, "h w"],
    w2c_a: Float[Array, "4 4"],
    intrinsics_a: Float[Array, "3 3"],
    depth_b: Float[Array, "hb wb"],
    w2c_b: Float[Array, "4 4"],
    intrinsics_b: Float[Array, "3 3"],
    *,
    tolerance: float = 0.02,
) -> Bool[Array, "h w"]:
    """Pixels of view a whose surface something nearer hides in view b (row S34).

    Arguments as in `dense_correspondence`. What falls out of b's picture, or where b's surface is
    unknown, is not hidden.
    """
    forward = pixel_transfer(w2c_a, intrinsics_a, w2c_b, intrinsics_b)
    inverse_a = inverse_depth(depth_a)
    pixels, expected, front = _carry(forward, pixel_grid(*depth_a.shape), inverse_a)
    _, shown, inside = _read_plane(inverse_depth(depth_b), pixels)
    return (inverse_a > 0) & front & inside & (shown > (1.0 + tolerance) * expected)


def bank_correspondence(
    depth: Float[Array, "h w"],
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
    bank_depth: Float[Array, "v h w"],
    bank_w2c: Float[Array, "v 4 4"],
    bank_intrinsics: Float[Array, "v 3 3"],
    bank_valid: Bool[Array, "v"],
    *,
    tolerance: float = 0.02,
) -> tuple[Float[Array, "v h w 2"], Bool[Array, "v h w"]]:
    """`dense_correspondence` of one view with every view of a bank; none with empty slots."""

    def one(depth_b: Array, w2c_b: Array, intrinsics_b: Array) -> tuple[Array, Array]:
        return dense_correspondence(
            depth, w2c, intrinsics, depth_b, w2c_b, intrinsics_b, tolerance=tolerance
        )

    pixels, valid = jax.vmap(one)(bank_depth, bank_w2c, bank_intrinsics)
    return pixels, valid & bank_valid[:, None, None]


def patch_correspondence(
    pixels: Float[Array, "h w 2"],
    valid: Bool[Array, "h w"],
    height: int,
    width: int,
    *,
    patch: int = 16,
    k: int = 4,
) -> PatchMatches:
    """Patch-level correspondence from a dense one, without an array over all pairs (row S8).

    Args:
        pixels: (x, y) in the second view of each pixel of the first; valid: where they hold.
        height, width: size of the second view.
        patch: side of a patch in pixels; it must divide both views.
        k: key patches kept per patch.

    Raises:
        InputError: when a view is no whole number of patches.
    """
    h, w = valid.shape
    if h % patch or w % patch or height % patch or width % patch:
        raise InputError(
            f"views of {h}x{w} and {height}x{width} pixels are no whole number of patches of "
            f"{patch} pixels"
        )
    cell = jnp.where(valid[..., None], pixels, 0.0).astype(jnp.int32) // patch
    none = (height // patch) * (width // patch)
    key = jnp.where(valid, cell[..., 1] * (width // patch) + cell[..., 0], none)
    tiles = key.reshape(h // patch, patch, w // patch, patch).swapaxes(1, 2)
    tiles = jnp.sort(tiles.reshape(-1, patch * patch), axis=-1)
    # Equal keys now stand side by side: a run's length is the distance between its borders.
    place = jnp.arange(patch * patch, dtype=jnp.int32)[None, :]
    starts = jnp.concatenate([jnp.ones_like(tiles[:, :1], bool), tiles[:, 1:] != tiles[:, :-1]], 1)
    next_start = jnp.where(starts, place, patch * patch)
    next_start = jnp.concatenate(
        [next_start[:, 1:], jnp.full_like(next_start[:, :1], patch * patch)], 1
    )
    next_start = jax.lax.cummin(next_start, axis=1, reverse=True)
    length = jnp.where(starts & (tiles != none), next_start - place, 0)
    count, first = jax.lax.top_k(length, k)
    found = jnp.take_along_axis(tiles, first, axis=1)
    return PatchMatches(
        key=jnp.where(count > 0, found, -1), share=count.astype(jnp.float32) / patch**2
    )


def store_correspondences(
    depth: Float[Array, "v h w"],
    w2c: Float[Array, "v 4 4"],
    intrinsics: Float[Array, "v 3 3"],
    pairs: Int[Array, "p 2"],
    *,
    tolerance: float = 0.02,
) -> StoredCorrespondences:
    """Explicit correspondences of the listed pairs of a bank's views (row S8)."""

    def one(pair: Array) -> tuple[Array, Array]:
        a, b = pair[0], pair[1]
        return dense_correspondence(
            depth[a],
            w2c[a],
            intrinsics[a],
            depth[b],
            w2c[b],
            intrinsics[b],
            tolerance=tolerance,
        )

    pixels, valid = jax.lax.map(one, pairs)
    return StoredCorrespondences(pairs=pairs.astype(jnp.int32), pixels=pixels, valid=valid)


def find_correspondence(
    stored: StoredCorrespondences, a: Int[Array, ""] | int, b: Int[Array, ""] | int
) -> tuple[Float[Array, "h w 2"], Bool[Array, "h w"]]:
    """The stored correspondence from view a to view b; nowhere valid when it is not stored."""
    match = (stored.pairs[:, 0] == a) & (stored.pairs[:, 1] == b)
    index = jnp.argmax(match)
    return stored.pixels[index], stored.valid[index] & match.any()


def _carry(
    transfer: tuple[Float[Array, "3 3"], Float[Array, "3"]],
    pixels: Float[Array, "h w 2"],
    inverse: Float[Array, "h w"],
) -> tuple[Float[Array, "h w 2"], Float[Array, "h w"], Bool[Array, "h w"]]:
    """Pixels in the other camera, inverse depth there, and whether they lie in front of it."""
    matrix, vector = transfer
    x, y = pixels[..., 0], pixels[..., 1]
    q = [matrix[i, 0] * x + matrix[i, 1] * y + matrix[i, 2] + inverse * vector[i] for i in range(3)]
    front = q[2] > _NEAR
    scale = 1.0 / jnp.where(front, q[2], 1.0)
    return jnp.stack([q[0] * scale, q[1] * scale], -1), inverse * scale, front


def _read_plane(
    inverse: Float[Array, "h w"], pixels: Float[Array, "ha wa 2"]
) -> tuple[Float[Array, "ha wa 3"], Float[Array, "ha wa"], Bool[Array, "ha wa"]]:
    """The tangent plane of the pixel that places fall in, its inverse depth there, and if in b."""
    h, w = inverse.shape
    x, y = pixels[..., 0], pixels[..., 1]
    inside = (x >= 0) & (y >= 0) & (x < w) & (y < h)
    column = jnp.where(inside, x, 0.0).astype(jnp.int32)
    row = jnp.where(inside, y, 0.0).astype(jnp.int32)
    plane = tangent_planes(inverse)[row, column]
    return plane, plane[..., 0] * x + plane[..., 1] * y + plane[..., 2], inside


def _is_face(
    transfer: tuple[Float[Array, "3 3"], Float[Array, "3"]],
    plane: Float[Array, "h w 3"],
    carried: Float[Array, "h w 2"],
) -> Bool[Array, "h w"]:
    """Whether the other camera, in which pixels are `carried`, sees the face that `plane` shows."""
    matrix, vector = (part[None] for part in transfer)
    slope, pixel = ([x[None, ..., i] for i in (0, 1)] for x in (plane, carried))
    # Only the sign counts, and the ratio of depths, 1 here, is positive.
    jacobian = surface_jacobian(matrix, vector, slope, pixel, jnp.ones_like(pixel[0]))
    return determinant(jacobian)[0] > 0
