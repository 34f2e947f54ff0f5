"""Classifier-free guidance (Ho and Salimans 2022): v = u + scale (c - u).

c is the velocity under the positive conditions, u under the negative ones. The two forms give the
same result: `guide_two_pass` needs the memory of one evaluation, `guide_one_batch` evaluates once
on twice the batch.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array
from worldstereo_jax.sampling.loop import VelocityFn

ConditionedVelocityFn = Callable[[Any, Array, Array, Array], Array]
"""(conditions, x [b, ...], timestep scalar, sigma scalar) -> velocity [b, ...]."""


def guide_two_pass(
    velocity_fn: ConditionedVelocityFn, positive: Any, negative: Any, scale: float | int | Array
) -> VelocityFn:
    """Return the guided velocity function, one evaluation per set of conditions.

    positive, negative: pytrees that `velocity_fn` takes, of the same structure and shapes; in the
        official model they differ only in the text.
    """

    def guided(x: Array, timestep: Array, sigma: Array) -> Array:
        # A loop: one evaluation is compiled, and never do two stand in memory.
        both = jax.tree.map(lambda *pair: jnp.stack(pair), positive, negative)
        conditional, unconditional = jax.lax.map(
            lambda conditions: velocity_fn(conditions, x, timestep, sigma), both
        )
        return _guided(conditional, unconditional, scale)

    return guided


def guide_one_batch(
    velocity_fn: ConditionedVelocityFn, positive: Any, negative: Any, scale: float | int | Array
) -> VelocityFn:
    """Return the guided velocity function, one evaluation of [positive ; negative] stacked.

    positive, negative: pytrees of the same structure whose every array has the batch first.
    """

    def guided(x: Array, timestep: Array, sigma: Array) -> Array:
        both = jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=0), positive, negative)
        velocity = velocity_fn(both, jnp.concatenate([x, x], axis=0), timestep, sigma)
        conditional, unconditional = jnp.split(velocity, 2, axis=0)
        return _guided(conditional, unconditional, scale)

    return guided


def _guided(conditional: Array, unconditional: Array, scale: float | int | Array) -> Array:
    # An array that is the scale must not widen the velocities, which a number does not.
    scale = jnp.asarray(scale, conditional.dtype)
    return unconditional + scale * (conditional - unconditional)
