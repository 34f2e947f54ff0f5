"""One depth for many views of one place: views that share a centre are made to agree.

A monocular estimate has a scale of its own in every view. From one centre the views' rays are the
same rays, so the distance along each must be too: scales are found by least squares over all
overlaps, and the remaining differences are blended away as in a stitched panorama.
"""

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.geometry.cameras import camera_centers, pixel_directions, pixel_grid
from worldstereo_jax.geometry.sampling import sample_bilinear

# Centres count as one when they lie within this share of the median depth of each other.
_SAME_CENTRE = 1e-3
# Power of the window that fades a view out towards its border: the higher, the more a ray's
# distance comes from the one view that has it nearest its middle.
_WINDOW_POWER = 4.0
# Holds the scale of a view that overlaps no other at 1, and nothing else.
_ANCHOR = 1e-6


def share_a_centre(w2c: Float[Array | ndarray, "v 4 4"], depth: Float[ndarray, "v h w"]) -> bool:
    """Whether views with this depth (camera z, world units) stand at one place."""
    centres = np.asarray(camera_centers(w2c))
    known = depth[depth > 0]
    if len(known) == 0:
        return False
    spread = np.linalg.norm(centres - centres.mean(0), axis=1).max()
    return bool(spread <= _SAME_CENTRE * np.median(known))


@jax.jit
def agree_on_depth(
    depth: Float[Array, "v h w"],
    w2c: Float[Array, "v 4 4"],
    intrinsics: Float[Array, "v 3 3"],
) -> Float[Array, "v h w"]:
    """Depth of views with one centre, made consistent along shared rays.

    Per-view scales minimise the squared differences of log distance over all overlaps, with the
    mean log scale kept; then every ray takes the weighted mean of all views that have it. Views
    weigh most in their middle, where the estimate is best and no border is near.

    Args:
        depth: estimated camera z of every pixel, > 0.
        w2c: world to camera; the centres are taken to be one (see `share_a_centre`).
        intrinsics: pixels.

    Returns:
        Camera z. With views that agree already it is `depth`, up to resampling.
    """
    views, height, width = depth.shape
    grid = pixel_grid(height, width)
    rays = jax.vmap(lambda k: pixel_directions(grid, k))(intrinsics)
    length = jnp.linalg.norm(rays, axis=-1)
    log_distance = jnp.log(jnp.maximum(depth, 1e-12) * length)
    across = 1.0 - jnp.abs(2.0 * grid[..., 0] / width - 1.0)
    down = 1.0 - jnp.abs(2.0 * grid[..., 1] / height - 1.0)
    window = (across * down) ** _WINDOW_POWER
    rotation = w2c[:, :3, :3]

    def seen_by(view: Array, other: Array) -> tuple[Array, Array]:
        """Log distance that `other` gives the rays of `view`, and its weight there."""
        turn = jnp.matmul(rotation[other], rotation[view].T, precision="highest")
        direction = jnp.einsum("ij,hwj->hwi", turn, rays[view], precision="highest")
        ahead = direction[..., 2] > 1e-3
        z = jnp.where(ahead, direction[..., 2], 1.0)
        x, y = direction[..., 0] / z, direction[..., 1] / z
        k = intrinsics[other]
        pixels = jnp.stack([k[0, 0] * x + k[0, 1] * y + k[0, 2], k[1, 1] * y + k[1, 2]], -1)
        inside = ahead & (pixels >= 0.5).all(-1)
        inside &= (pixels[..., 0] <= width - 0.5) & (pixels[..., 1] <= height - 0.5)
        pixels = jnp.where(inside[..., None], pixels, 0.5)
        maps = jnp.stack([log_distance[other], window], -1)
        found = sample_bilinear(maps, pixels)
        return found[..., 0], jnp.where(inside, found[..., 1], 0.0)

    everyone = jnp.arange(views)

    def compare(view: Array) -> tuple[Array, Array]:
        def with_other(other: Array) -> tuple[Array, Array]:
            value, weight = seen_by(view, other)
            weight = weight * window
            return (weight * (log_distance[view] - value)).sum(), weight.sum()

        return jax.lax.map(with_other, everyone)

    difference, weight = jax.lax.map(compare, everyone)
    own = jnp.eye(views, dtype=bool)
    difference, weight = jnp.where(own, 0.0, difference), jnp.where(own, 0.0, weight)
    # Each pair is met from both sides, on both pixel grids; both count.
    weight, difference = weight + weight.T, difference - difference.T
    total = jnp.maximum(weight.sum(), 1e-12)
    laplacian = (jnp.diag(weight.sum(1)) - weight) / total + _ANCHOR * jnp.eye(
        views, dtype=jnp.float32
    )
    shift = jnp.linalg.solve(laplacian, -difference.sum(1) / total)
    shift = shift - shift.mean()

    def blend(view: Array) -> Array:
        def add(state: tuple[Array, Array], other: Array):
            value, weight = seen_by(view, other)
            return (state[0] + weight * (value + shift[other]), state[1] + weight), None

        start = (
            1e-9 * (log_distance[view] + shift[view]),
            jnp.full((height, width), 1e-9, jnp.float32),
        )
        (value, weight), _ = jax.lax.scan(add, start, everyone)
        return jnp.exp(value / weight) / length[view]

    return jax.lax.map(blend, everyone)
