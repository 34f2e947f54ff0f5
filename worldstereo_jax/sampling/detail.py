"""Pixels of the stereo memory's warp in generated frames: its texture, and calm where it has none.

A latent cannot hold the finest texture, but the memory's warp has it (rows S18, S21). Where a
generated frame agrees with the warp, as far as the autoencoder lets one see, the warp's own pixels
are shown. Where the model departed from the warp (moved shadows, wrong depth) its frame stays.

Where nothing was ever seen the small model corrects the filled warp token by token, and tokens far
from all evidence disagree: their grid shows. What neighbours agree on is kept, the rest is not.
"""

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Float

# Local difference between frame and autoencoded warp, in [-1, 1] image units, at which frame and
# warp are mixed half and half.
HALF_TRUST = 0.1
# Pixels to either side over which corrections of the unseen are averaged, twice: a token's side.
_GUESS_RADIUS = 8


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


def calm_guesses(
    video: Float[Array, "f h w 3"],
    warp: Float[Array, "f h w 3"],
    coded_warp: Float[Array, "f h w 3"],
    unseen: Float[Array, "f h w"],
) -> Float[Array, "f h w 3"]:
    """Keep of the model's corrections to what was never seen what is broader than a token.

    Args:
        video: decoded frames in [-1, 1].
        warp: the stereo memory's warp with its holes filled.
        coded_warp: the warp after encoding and decoding.
        unseen: 1 where neither memory shows anything, 0 elsewhere.

    Returns:
        Frames in [-1, 1], those of `video` where something was seen.
    """
    frames, height, width, _ = video.shape
    correction = jnp.moveaxis(video - coded_warp, -1, 0).reshape(-1, height, width)
    broad = box_mean(box_mean(correction, _GUESS_RADIUS), _GUESS_RADIUS)
    calm = warp + jnp.moveaxis(broad.reshape(3, frames, height, width), 0, -1)
    return jnp.where(unseen[..., None] > 0.5, calm, video).clip(-1, 1)
