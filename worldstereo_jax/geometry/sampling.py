"""Reading images between pixel centres."""

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, ndarray


def sample_bilinear(
    image: Float[Array | ndarray, "h w c"], pixels: Float[Array | ndarray, "*batch 2"]
) -> Float[Array, "*batch c"]:
    """Bilinear samples of `image` at `pixels` (x, y), whose centres lie at +0.5.

    Beyond the outermost centres the border is repeated. Pixels must be finite.
    """
    image, pixels = jnp.asarray(image), jnp.asarray(pixels)
    height, width = image.shape[:2]
    x = jnp.clip(pixels[..., 0] - 0.5, 0, width - 1)
    y = jnp.clip(pixels[..., 1] - 0.5, 0, height - 1)
    left = jnp.clip(jnp.floor(x).astype(jnp.int32), 0, max(width - 2, 0))
    top = jnp.clip(jnp.floor(y).astype(jnp.int32), 0, max(height - 2, 0))
    right, bottom = jnp.minimum(left + 1, width - 1), jnp.minimum(top + 1, height - 1)
    u, v = (x - left)[..., None], (y - top)[..., None]
    above = (1 - u) * image[top, left] + u * image[top, right]
    below = (1 - u) * image[bottom, left] + u * image[bottom, right]
    return (1 - v) * above + v * below
