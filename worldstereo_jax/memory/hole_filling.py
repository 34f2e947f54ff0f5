"""Filling the holes of a warp or render from around them, by pull and push.

The image is averaged down a pyramid counting covered pixels only (pull), then holes take the
smooth interpolation of the next coarser level (push). What a camera uncovers lies behind what hid
it, so far pixels weigh more than near ones.
"""

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float

# A surface at twice the depth of another weighs 2 to this power as much in a hole beside both.
_FAR_PREFERENCE = 4.0


def fill_holes(
    image: Float[Array, "h w c"],
    hole: Float[Array, "h w"],
    depth: Float[Array, "h w"] | None = None,
) -> Float[Array, "h w c"]:
    """Replace the holes of an image by a smooth continuation of what surrounds them.

    Args:
        image: any channels; its values in holes are not read.
        hole: 1 where there is nothing, 0 where the image is known.
        depth: camera z of known pixels; when given, holes continue the farther surface.

    Returns:
        The image, unchanged where known; 0 everywhere when nothing is known.
    """
    known = hole < 0.5
    weight = known.astype(image.dtype)
    if depth is not None:
        nearest_scale = jnp.maximum(jnp.max(jnp.where(known, depth, 0.0)), 1e-6)
        relative = jnp.clip(depth / nearest_scale, 1e-2, 1.0)
        weight = weight * relative**_FAR_PREFERENCE
    colour = jnp.where(known[..., None], image, 0.0)
    filled = _pull_push(jnp.concatenate([colour * weight[..., None], weight[..., None]], -1))
    return jnp.where(known[..., None], image, filled)


def _pull_push(premultiplied: Float[Array, "h w c1"]) -> Float[Array, "h w c"]:
    """Colours for every pixel from premultiplied colours and their weight (last channel)."""
    height, width, _ = premultiplied.shape
    own = premultiplied[..., :-1] / jnp.maximum(premultiplied[..., -1:], 1e-12)
    if min(height, width) <= 1:
        return own
    padded = jnp.pad(premultiplied, ((0, height % 2), (0, width % 2), (0, 0)))
    rows, columns = padded.shape[0] // 2, padded.shape[1] // 2
    # A sum, not a mean: pixels keep their weight, so one known pixel outweighs nothing but holes.
    pooled = padded.reshape(rows, 2, columns, 2, -1).sum((1, 3))
    coarse = _pull_push(pooled)
    upsampled = jax.image.resize(coarse, (2 * rows, 2 * columns, coarse.shape[-1]), "linear")[
        :height, :width
    ]
    return jnp.where(premultiplied[..., -1:] > 0, own, upsampled)
