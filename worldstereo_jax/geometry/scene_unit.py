"""Estimated depth in the unit of the world that camera paths run through."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.geometry.panorama_depth import agree_on_depth, share_a_centre
from worldstereo_jax.geometry.pivot import pivot_depth

# Cosine of the angle within which a view looks at a path's pivot.
_STRAIGHT = 0.95


def depth_for_paths(
    depth: Float[Array, "v h w"],
    w2c: Float[ndarray, "v 4 4"],
    intrinsics: Float[ndarray, "v 3 3"],
    paths: Sequence[Float[Array | ndarray, "f 4 4"]],
) -> Float[Array, "v h w"]:
    """Estimated depth of a scene's first views, made one world that `paths` run through.

    Views of one centre are made to agree, and all is brought to the unit of the paths.

    Args:
        depth: estimated camera z of the views.
        w2c: their cameras.
        intrinsics: theirs, in pixels.
        paths: world-to-camera matrices of the paths.
    """
    if len(depth) > 1 and share_a_centre(w2c, np.asarray(depth)):
        depth = agree_on_depth(depth, jnp.asarray(w2c), jnp.asarray(intrinsics))
    return depth * path_unit(np.asarray(depth), w2c, [np.asarray(path) for path in paths])


def path_unit(
    depth: Float[ndarray, "v h w"],
    w2c: Float[ndarray, "v 4 4"],
    paths: Sequence[Float[ndarray, "f 4 4"]],
) -> float:
    """Factor that brings estimated depth to the unit of camera paths laid through the same world.

    An estimate's unit is a guess, a path's is the scene's own. Paths turn about the middle of what
    an image shows, so the pivot's depth before the view that looks at it most directly is that
    view's middle depth. The median over the paths is taken; 1 where no path turns about a point
    that a view has before it.

    Args:
        depth: estimated camera z of the views.
        w2c: their cameras.
        paths: cameras of the paths.
    """
    factors = []
    for path in paths:
        ahead = pivot_depth(path)
        if ahead is None:
            continue
        pivot = np.linalg.inv(path[0]) @ np.array([0.0, 0.0, ahead, 1.0])
        seen = (w2c @ pivot)[:, :3]
        # A view that stands at the pivot itself looks nowhere.
        straightness = seen[:, 2] / np.maximum(np.linalg.norm(seen, axis=1), 1e-9)
        view = int(np.argmax(straightness))
        if straightness[view] >= _STRAIGHT:
            factors.append(seen[view, 2] / middle_depth(depth[view]))
    return float(np.median(factors)) if factors else 1.0


def middle_depth(depth: Float[ndarray, "h w"]) -> float:
    """Median of the known depth in the middle of an image, or of all of it."""
    height, width = depth.shape
    middle = depth[height // 4 : -(height // 4), width // 4 : -(width // 4)]
    return float(np.median(middle[middle > 0] if np.any(middle > 0) else depth[depth > 0]))
