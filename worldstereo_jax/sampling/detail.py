"""Pixels copied from the stereo memory where the generated frame says the same (rows S18, S21).

A latent cannot hold the finest texture, but the memory's warp has it. Where a generated frame
agrees with the warp, as far as the autoencoder lets one see, the warp's own pixels are shown. Where
the model departed from the warp (holes, moved shadows, wrong depth) its frame stays as it is. That
first guess of the mixture is corrected by a small trained network (`models/detail_mixer`).
"""

import typing

import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, PyTree
from worldstereo_jax.models.detail_mixer import DetailMixer

# Local difference between frame and autoencoded warp, in [-1, 1] image units, at which frame and
# warp are mixed half and half.
HALF_TRUST = 0.1


def box_mean(image: Float[Array, "f h w"], radius: int) -> Float[Array, "f h w"]:
    """Mean over a square of 2 radius + 1 pixels, over the pixels inside the image."""
    size = 2 * radius + 1
    total = lax.reduce_window(image, 0.0, lax.add, (1, size, size), (1, 1, 1), "SAME")

    def inside(length: int) -> Array:
        at = jnp.arange(length, dtype=jnp.float32)
        return jnp.minimum(at, radius) + jnp.minimum(length - 1 - at, radius) + 1

    height, width = image.shape[1:]
    return total / (inside(height)[None, :, None] * inside(width)[None, None, :])


def agreement(
    video: Float[Array, "f h w 3"],
    coded_warp: Float[Array, "f h w 3"],
    hole: Float[Array, "f h w"],
) -> Float[Array, "f h w"]:
    """How far generated frames say what the memory says: 1 where they are equal, 0 at holes.

    Args:
        video: decoded frames in [-1, 1].
        coded_warp: the stereo memory's warp into the same cameras, after encoding and decoding.
        hole: 1 where no stored view falls, 0 where one does.
    """
    difference = jnp.square(video - coded_warp).mean(-1)
    trust = 1.0 / (1.0 + box_mean(difference, 2) / HALF_TRUST**2)
    return trust * (1.0 - hole)


def restore_detail(
    mixer: DetailMixer,
    params: PyTree,
    video: Float[Array, "f h w 3"],
    warp: Float[Array, "f h w 3"],
    coded_warp: Float[Array, "f h w 3"],
    hole: Float[Array, "f h w"],
    enabled: Bool[Array, ""],
) -> Float[Array, "f h w 3"]:
    """Show the memory's own pixels where generated frames agree with them.

    Args:
        mixer: the network that corrects the agreement.
        params: its parameters.
        video: decoded frames in [-1, 1].
        warp: the stereo memory's warp into the same cameras.
        coded_warp: the warp after encoding and decoding.
        hole: 1 where no stored view falls, 0 where one does.
        enabled: False for a clip without the stereo memory: its frames stand for the warp, as
            one hole.

    Returns:
        Frames in [-1, 1]. With `video` equal to `coded_warp` and an untrained network the covered
        pixels are `warp`'s.
    """
    warp = jnp.where(enabled, warp, video)
    coded_warp = jnp.where(enabled, coded_warp, video)
    hole = jnp.where(enabled, hole, 1.0)
    weight = agreement(video, coded_warp, hole)
    mixed = mixer.apply({"params": params}, video, warp, coded_warp, hole, weight)
    return typing.cast(jax.Array, mixed).clip(-1, 1)
