"""vmap as a longer batch axis, instead of a loop whose every step waits for the slowest sample."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["fold_vmap"]


def fold_vmap(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, with its vmap folded into the batch axis.

    All array leaves of its arguments must have the batch as their first axis (or 1 there, shared
    by all samples), the first leaf the whole batch; its results must have the batch first too.
    """

    @jax.custom_batching.custom_vmap
    def folded(*args):
        return function(*args)

    @folded.def_vmap
    def _rule(axis_size, in_batched, *args):
        leaves, structure = jax.tree.flatten(args)
        batched = jax.tree.leaves(in_batched)
        batch = leaves[0].shape[1 if batched[0] else 0]

        def fold(x, mapped: bool):
            if not mapped and x.shape[0] == 1:
                return x
            x = x if mapped else x[None]
            return jnp.broadcast_to(x, (axis_size, batch, *x.shape[2:])).reshape(
                axis_size * batch, *x.shape[2:]
            )

        args = jax.tree.unflatten(
            structure, [fold(*pair) for pair in zip(leaves, batched, strict=True)]
        )
        out = folded(*args)
        out = jax.tree.map(lambda x: x.reshape(axis_size, batch, *x.shape[1:]), out)
        return out, jax.tree.map(lambda _: True, out)

    return folded
