"""The unit of estimated depth, from a few points whose places are known."""

import numpy as np

from worldstereo_jax.array_types import Float, ndarray

_FEWEST = 8


def unit_of_points(
    depth: Float[ndarray, "h w"],
    points: Float[ndarray, "n 3"],
    w2c: Float[ndarray, "4 4"],
    intrinsics: Float[ndarray, "3 3"],
) -> float | None:
    """Factor that brings a view's estimated depth to the unit of points in the view's world.

    The median ratio over the points before the view, which a minority of hidden or stray points
    does not move; None where fewer than 8 are there.

    Args:
        depth: estimated camera z, 0 where unknown.
        points: in the world's unit.
        w2c: the view's camera.
        intrinsics: its lens, in pixels of `depth`.
    """
    height, width = depth.shape
    seen = points.astype(np.float64) @ w2c[:3, :3].T + w2c[:3, 3]
    seen = seen[seen[:, 2] > 0]
    places = (seen @ intrinsics.T)[:, :2] / seen[:, 2:]
    inside = (places >= 0).all(1) & (places < [width, height]).all(1)
    x, y = places[inside].astype(int).T
    estimate, z = depth[y, x], seen[inside, 2]
    known = estimate > 0
    if known.sum() < _FEWEST:
        return None
    return float(np.median(z[known] / estimate[known]))
