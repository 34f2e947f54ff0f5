"""Gaussian noise that compiles quickly inside a large program."""

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, Key


def unit_noise(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The numbers of `jax.random.normal(key, shape)`, float32.

    Fused into one loop, the random bits and the inverse error function cost XLA's older CPU
    emitters eight seconds of compiling; a barrier between the two leaves a tenth of a second.
    """
    low = np.nextafter(np.float32(-1.0), np.float32(0.0))
    uniform = jax.random.uniform(key, shape, jnp.float32, low, 1.0)
    return np.float32(np.sqrt(2)) * jax.lax.erf_inv(jax.lax.optimization_barrier(uniform))
