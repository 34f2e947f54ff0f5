"""Pinhole cameras: world-to-camera matrices, projection, unprojection, Pluecker rays.

OpenCV axes (x right, y down, z forward). `w2c` maps homogeneous world points to camera points,
`intrinsics` maps camera points to pixels whose centres lie at +0.5. Depth is the camera's z in
world units. Everything is float32, and every product of matrices is taken at full precision:
accelerators round to fewer bits unless told otherwise, and a camera does not survive that.
"""

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.geometry.rotations import quaternion_from_matrix
from worldstereo_jax.geometry.smooth import heading

_HIGHEST = lax.Precision.HIGHEST
_SMALL_DEPTH = 1e-8


def invert_rigid(w2c: Float[Array | ndarray, "*batch 4 4"]) -> Float[Array, "*batch 4 4"]:
    """Inverse of rigid transforms: world-to-camera becomes camera-to-world, and back."""
    w2c = jnp.asarray(w2c, jnp.float32)
    inverse = jnp.swapaxes(w2c[..., :3, :3], -1, -2)
    centre = -jnp.matmul(inverse, w2c[..., :3, 3:], precision=_HIGHEST)
    return jnp.concatenate([jnp.concatenate([inverse, centre], -1), w2c[..., 3:, :]], -2)


def camera_centers(w2c: Float[Array | ndarray, "*batch 4 4"]) -> Float[Array, "*batch 3"]:
    """Where the cameras stand, in world units."""
    return invert_rigid(w2c)[..., :3, 3]


def relative_to_first(w2c: Float[Array | ndarray, "f 4 4"]) -> Float[Array, "f 4 4"]:
    """The same path in the world whose frame is the first camera, which becomes the identity."""
    w2c = jnp.asarray(w2c, jnp.float32)
    moved = jnp.matmul(w2c, invert_rigid(w2c[:1]), precision=_HIGHEST)
    # Exactly the identity, not up to rounding: callers compare and cache by it.
    return moved.at[0].set(jnp.eye(4, dtype=jnp.float32))


def pixel_grid(height: int, width: int) -> Float[Array, "h w 2"]:
    """Pixel centres (x, y) of an image: x = column + 0.5, y = row + 0.5."""
    x = jnp.broadcast_to(jnp.arange(width, dtype=jnp.float32)[None, :] + 0.5, (height, width))
    y = jnp.broadcast_to(jnp.arange(height, dtype=jnp.float32)[:, None] + 0.5, (height, width))
    return jnp.stack([x, y], -1)


def pixel_directions(
    pixels: Float[Array | ndarray, "*batch 2"], intrinsics: Float[Array | ndarray, "3 3"]
) -> Float[Array, "*batch 3"]:
    """Directions in the camera's frame, with z = 1, of the rays through `pixels`.

    `intrinsics` is upper triangular, [[fx, s, cx], [0, fy, cy], [0, 0, 1]] in pixels.
    """
    pixels = jnp.asarray(pixels, jnp.float32)
    k = jnp.asarray(intrinsics, jnp.float32)
    y = (pixels[..., 1] - k[1, 2]) / k[1, 1]
    x = (pixels[..., 0] - k[0, 2] - k[0, 1] * y) / k[0, 0]
    return jnp.stack([x, y, jnp.ones_like(x)], -1)


def project(
    points: Float[Array | ndarray, "*batch 3"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
) -> tuple[Float[Array, "*batch 2"], Float[Array, "*batch"]]:
    """Pixels (x, y) and depth of world points seen by one camera.

    Depth may be zero or negative (behind the camera); such pixels are finite but mean nothing,
    so test `depth > 0`.
    """
    w2c = jnp.asarray(w2c, jnp.float32)
    k = jnp.asarray(intrinsics, jnp.float32)
    local = _rotate(w2c[:3, :3], points) + _align(w2c[:3, 3], jnp.ndim(points))
    x, y, depth = local[..., 0], local[..., 1], local[..., 2]
    safe = jnp.where(jnp.abs(depth) > _SMALL_DEPTH, depth, _SMALL_DEPTH)
    pixels = jnp.stack(
        [(k[0, 0] * x + k[0, 1] * y) / safe + k[0, 2], k[1, 1] * y / safe + k[1, 2]], -1
    )
    return pixels, depth


def unproject(
    pixels: Float[Array | ndarray, "*batch 2"],
    depth: Float[Array | ndarray, "*batch"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
) -> Float[Array, "*batch 3"]:
    """World points at `depth` (camera z, world units) on the rays through `pixels`."""
    w2c = jnp.asarray(w2c, jnp.float32)
    local = pixel_directions(pixels, intrinsics) * jnp.asarray(depth, jnp.float32)[..., None]
    return _rotate(w2c[:3, :3].T, local - _align(w2c[:3, 3], local.ndim))


def polar_places(
    points: Float[Array | ndarray, "*batch 3"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
    *,
    step: float | int,
) -> Float[Array, "*batch 3"]:
    """Points as (log distance, elevation, azimuth) around a camera, in steps.

    In the middle of the picture a step along either angle is `step` pixels, and a step in depth is
    as long in space as one across. Nothing changes when the world is turned or moved with the
    camera, and a change of its scale adds the same to every distance. Points at the camera itself
    are given a tiny distance.

    Args:
        points: world units.
        w2c, intrinsics: the camera; its mean focal length counts.
        step: pixels.
    """
    w2c, k = jnp.asarray(w2c, jnp.float32), jnp.asarray(intrinsics, jnp.float32)
    turned = _rotate(w2c[:3, :3], points)
    x, y, z = (turned[..., axis] + w2c[axis, 3] for axis in range(3))
    across = jnp.sqrt(jnp.maximum(x * x + z * z, 1e-12))
    distance = jnp.sqrt(jnp.maximum(x * x + y * y + z * z, 1e-12))
    places = jnp.stack([jnp.log(distance), jnp.arctan2(y, across), heading(x, z)], -1)
    return places * (jnp.sqrt(jnp.abs(k[0, 0] * k[1, 1])) / step)


def resize_intrinsics(
    intrinsics: Float[Array | ndarray, "*batch 3 3"],
    from_hw: tuple[int, int],
    to_hw: tuple[int, int],
) -> Float[Array, "*batch 3 3"]:
    """Intrinsics of the same camera once its image is resized, each axis by its own factor.

    `from_hw` and `to_hw` are (height, width). With pixel centres at +0.5 the principal point
    scales like everything else.
    """
    k = jnp.asarray(intrinsics, jnp.float32)
    scale = jnp.array([to_hw[1] / from_hw[1], to_hw[0] / from_hw[0], 1.0], jnp.float32)
    return k * jnp.broadcast_to(scale[:, None], k.shape)


def strided_intrinsics(
    intrinsics: Float[Array | ndarray, "*batch 3 3"], stride: int
) -> Float[Array, "*batch 3 3"]:
    """Intrinsics of the image that is every `stride`-th pixel, from `stride // 2` on, of both axes.

    The pixels taken lie beside the middle of those that they stand for where `stride` is even.
    """
    k = jnp.asarray(intrinsics, jnp.float32)
    beside = stride // 2 + 0.5 - stride / 2
    return k.at[..., :2, 2].add(-beside).at[..., :2, :].divide(stride)


def plucker_rays(
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    height: int,
    width: int,
    *,
    x_offset: float = -0.5,
    y_offset: float = 0.5,
) -> Float[Array, "f h w 6"]:
    """Pluecker coordinates [d, o x d] of every pixel's ray, d a unit vector in the world frame.

    Rays leave through column + `x_offset`, row + `y_offset`. The defaults equal the official
    release, whose horizontal offset has the wrong sign; +0.5 is the true pixel centre. Trained
    weights expect the default.
    """
    w2c = jnp.asarray(w2c, jnp.float32)
    k = jnp.asarray(intrinsics, jnp.float32)
    shape = (w2c.shape[0], height, width)
    column = jnp.broadcast_to(
        jnp.arange(width, dtype=jnp.float32)[None, None, :] + jnp.float32(x_offset), shape
    )
    row = jnp.broadcast_to(
        jnp.arange(height, dtype=jnp.float32)[None, :, None] + jnp.float32(y_offset), shape
    )

    def entry(i: int, j: int) -> Float[Array, "f 1 1"]:
        return k[:, i, j][:, None, None]

    y = (row - entry(1, 2)) / entry(1, 1)
    x = (column - entry(0, 2) - entry(0, 1) * y) / entry(0, 0)
    local = jnp.stack([x, y, jnp.ones_like(x)], -1)
    direction = jnp.einsum("fji,fhwj->fhwi", w2c[:, :3, :3], local, precision=_HIGHEST)
    direction = direction / jnp.linalg.norm(direction, axis=-1, keepdims=True)
    origin = jnp.broadcast_to(camera_centers(w2c)[:, None, None, :], direction.shape)
    return jnp.concatenate([direction, jnp.cross(origin, direction)], -1)


def camera_vector(w2c: Float[Array | ndarray, "f 4 4"]) -> Float[Array, "f 7"]:
    """Unit quaternion (w, x, y, z; w >= 0) and translation of world-to-camera matrices."""
    w2c = jnp.asarray(w2c, jnp.float32)
    return jnp.concatenate([quaternion_from_matrix(w2c[:, :3, :3]), w2c[:, :3, 3]], -1)


def _rotate(
    rotation: Float[Array, "3 3"], points: Float[Array | ndarray, "*batch 3"]
) -> Float[Array, "*batch 3"]:
    points = jnp.asarray(points, jnp.float32)
    return jnp.einsum("ij,...j->...i", rotation, points, precision=_HIGHEST)


def _align(vector: Float[Array, "3"], ndim: int) -> Float[Array, "... 3"]:
    """The vector with leading axes of length one, since rank promotion is not relied upon."""
    return vector.reshape((1,) * (ndim - 1) + (3,))
