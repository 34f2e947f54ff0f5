"""What lies beyond everything seen: one view continued around the world by reflection.

A camera that turns away from all stored views looks at nothing that the memories know. The best
guess without a generative model is more of the same: the view is laid on a sphere at infinity and
repeated by reflection in yaw and pitch, so that there is no seam, sky stays above, ground below,
and textures keep their grain. It depends on the direction alone, so it stays put while the camera
moves, and is the same for every clip that starts from the same view.
"""

import jax.numpy as jnp
from jax import lax
from jax.scipy.ndimage import map_coordinates

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.geometry.cameras import pixel_directions, pixel_grid
from worldstereo_jax.geometry.smooth import heading


def reflect(
    x: Float[Array, "*n"], low: Float[Array, ""], high: Float[Array, ""]
) -> Float[Array, "*n"]:
    """Fold numbers into [low, high] by reflection at both ends (a triangle wave)."""
    span = high - low
    phase = jnp.mod(x - low, 2.0 * span)
    return low + jnp.where(phase > span, 2.0 * span - phase, phase)


def mirrored_environment(
    image: Float[Array, "h w c"],
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
) -> Float[Array, "h w c"]:
    """A camera's view of the environment that one image implies (rows S17, S36).

    Args:
        image: the view that is continued.
        w2c: its camera, world to camera; only the rotation counts.
        intrinsics: its pixels.
        target_w2c: the camera that looks, world to camera; only the rotation counts.
        target_intrinsics: its pixels; its image has the size of `image`.

    Returns:
        The image itself for the view's own camera.
    """
    height, width, channels = image.shape
    rotation = jnp.matmul(w2c[:3, :3], target_w2c[:3, :3].T, precision=lax.Precision.HIGHEST)
    ray = pixel_directions(pixel_grid(height, width), target_intrinsics)
    ray = jnp.einsum("ij,hwj->hwi", rotation, ray, precision=lax.Precision.HIGHEST)
    yaw = heading(ray[..., 0], ray[..., 2])
    pitch = jnp.arctan2(ray[..., 1], jnp.hypot(ray[..., 0], ray[..., 2]))

    middle = jnp.array(
        [[0.0, height / 2], [width, height / 2], [width / 2, 0.0], [width / 2, height]]
    )
    edge = pixel_directions(middle, intrinsics)
    sides = jnp.arctan2(edge[:2, 0], edge[:2, 2])
    ends = jnp.arctan2(edge[2:, 1], jnp.hypot(edge[2:, 0], edge[2:, 2]))
    yaw = reflect(yaw, sides[0], sides[1])
    pitch = reflect(pitch, ends[0], ends[1])
    x = intrinsics[0, 0] * jnp.tan(yaw) + intrinsics[0, 2]
    # Rows bend outwards at the sides of a perspective image; the last one is repeated there.
    y = intrinsics[1, 1] * jnp.tan(pitch) / jnp.cos(yaw) + intrinsics[1, 2]
    at = [y - 0.5, x - 0.5]
    return jnp.stack(
        [map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(channels)], -1
    )
