"""Differences between the versions of jax that the package supports, in one place."""

import jax
from jax import Array

__all__ = ["vary_like"]


def vary_like(x: Array, *others: Array) -> Array:
    """Mark x as varying over the mesh axes that the others vary over, inside shard_map.

    Loop carries that start as constants need it. Versions that do not track varying axes need
    nothing.
    """
    axes = set()
    for leaf in jax.tree.leaves(others):
        axes |= set(getattr(jax.typeof(leaf), "vma", ()) or ())
    axes -= set(getattr(jax.typeof(x), "vma", ()) or ())
    if not axes:
        return x
    if hasattr(jax.lax, "pcast"):
        return jax.lax.pcast(x, tuple(sorted(axes)), to="varying")
    return jax.lax.pvary(x, tuple(sorted(axes)))
