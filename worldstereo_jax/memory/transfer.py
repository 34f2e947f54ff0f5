"""Pixels of many views carried into another camera, component by component.

Vectors are sequences of component arrays here: the loops over pixels are compiled for speed, and a
trailing axis of three would keep them from being vectorised.
"""

from collections.abc import Sequence

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.geometry.cameras import pixel_grid
from worldstereo_jax.geometry.smooth import root

Parts = Sequence[Float[Array, "..."]]
"""The components of a vector, or of one per pixel."""


def grid_parts(height: int, width: int) -> Parts:
    """x and y of all pixel centres, [1, h, w] each."""
    pixels = pixel_grid(height, width)[None]
    return pixels[..., 0], pixels[..., 1]


def vector_parts(vector: Float[Array, "v 3"]) -> Parts:
    """The components of one vector per view, [v, 1, 1] each."""
    return [vector[:, i, None, None] for i in range(3)]


def dot(left: Sequence, right: Sequence) -> Float[Array, "v h w"]:
    """Sum of the products of three components."""
    return left[0] * right[0] + left[1] * right[1] + left[2] * right[2]


def carry(
    matrix: Float[Array, "v 3 3"],
    vector: Float[Array, "v 3"],
    grid: Parts,
    inverse: Float[Array, "#v h w"],
) -> Parts:
    """Pixels with inverse depth to homogeneous pixels of the other camera.

    `matrix` and `vector` are those of `surface.pixel_transfer`, per view.
    """
    return [
        dot((*grid, 1.0), [matrix[:, i, j, None, None] for j in range(3)])
        + inverse * vector[:, i, None, None]
        for i in range(3)
    ]


def surface_jacobian(
    matrix: Float[Array, "v 3 3"],
    vector: Float[Array, "v 3"],
    slope: Parts,
    pixel: Parts,
    qz: Float[Array, "v h w"],
) -> tuple[Parts, Parts]:
    """Derivatives (by x, by y) of the x and of the y of the pixel carried over, on the surface.

    `slope` holds the derivatives of the inverse depth by x and y.
    """
    by = [
        [matrix[:, i, j, None, None] + slope[j] * vector[:, i, None, None] for i in range(3)]
        for j in (0, 1)
    ]
    rows = [[(by[j][i] - by[j][2] * pixel[i]) / qz for j in (0, 1)] for i in (0, 1)]
    return rows[0], rows[1]


def determinant(jacobian: tuple[Parts, Parts]) -> Float[Array, "v h w"]:
    """Of the 2x2 matrices; not positive where the other camera sees the surface's back."""
    (a, b), (c, d) = jacobian
    return a * d - b * c


def stretches(
    jacobian: tuple[Parts, Parts],
) -> tuple[Float[Array, "v h w"], Float[Array, "v h w"]]:
    """Singular values of the 2x2 matrices, smallest first."""
    (a, b), (c, d) = jacobian
    square = a * a + b * b + c * c + d * d
    area = jnp.abs(determinant(jacobian))
    largest = root(0.5 * (square + root(jnp.maximum(square**2 - 4.0 * area**2, 0.0))))
    return area / jnp.maximum(largest, 1e-12), largest
