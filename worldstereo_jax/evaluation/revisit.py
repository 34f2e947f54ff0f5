"""Which pixels of a later clip an earlier clip had shown, and what it had shown there."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.geometry.cameras import pixel_grid, project, unproject
from worldstereo_jax.geometry.sampling import sample_bilinear

EDGE = 0.02


class Revisited(NamedTuple):
    """What an earlier clip showed at the surface points of a later one.

    Attributes:
        mask: bool [g, h, w], the point was in sight of at least one earlier frame.
        image: [g, h, w, 3], its colour in the earlier frame that saw it from the most similar
            distance; 0 outside the mask.
    """

    mask: Bool[Array, "g h w"]
    image: Float[Array, "g h w 3"]


@functools.partial(jax.jit, static_argnames="tolerance")
def revisited_pixels(
    earlier_video: Float[Array | ndarray, "f h w 3"],
    earlier_depth: Float[Array | ndarray, "f h w"],
    earlier_w2c: Float[Array | ndarray, "f 4 4"],
    later_depth: Float[Array | ndarray, "g h w"],
    later_w2c: Float[Array | ndarray, "g 4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
    *,
    tolerance: float = 0.02,
) -> Revisited:
    """Look every surface point of a later clip up in an earlier one, by true geometry.

    A point counts as in sight of an earlier frame when it falls between four pixel centres of one
    smooth surface (`smooth_surface`) whose interpolated inverse depth is the point's own. So no
    colour is ever mixed from two surfaces, at the price of a seam of a pixel along depth edges.

    Args:
        earlier_video: frames to look colours up in, in [-1, 1].
        earlier_depth: their true depth (camera z), 0 where unknown.
        earlier_w2c: their cameras, world to camera.
        later_depth: true depth of the later clip, 0 where unknown (never revisited).
        later_w2c: its cameras.
        intrinsics: of all frames, pixels.
        tolerance: relative difference in inverse depth up to which a point counts as in sight.

    Returns:
        The mask and the earlier clip's colours, aligned with the later clip. Of several earlier
        frames in which a point is in sight the one at the most similar distance is taken, since
        it shows the point at the most similar scale.
    """
    earlier_depth, later_depth = jnp.asarray(earlier_depth), jnp.asarray(later_depth)
    height, width = later_depth.shape[1:]
    grid = pixel_grid(height, width)
    known = earlier_depth > 0
    inverse = jnp.where(known, 1 / jnp.where(known, earlier_depth, 1.0), 0.0)
    smooth = jax.vmap(smooth_surface)(inverse).astype(jnp.float32)
    maps = jnp.concatenate([jnp.asarray(earlier_video), jnp.stack([inverse, smooth], -1)], -1)

    def one_later(frame: tuple[Array, Array]) -> tuple[Array, Array]:
        depth, w2c = frame
        points = unproject(grid, depth, w2c, intrinsics)

        def one_earlier(view: tuple[Array, Array]) -> tuple[Array, Array]:
            view_maps, view_w2c = view
            pixels, z = project(points, view_w2c, intrinsics)
            inside = (
                (z > 0)
                & (pixels[..., 0] >= 0.5)
                & (pixels[..., 0] <= width - 0.5)
                & (pixels[..., 1] >= 0.5)
                & (pixels[..., 1] <= height - 0.5)
            )
            # Points behind the camera have no finite pixel to read at.
            found = sample_bilinear(view_maps, jnp.where(inside[..., None], pixels, 0.5))
            one_surface = found[..., 4] > 1 - 1e-5
            agrees = jnp.abs(found[..., 3] * z - 1) < tolerance
            seen = (depth > 0) & inside & one_surface & agrees
            mismatch = jnp.abs(jnp.log(jnp.where(seen, z, 1.0) / jnp.where(seen, depth, 1.0)))
            return found[..., :3], jnp.where(seen, mismatch, jnp.inf)

        colours, mismatch = jax.lax.map(one_earlier, (maps, jnp.asarray(earlier_w2c)))
        best = jnp.argmin(mismatch, axis=0)
        mask = jnp.isfinite(jnp.min(mismatch, axis=0))
        colour = jnp.take_along_axis(colours, best[None, ..., None], axis=0)[0]
        return mask, jnp.where(mask[..., None], colour, 0.0)

    mask, image = jax.lax.map(one_later, (later_depth, jnp.asarray(later_w2c)))
    return Revisited(mask=mask, image=image)


def smooth_surface(inverse: Float[Array, "h w"]) -> Bool[Array, "h w"]:
    """Where inverse depth runs on through a pixel along its row and its column.

    Inverse depth is affine in the pixel on every plane, however steep, so its second difference is
    0 there, while a depth edge shows on both its sides. Up to `EDGE` of the inverse depth passes.
    At the image's border only the direction along it is tested.
    """
    row = jnp.abs(inverse[:, :-2] - 2 * inverse[:, 1:-1] + inverse[:, 2:])
    column = jnp.abs(inverse[:-2] - 2 * inverse[1:-1] + inverse[2:])
    bend = jnp.maximum(jnp.pad(row, ((0, 0), (1, 1))), jnp.pad(column, ((1, 1), (0, 0))))
    return (inverse > 0) & (bend < EDGE * inverse)
