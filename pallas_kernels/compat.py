"""Differences between the versions of jax that the package supports, in one place."""

from typing import Any

import jax
from jax import Array

_OLDER_EMITTERS_UNTIL = (0, 11)

__all__ = [
    "output_like",
    "quick_compiler_flags",
    "quick_compiler_options",
    "quickest_compiler_options",
    "reduce_like",
    "vary_like",
]


def quick_compiler_options() -> dict[str, Any]:
    """Options of XLA with which a program that runs only a few times is ready soonest.

    On a CPU jax 0.10 has two generations of emitters; the older one compiles our programs in two
    thirds of the time, and they run as fast. Later versions and other devices have no choice.
    """
    if jax.default_backend() != "cpu" or not _has_older_emitters():
        return {}
    return {"xla_cpu_use_fusion_emitters": False}


def quick_compiler_flags() -> tuple[str, ...]:
    """The same as words of `XLA_FLAGS`, for a process that has not asked jax for a device yet."""
    return ("--xla_cpu_use_fusion_emitters=false",) if _has_older_emitters() else ()


def _has_older_emitters() -> bool:
    version = tuple(int(part) for part in jax.__version__.split(".")[:2])
    return version < _OLDER_EMITTERS_UNTIL


def quickest_compiler_options() -> dict[str, Any]:
    """The same for a program that is mostly matrix products, which are compiled beforehand.

    On a CPU the rest of it is left as it comes, without LLVM's optimisations: ready in half the
    time, and nearly as fast. A program of gathers and scatters would take three times as long.
    """
    options = quick_compiler_options()
    return {**options, "xla_backend_optimization_level": 0} if options else {}


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


def output_like(shape: tuple[int, ...], dtype: Any, *operands: Any) -> jax.ShapeDtypeStruct:
    """A kernel's output that varies over the mesh axes that any array of the operands varies over.

    Inside shard_map a kernel's outputs must say so; elsewhere it is the plain shape and dtype.
    """
    leaves = jax.tree.leaves(operands)
    axes = frozenset().union(*(_varying(leaf) for leaf in leaves))
    if not axes:
        return jax.ShapeDtypeStruct(shape, dtype)
    if hasattr(jax.typeof(leaves[0]), "manual_axis_type"):
        kind = type(jax.typeof(leaves[0]).manual_axis_type)(varying=axes)
        return jax.ShapeDtypeStruct(shape, dtype, manual_axis_type=kind)
    return jax.ShapeDtypeStruct(shape, dtype, vma=axes)  # pyright: ignore[reportCallIssue]
