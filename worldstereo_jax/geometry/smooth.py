"""Roots, lengths and angles whose derivatives are finite where those of the textbook are not.

The square root at 0, the length of a zero vector and the angle whose cosine is 1 have finite values
and no derivative; automatic differentiation makes NaN of them, also where the result is masked out
afterwards. Empty slots, unknown depth, a camera at rest and a surface seen head-on all come to such
a point. Here the derivative there is 0, the mean of what it is on either side. Values are those of
`jnp.sqrt`, `jnp.linalg.norm`, `jnp.arccos` and `jnp.arctan2`, bit by bit: only the derivatives'
rules are other ones.
"""

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float


@jax.custom_jvp
def root(square: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Square root; its derivative at 0 is 0."""
    return jnp.sqrt(square)


@root.defjvp
def _root_rule(
    primals: tuple[Float[Array, "*n"]], tangents: tuple[Float[Array, "*n"]]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    value = root(*primals)
    return value, _share(0.5, value) * tangents[0]


def length(vector: Float[Array, "*n c"], *, keepdims: bool = False) -> Float[Array, "..."]:
    """Euclidean length along the last axis; that of the zero vector has derivative 0."""
    return root(jnp.sum(vector * vector, axis=-1, keepdims=keepdims))


@jax.custom_jvp
def arc_cosine(cosine: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Angle in radians of a cosine in [-1, 1]; at both ends its derivative is 0."""
    return jnp.arccos(cosine)


@arc_cosine.defjvp
def _arc_cosine_rule(
    primals: tuple[Float[Array, "*n"]], tangents: tuple[Float[Array, "*n"]]
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    (cosine,) = primals
    sine = root(jnp.maximum(1.0 - cosine * cosine, 0.0))
    return arc_cosine(cosine), _share(-1.0, sine) * tangents[0]


@jax.custom_jvp
def heading(y: Float[Array, "*n"], x: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """`arctan2` of two arrays of one shape; at the origin both its derivatives are 0."""
    return jnp.arctan2(y, x)


@heading.defjvp
def _heading_rule(
    primals: tuple[Float[Array, "*n"], Float[Array, "*n"]],
    tangents: tuple[Float[Array, "*n"], Float[Array, "*n"]],
) -> tuple[Float[Array, "*n"], Float[Array, "*n"]]:
    y, x = primals
    square = x * x + y * y
    return heading(y, x), _share(x, square) * tangents[0] - _share(y, square) * tangents[1]


def _share(part: Float[Array, "*n"] | float, whole: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """A quotient that is 0 where it would be divided by 0."""
    there = whole != 0
    return jnp.where(there, part / jnp.where(there, whole, 1.0), 0.0)
