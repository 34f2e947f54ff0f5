"""Flicker: how much the colour at tracked surface points changes from frame to frame (row S25)."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int, ndarray
from worldstereo_jax.geometry.cameras import pixel_grid, project, unproject
from worldstereo_jax.geometry.sampling import sample_bilinear


class Flicker(NamedTuple):
    """Colour change of the points of every frame but the last, tracked into the next frame.

    change: float32 [f - 1, h, w], mean over channels of |colour difference|, 0 .. 2; 0 where not
        tracked.
    tracked: bool [f - 1, h, w], the point has depth and is in sight in the next frame.
    """

    change: Float[Array, "f_minus_1 h w"]
    tracked: Bool[Array, "f_minus_1 h w"]

    def mean(self) -> Float[Array, ""]:
        """Return the mean change over all tracked points; NaN when there is none."""
        return jnp.sum(self.change) / jnp.sum(self.tracked)


def flicker(
    video: Float[Array | ndarray, "f h w 3"],
    depth: Float[Array | ndarray, "f h w"],
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    *,
    tolerance: float = 0.02,
) -> Flicker:
    """Track every pixel's surface point into the next frame by true geometry and compare colours.

    video: frames in [-1, 1]; depth: camera z, 0 where unknown; w2c, intrinsics: the cameras that
    the depth was seen with, in pixels. tolerance: relative depth difference up to which the four
    pixels around the projected point show the same surface; a point hidden in the next frame or
    beside a depth edge there is not tracked.

    Colours are read bilinearly, so a perfectly consistent clip still changes by its texture's
    resampling loss, and gloss changes with the view: compare with the same measure on the true
    frames.
    """
    video, depth = jnp.asarray(video, jnp.float32), jnp.asarray(depth)
    w2c, intrinsics = jnp.asarray(w2c), jnp.asarray(intrinsics)
    grid = pixel_grid(*depth.shape[1:])

    def pair(i: Array) -> tuple[Array, Array]:
        points = unproject(grid, depth[i], w2c[i], intrinsics[i])
        pixels, z = project(points, w2c[i + 1], intrinsics[i + 1])
        corner, inside = _corners(pixels, *depth.shape[1:])
        # Points behind the camera have no finite pixel to read at.
        colour = sample_bilinear(video[i + 1], jnp.where(inside[..., None], pixels, 0.5))
        near, far = _depth_around(depth[i + 1], corner)
        seen = (near > z * (1 - tolerance)) & (far < z * (1 + tolerance))
        tracked = inside & seen & (z > 0) & (depth[i] > 0)
        change = jnp.mean(jnp.abs(colour - video[i]), axis=-1)
        return jnp.where(tracked, change, 0), tracked

    return Flicker(*jax.lax.map(pair, jnp.arange(len(depth) - 1)))


def _corners(
    pixels: Float[Array, "h w 2"], height: int, width: int
) -> tuple[Int[Array, "h w 2"], Bool[Array, "h w"]]:
    """Index (x, y) of the pixel up and left of each position, and whether that is inside."""
    last = jnp.array([width - 1.0, height - 1.0])[None, None]
    position = pixels - 0.5
    # Rounding must not lose the border of a picture whose camera stands still.
    inside = jnp.all((position >= -1e-3) & (position <= last + 1e-3), axis=-1)
    position = jnp.where(inside[..., None], jnp.clip(position, 0, last), 0)
    return jnp.minimum(jnp.floor(position), last - 1).astype(jnp.int32), inside


def _depth_around(
    depth: Float[Array, "h w"], corner: Int[Array, "h w 2"]
) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Return the least and the greatest depth of the four pixels around each position."""
    x, y = corner[..., 0], corner[..., 1]
    around = jnp.stack([depth[y, x], depth[y, x + 1], depth[y + 1, x], depth[y + 1, x + 1]])
    return around.min(axis=0), around.max(axis=0)
