"""Rotations: matrices, unit quaternions, axis-angle vectors, and the camera that looks at a point.

Quaternions are ordered w, x, y, z and kept on the half-sphere w >= 0, so that a rotation has one
quaternion (up to the sign at exactly half a turn). Matrices act on column vectors from the left.
"""

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.geometry.smooth import length

WORLD_UP = (0.0, -1.0, 0.0)
"""Up in a world whose axes are those of an OpenCV camera (y points down)."""

_SMALL = 1e-8


def quaternion_from_matrix(
    rotation: Float[Array | ndarray, "*batch 3 3"],
) -> Float[Array, "*batch 4"]:
    """Unit quaternions (w, x, y, z), w >= 0, of rotation matrices.

    The four products of the quaternion with each of its own components are linear in the matrix;
    the row of the largest component is taken, so nothing is divided by a small number
    (Shepperd, 1978, "Quaternion from rotation matrix").
    """
    r = jnp.asarray(rotation, jnp.float32)
    xx, yy, zz = r[..., 0, 0], r[..., 1, 1], r[..., 2, 2]
    wx = r[..., 2, 1] - r[..., 1, 2]
    wy = r[..., 0, 2] - r[..., 2, 0]
    wz = r[..., 1, 0] - r[..., 0, 1]
    xy = r[..., 0, 1] + r[..., 1, 0]
    xz = r[..., 0, 2] + r[..., 2, 0]
    yz = r[..., 1, 2] + r[..., 2, 1]
    # Row i holds 4 q_i q.
    products = jnp.stack(
        [
            jnp.stack([1 + xx + yy + zz, wx, wy, wz], -1),
            jnp.stack([wx, 1 + xx - yy - zz, xy, xz], -1),
            jnp.stack([wy, xy, 1 - xx + yy - zz, yz], -1),
            jnp.stack([wz, xz, yz, 1 - xx - yy + zz], -1),
        ],
        -2,
    )
    squares = jnp.diagonal(products, axis1=-2, axis2=-1)
    largest = jnp.argmax(squares, axis=-1)[..., None, None]
    row = jnp.take_along_axis(products, largest, axis=-2)[..., 0, :]
    q = row / jnp.linalg.norm(row, axis=-1, keepdims=True)
    return jnp.where(q[..., :1] < 0, -q, q)


def matrix_from_quaternion(
    quaternion: Float[Array | ndarray, "*batch 4"],
) -> Float[Array, "*batch 3 3"]:
    """Rotation matrices of quaternions (w, x, y, z) of any length but zero."""
    q = jnp.asarray(quaternion, jnp.float32)
    q = q / jnp.linalg.norm(q, axis=-1, keepdims=True)
    w, x, y, z = q[..., 0], q[..., 1], q[..., 2], q[..., 3]
    return jnp.stack(
        [
            jnp.stack([1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)], -1),
            jnp.stack([2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)], -1),
            jnp.stack([2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)], -1),
        ],
        -2,
    )


def axis_angle_to_matrix(
    vector: Float[Array | ndarray, "*batch 3"],
) -> Float[Array, "*batch 3 3"]:
    """Rotation matrices of axis-angle vectors (direction = axis, length = angle in radians).

    Rodrigues' formula I + sin(t)/t K + (1 - cos t)/t^2 K^2 with K the cross-product matrix of the
    vector; near zero both factors are their Taylor series, so the derivative there is finite.
    """
    v = jnp.asarray(vector, jnp.float32)
    square = jnp.sum(v * v, axis=-1)[..., None, None]
    tiny = square < 1e-4
    # The branch not taken must not divide by zero either: its derivative would be NaN.
    safe = jnp.where(tiny, 1.0, square)
    angle = jnp.sqrt(safe)
    first = jnp.where(tiny, 1 - square / 6, jnp.sin(angle) / angle)
    second = jnp.where(tiny, 0.5 - square / 24, (1 - jnp.cos(angle)) / safe)
    x, y, z = v[..., 0], v[..., 1], v[..., 2]
    zero = jnp.zeros_like(x)
    cross = jnp.stack(
        [
            jnp.stack([zero, -z, y], -1),
            jnp.stack([z, zero, -x], -1),
            jnp.stack([-y, x, zero], -1),
        ],
        -2,
    )
    identity = jnp.broadcast_to(jnp.eye(3, dtype=jnp.float32), cross.shape)
    squared = jnp.matmul(cross, cross, precision=lax.Precision.HIGHEST)
    return identity + first * cross + second * squared


def look_at(
    eye: Float[Array | ndarray, "*batch 3"],
    target: Float[Array | ndarray, "*batch 3"],
    up: Float[Array | ndarray, "*batch 3"] | tuple[float, float, float] = WORLD_UP,
) -> Float[Array, "*batch 4 4"]:
    """World-to-camera matrices of cameras at `eye` that see `target` in the image's centre.

    `up` is the world direction that points up in the image; all three are in world units. The
    result is degenerate (not a rotation) where `eye` equals `target` or `up` is parallel to the
    viewing direction.
    """
    eye = jnp.asarray(eye, jnp.float32)
    forward = _unit(jnp.asarray(target, jnp.float32) - eye)
    right = _unit(jnp.cross(forward, jnp.broadcast_to(jnp.asarray(up, jnp.float32), eye.shape)))
    down = jnp.cross(forward, right)
    rotation = jnp.stack([right, down, forward], -2)
    translation = -jnp.sum(rotation * eye[..., None, :], axis=-1, keepdims=True)
    bottom = jnp.broadcast_to(jnp.array([0.0, 0.0, 0.0, 1.0], jnp.float32), (*eye.shape[:-1], 1, 4))
    return jnp.concatenate([jnp.concatenate([rotation, translation], -1), bottom], -2)


def _unit(vector: Float[Array, "*batch 3"]) -> Float[Array, "*batch 3"]:
    return vector / jnp.maximum(length(vector, keepdims=True), _SMALL)
