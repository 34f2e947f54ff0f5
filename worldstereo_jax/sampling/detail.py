"""Pixels copied from the stereo memory where the generated frame says the same (rows S18, S21).

A latent cannot hold the finest texture, but the memory's warp has it. Where a generated frame
agrees with the warp, as far as the autoencoder lets one see, the warp's own pixels are shown. Where
the model departed from the warp (holes, moved shadows, wrong depth) its frame stays as it is.
"""

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Float

# Local difference between frame and autoencoded warp, in [-1, 1] image units, at which frame and
# warp are mixed half and half.
HALF_TRUST = 0.1


def box_mean(image: Float[Array, "f h w"], radius: int) -> Float[Array, "f h w"]:
    """Mean over a square of 2 radius + 1 pixels, over the pixels inside the image."""
    size = 2 * radius + 1
    total = lax.reduce_window(image, 0.0, lax.add, (1, size, size), (1, 1, 1), "SAME")

    # In closed form: XLA would fold the same sum over ones for seconds.
    def inside(length: int) -> Array:
        at = jnp.arange(length, dtype=jnp.float32)
        return jnp.minimum(at, radius) + jnp.minimum(length - 1 - at, radius) + 1

    height, width = image.shape[1:]
    return total / (inside(height)[None, :, None] * inside(width)[None, None, :])


def restore_detail(
    video: Float[Array, "f h w 3"],
    warp: Float[Array, "f h w 3"],
    coded_warp: Float[Array, "f h w 3"],
    hole: Float[Array, "f h w"],
) -> Float[Array, "f h w 3"]:
    """Show the memory's own pixels where generated frames agree with them.

    Args:
        video: decoded frames in [-1, 1].
        warp: the stereo memory's warp into the same cameras.
        coded_warp: the warp after encoding and decoding.
        hole: 1 where no stored view falls, 0 where one does.

    Returns:
        Frames in [-1, 1]. With `video` equal to `coded_warp` the covered pixels are `warp`'s.
    """
    difference = jnp.square(video - coded_warp).mean(-1)
    trust = 1.0 / (1.0 + box_mean(difference, 2) / HALF_TRUST**2)
    weight = trust * (1.0 - hole)
    return (video + weight[..., None] * (warp - video)).clip(-1, 1)
