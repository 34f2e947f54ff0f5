"""Differences between the versions of jax that the package supports, in one place."""

from typing import Any

import jax
from jax import Array

__all__ = ["reduce_like", "vary_like"]


def _varying(x: Array) -> frozenset:
    """Mesh axes that x varies over; called `vma` before jax 0.10.2, then `manual_axis_type`."""
    kind = jax.typeof(x)
    if hasattr(kind, "manual_axis_type"):
        return frozenset(kind.manual_axis_type.varying)
    return frozenset(getattr(kind, "vma", None) or ())


def vary_like(x: Array, *others: Any) -> Array:
    """Mark x as varying over the mesh axes that any array of the others varies over.

    Inside shard_map, loop carries that start as constants need it; elsewhere it does nothing.
    """
    axes = frozenset().union(*(_varying(leaf) for leaf in jax.tree.leaves(others))) - _varying(x)
    return jax.lax.pcast(x, tuple(sorted(axes)), to="varying") if axes else x


def reduce_like(cotangent: Array, primal: Array) -> Array:
    """Sum a cotangent over the mesh axes that its primal does not vary over, inside shard_map."""
    axes = _varying(cotangent) - _varying(primal)
    return jax.lax.psum(cotangent, tuple(sorted(axes))) if axes else cotangent
