"""Pixel reprojection: the baseline without a model. Stored pixels are carried over by their depth.

Three forms, each given the same frames, depth and cameras, and each with its holes filled from
the nearest covered pixel of the same frame:

- nearest: every stored pixel falls into the one target pixel that it projects into; the nearest
  surface wins (forward, z-buffer).
- bilinear: the target's depth is splatted from all views; every target pixel is looked up in the
  view that saw its surface from the most similar direction, bilinearly, within that surface.
- splat: stored pixels become discs, depth-sorted and composited, renormalised by their cover.

Pixels that hang between two surfaces (bleeding of depth edges) are left out in all of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers, project
from worldstereo_jax.geometry.points import depth_to_points, valid_depth
from worldstereo_jax.geometry.splat import pixel_radius, render_points
from worldstereo_jax.memory.surface import between_surfaces, inverse_depth

# Disc radii in pixels. Wide: neighbours on a surface seen at equal distance overlap. Narrow: they
# touch, which keeps silhouettes and, of the radii tried on rooms (0.5, 0.75, 1.2), scores best.
_WIDE = 1.2
_NARROW = 0.5
# Depths of one surface differ by less than this share.
_SAME_SURFACE = 0.03
# Share of a bilinear footprint that must lie on the surface.
_MIN_SUPPORT = 0.25

REPROJECTIONS = ("nearest", "bilinear", "splat")


def fill_from_nearest(
    image: Float[ndarray, "h w c"], covered: Bool[ndarray, "h w"]
) -> Float[ndarray, "h w c"]:
    """Give every pixel that is not covered the colour of the nearest one that is.

    Distance is Euclidean in pixels. With nothing covered the image comes back as 0, mid-grey.
    """
    if not covered.any():
        return np.zeros_like(image)
    rows, columns = ndimage.distance_transform_edt(
        ~covered, return_distances=False, return_indices=True
    )
    return image[rows, columns]


def _world_points(depth: Array, w2c: Array, intrinsics: Array, valid: Array) -> tuple[Array, Array]:
    """Points [v, h, w, 3] of all views, and which of them lie on a surface."""
    points = jax.vmap(depth_to_points)(depth, w2c, intrinsics)
    hanging = jax.vmap(between_surfaces)(jax.vmap(inverse_depth)(depth))
    return points, valid_depth(depth) & ~hanging & valid[:, None, None]


def _forward_nearest(
    points: Array, colors: Array, known: Array, w2c: Array, intrinsics: Array, size: tuple[int, int]
) -> tuple[Array, Array]:
    height, width = size
    pixels, z = project(points, w2c, intrinsics)
    inside = (
        known & (z > 0) & jnp.all((pixels >= 0) & (pixels < jnp.array([[width, height]])), axis=-1)
    )
    column, row = jnp.floor(pixels).astype(jnp.int32).T
    place = jnp.where(inside, row * width + column, height * width)
    nearest = jnp.full((height * width,), jnp.inf, jnp.float32).at[place].min(z, mode="drop")
    wins = inside & (z == nearest.at[place].get(mode="fill", fill_value=0.0))
    # Of equal depths the first wins, so that the result is the same on every device.
    count = points.shape[0]
    winner = jnp.full((height * width,), count, jnp.int32)
    winner = winner.at[jnp.where(wins, place, height * width)].min(
        jnp.arange(count, dtype=jnp.int32), mode="drop"
    )
    image = colors.at[winner].get(mode="fill", fill_value=0.0)
    return image.reshape(height, width, -1), (winner < count).reshape(height, width)


def _splat(
    points: Array,
    colors: Array,
    known: Array,
    w2c: Array,
    intrinsics: Array,
    size: tuple[int, int],
    radius: float,
) -> tuple[Array, Array, Array]:
    """Image renormalised by cover, covered pixels, and the nearest depth."""
    render = render_points(
        points,
        jnp.concatenate([colors, jnp.ones_like(colors[:, :1])], axis=1),
        known,
        w2c,
        intrinsics,
        height=size[0],
        width=size[1],
        radius_ndc=pixel_radius(*size, radius),
    )
    cover = render.image[..., -1:]
    # A disc's rim may graze a pixel with next to no weight; such cover says nothing.
    covered = cover[..., 0] > 1e-3
    return render.image[..., :-1] / jnp.maximum(cover, 1e-3), covered, render.depth


def _look_up(
    image: Array, depth: Array, known: Array, pixels: Array, z: Array
) -> tuple[Array, Array]:
    """Bilinear colours at ``pixels`` [h, w, 2] from the taps at depth ``z``, and their weight."""
    height, width = depth.shape
    corner = jnp.floor(pixels - 0.5)
    part = pixels - 0.5 - corner
    corner = corner.astype(jnp.int32)
    total, weight = (
        jnp.zeros((*z.shape, image.shape[-1]), jnp.float32),
        jnp.zeros(z.shape, jnp.float32),
    )
    for dy in (0, 1):
        for dx in (0, 1):
            x, y = corner[..., 0] + dx, corner[..., 1] + dy
            inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            x, y = jnp.clip(x, 0, width - 1), jnp.clip(y, 0, height - 1)
            on_surface = known[y, x] & (jnp.abs(depth[y, x] - z) < _SAME_SURFACE * z)
            share_x = part[..., 0] if dx else 1.0 - part[..., 0]
            share_y = part[..., 1] if dy else 1.0 - part[..., 1]
            share = jnp.where(inside & on_surface, share_x * share_y, 0.0)
            total = total + share[..., None] * image[y, x]
            weight = weight + share
    return total / jnp.maximum(weight, 1e-6)[..., None], weight


def _backward_bilinear(
    views: tuple[Array, Array, Array, Array, Array],
    target_depth: Array,
    w2c: Array,
    intrinsics: Array,
) -> tuple[Array, Array]:
    """Colours from the view with the most similar direction, and where one was found."""
    points = depth_to_points(target_depth, w2c, intrinsics)
    eye = camera_centers(w2c)[None, None, :]
    ray = points - eye
    ray = ray / jnp.maximum(jnp.linalg.norm(ray, axis=-1, keepdims=True), 1e-9)

    def consider(best: tuple[Array, Array], view: tuple[Array, ...]) -> tuple[tuple, None]:
        image, depth, known, view_w2c, view_intrinsics = view
        color, score = best
        pixels, z = project(points, view_w2c, view_intrinsics)
        found, weight = _look_up(image, depth, known, pixels, z)
        other = points - camera_centers(view_w2c)[None, None, :]
        other = other / jnp.maximum(jnp.linalg.norm(other, axis=-1, keepdims=True), 1e-9)
        usable = (target_depth > 0) & (z > 0) & (weight >= _MIN_SUPPORT)
        likeness = jnp.where(usable, jnp.sum(ray * other, axis=-1), -jnp.inf)
        better = likeness > score
        return (
            jnp.where(better[..., None], found, color),
            jnp.where(better, likeness, score),
        ), None

    size = target_depth.shape
    start = (
        jnp.zeros((*size, views[0].shape[-1]), jnp.float32),
        jnp.full(size, -jnp.inf, jnp.float32),
    )
    (color, score), _ = jax.lax.scan(consider, start, views)
    return color, score > -jnp.inf


@functools.partial(jax.jit, static_argnames="name")
def _warp(
    name: str,
    images: Array,
    depth: Array,
    w2c: Array,
    intrinsics: Array,
    valid: Array,
    target_w2c: Array,
    target_intrinsics: Array,
) -> tuple[Array, Array]:
    """Warped frames [f, h, w, c] before filling, and which pixels [f, h, w] are covered."""
    size = (images.shape[1], images.shape[2])
    points, known = _world_points(depth, w2c, intrinsics, valid)
    cloud = (points.reshape(-1, 3), images.reshape(-1, images.shape[-1]), known.ravel())

    def one(camera: tuple[Array, Array]) -> tuple[Array, Array]:
        if name == "nearest":
            return _forward_nearest(*cloud, *camera, size)
        image, covered, wide = _splat(*cloud, *camera, size, _WIDE)
        if name == "splat":
            return image, covered
        # Small discs do not spill over silhouettes; wide ones close the gaps between them.
        _, _, narrow = _splat(*cloud, *camera, size, _NARROW)
        target_depth = jnp.where(narrow > 0, narrow, wide)
        views = (images, depth, known, w2c, intrinsics)
        return _backward_bilinear(views, target_depth, *camera)

    return jax.lax.map(one, (target_w2c, target_intrinsics))


def reproject(
    name: str,
    images: Float[Array | ndarray, "v h w c"],
    depth: Float[Array | ndarray, "v h w"],
    w2c: Float[Array | ndarray, "v 4 4"],
    intrinsics: Float[Array | ndarray, "v 3 3"],
    valid: Bool[Array | ndarray, " v"],
    target_w2c: Float[Array | ndarray, "f 4 4"],
    target_intrinsics: Float[Array | ndarray, "f 3 3"],
) -> Float[Array, "f h w c"]:
    """Carry stored pixels to the target cameras; no pixel of the result is left empty.

    Args:
        name: one of ``REPROJECTIONS``; see the module's docstring.
        images: stored frames, [-1, 1].
        depth: their depth, camera z in world units, 0 = unknown.
        w2c: their cameras, world-to-camera, OpenCV axes.
        intrinsics: in pixels of the stored frames.
        valid: which of the views hold a frame.
        target_w2c: cameras to carry them to.
        target_intrinsics: in pixels of the result, whose size is that of the stored frames.

    Returns:
        Frames; one that nothing falls into is 0, mid-grey.

    Raises:
        InputError: when name is unknown.
    """
    if name not in REPROJECTIONS:
        raise InputError(f"reprojection must be one of {', '.join(REPROJECTIONS)}, got {name!r}")
    floats = [
        jnp.asarray(array, jnp.float32)
        for array in (images, depth, w2c, intrinsics, target_w2c, target_intrinsics)
    ]
    frames, covered = _warp(name, *floats[:4], jnp.asarray(valid), *floats[4:])
    filled = [
        fill_from_nearest(frame, mask)
        for frame, mask in zip(np.asarray(frames), np.asarray(covered), strict=True)
    ]
    return jnp.asarray(np.stack(filled))
