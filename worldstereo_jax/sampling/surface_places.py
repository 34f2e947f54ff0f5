"""Where the surfaces are that tokens show, for models whose `reference_positions` is "surface".

Tokens that show the same place then have the same rotary position, whichever views they belong to.
"""

import jax
import jax.numpy as jnp

from pallas_kernels import TokenGeometry
from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.geometry.cameras import pixel_grid, polar_places, project, unproject
from worldstereo_jax.memory.masks import TOKEN
from worldstereo_jax.sampling.world import Cameras


def surface_places(
    geometry: TokenGeometry, cameras: Cameras, around: Cameras, *, height: int, width: int
) -> Float[Array, "n 3"]:
    """Where the surfaces behind the tokens of a set of views are, in tokens around a camera.

    A token without geometry stands where its middle would be at the mean depth of the set's others,
    or at one world unit where none has any.

    Args:
        geometry: of the views' tokens [n, ...], without a batch axis.
        cameras: of these f views, n / f tokens each in raster order.
        around: the first of these cameras counts; the same for all sets that attend to each other.
        height, width: of the views in pixels.
    """
    frames = cameras.w2c.shape[0]
    middle = TOKEN * pixel_grid(height // TOKEN, width // TOKEN).reshape(-1, 2)
    position = geometry.position.reshape(frames, -1, 3)
    known = geometry.valid.reshape(frames, -1)
    depth = jax.vmap(lambda x, w2c, k: project(x, w2c, k)[1])(
        position, cameras.w2c, cameras.intrinsics
    )
    mean = jnp.where(known, depth, 0.0).sum() / jnp.maximum(known.sum(), 1)
    mean = jnp.where(mean > 0, mean, 1.0)
    guess = jax.vmap(lambda w2c, k: unproject(middle, jnp.full(middle.shape[:1], mean), w2c, k))(
        cameras.w2c, cameras.intrinsics
    )
    points = jnp.where(known[..., None], position, guess).reshape(-1, 3)
    return polar_places(points, around.w2c[0], around.intrinsics[0], step=TOKEN)
