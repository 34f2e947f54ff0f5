"""Gaussian noise that compiles quickly inside a large program."""

import math

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, Key


def unit_noise(key: Key[Array, ""], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """The numbers of `jax.random.normal(key, shape)`, float32.

    Drawn in one row: the counters of an array of five axes cost XLA's older CPU emitters seven
    seconds of compiling, those of a row a tenth of a second.
    """
    return jax.random.normal(key, (math.prod(shape),), jnp.float32).reshape(shape)
