"""Which pixels of a later clip an earlier clip had shown, and what it had shown there."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float
from worldstereo_jax.geometry.cameras import pixel_grid, project, unproject
from worldstereo_jax.geometry.sampling import sample_bilinear


class Revisited(NamedTuple):
    """What an earlier clip showed at the surface points of a later one.

    Attributes:
        mask: bool [g, h, w], the point was in sight of at least one earlier frame.
        image: [g, h, w, 3], its colour in the earlier frame seen from the nearest distance ratio;
            0 outside the mask.
    """

    mask: Bool[Array, "g h w"]
    image: Float[Array, "g h w 3"]


def revisited_pixels(
    earlier_video: Float[Array, "f h w 3"],
    earlier_depth: Float[Array, "f h w"],
    earlier_w2c: Float[Array, "f 4 4"],
    later_depth: Float[Array, "g h w"],
    later_w2c: Float[Array, "g 4 4"],
    intrinsics: Float[Array, "3 3"],
    *,
    tolerance: float = 0.02,
) -> Revisited:
    """Look every surface point of a later clip up in an earlier one, by true geometry.

    Args:
        earlier_video: frames to look colours up in, in [-1, 1].
        earlier_depth: their true depth.
        earlier_w2c: their cameras.
        later_depth: true depth of the later clip.
        later_w2c: its cameras.
        intrinsics: of all frames, pixels.
        tolerance: relative depth difference up to which a point counts as in sight.

    Returns:
        The mask and the earlier clip's colours, aligned with the later clip. Of several earlier
        frames in which a point is in sight the one at the most similar distance is taken, since
        it shows the point at the most similar scale.
    """
    height, width = later_depth.shape[1:]
    grid = pixel_grid(height, width)

    def one_later(frame: tuple[Array, Array]) -> tuple[Array, Array]:
        depth, w2c = frame
        points = unproject(grid, depth, w2c, intrinsics)

        def one_earlier(view: tuple[Array, Array, Array]) -> tuple[Array, Array]:
            video, view_depth, view_w2c = view
            pixels, z = project(points, view_w2c, intrinsics)
            inside = (
                (z > 0)
                & (pixels[..., 0] >= 0.5)
                & (pixels[..., 0] <= width - 0.5)
                & (pixels[..., 1] >= 0.5)
                & (pixels[..., 1] <= height - 0.5)
            )
            stacked = jnp.concatenate([video, view_depth[..., None]], axis=-1)
            found = sample_bilinear(stacked, pixels)
            seen = inside & (jnp.abs(found[..., 3] - z) < tolerance * z)
            mismatch = jnp.abs(jnp.log(jnp.maximum(z, 1e-6) / depth))
            return found[..., :3], jnp.where(seen, mismatch, jnp.inf)

        colours, mismatch = jax.lax.map(one_earlier, (earlier_video, earlier_depth, earlier_w2c))
        best = jnp.argmin(mismatch, axis=0)
        mask = jnp.isfinite(jnp.min(mismatch, axis=0))
        colour = jnp.take_along_axis(colours, best[None, ..., None], axis=0)[0]
        return mask, jnp.where(mask[..., None], colour, 0.0)

    mask, image = jax.lax.map(one_later, (later_depth, later_w2c))
    return Revisited(mask=mask, image=image)
