"""What a mutation is, and the ways in which mechanisms are disabled.

A mutation takes what a module holds under a name and gives what stands there instead: a function
that returns its input, a constant, or less than it should.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_OURS, _KERNELS = "worldstereo_jax.", "pallas_kernels."


@dataclasses.dataclass(frozen=True)
class Mutation:
    """One disabled mechanism.

    row: number of the row. mechanism: "package.module:name", also of a method, "...:Class.name".
    what: in words. disable: from the original to what replaces it. tests: files or nodes below
    tests/, of which at least one must fail.
    """

    row: int
    mechanism: str
    what: str
    disable: Callable[[Any], Any]
    tests: tuple[str, ...]

    @property
    def short(self) -> str:
        """The mechanism without the package that nearly all share."""
        return self.mechanism.removeprefix(_OURS).replace(":", ".")

    @property
    def name(self) -> str:
        """Names the mutation in the environment of its process."""
        return f"S{self.row} {self.what}"


def returns(value: Any) -> Callable[[Any], Any]:
    """Whatever is asked, the answer is `value`."""
    return lambda original: lambda *args, **kwargs: value


def gives_back(position: int) -> Callable[[Any], Any]:
    """The argument at `position` comes back as it is."""
    return lambda original: lambda *args, **kwargs: args[position]


def then(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """What the original returns, changed."""
    return lambda original: lambda *args, **kwargs: change(original(*args, **kwargs))


def with_options(**options: Any) -> Callable[[Any], Any]:
    """The original, told `options` whatever it was told."""
    return lambda original: lambda *args, **kwargs: original(*args, **(kwargs | options))


def is_now(value: Any) -> Callable[[Any], Any]:
    """A constant with another value."""
    return lambda original: value


def without(*names: str) -> Callable[[Any], Any]:
    """The fields `names` of what the original returns are 0 (or False)."""

    def clear(found: Any) -> Any:
        return replaced(found, **{n: jnp.zeros_like(getattr(found, n)) for n in names})

    return then(clear)


def zeros(found: Any) -> Any:
    """Every array of a result, filled with 0."""
    return jax.tree.map(jnp.zeros_like, found)


def ones(found: Any) -> Any:
    """Every array of a result, filled with 1 (or True)."""
    return jax.tree.map(jnp.ones_like, found)


def replaced(found: Any, **fields: Any) -> Any:
    """A tuple with names, or a pytree, with other fields."""
    if hasattr(found, "_replace"):
        return found._replace(**fields)
    return dataclasses.replace(found, **fields)


def mutation(
    row: int, mechanism: str, what: str, disable: Callable[[Any], Any], *tests: str
) -> Mutation:
    """A line of the tables; "kernels." and all else stand for the packages' names."""
    package = _KERNELS if mechanism.startswith("kernels.") else _OURS
    return Mutation(row, package + mechanism.removeprefix("kernels."), what, disable, tests)
