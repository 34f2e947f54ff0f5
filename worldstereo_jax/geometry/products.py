"""Products of places and small matrices that are the same on every device."""

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, ndarray


def product(
    left: Float[Array | ndarray, "..."], right: Float[Array | ndarray, "..."]
) -> Float[Array, "..."]:
    """`left @ right` in float32 whatever the device.

    A TPU rounds the factors of float32 products to bfloat16 unless told otherwise, an NVIDIA GPU to
    TF32: at 832 pixels a projected point would be off by one pixel, and by a tenth of one.
    """
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)
