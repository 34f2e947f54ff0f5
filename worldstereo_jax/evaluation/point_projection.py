"""Projection in numpy, for numbers of points that change from call to call.

jax would compile every operation anew for each of them; a matcher's pairs alone are hundreds.
"""

import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray


def project_points(
    points: Float[ndarray, "n 3"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
) -> tuple[Float[ndarray, "n 2"], Float[ndarray, "n"]]:
    """Pixels (x, y) and depth of world points, as `geometry.cameras.project`, in float64."""
    w2c, k = np.asarray(w2c, np.float64), np.asarray(intrinsics, np.float64)
    local = np.asarray(points, np.float64) @ w2c[:3, :3].T + w2c[:3, 3]
    depth = local[:, 2]
    safe = np.where(np.abs(depth) > 1e-8, depth, 1e-8)
    return (local @ k.T)[:, :2] / safe[:, None], depth


def unproject_pixels(
    pixels: Float[ndarray, "n 2"],
    depth: Float[ndarray, "n"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
) -> Float[ndarray, "n 3"]:
    """World points at a depth behind pixels, as `geometry.cameras.unproject`, in float64."""
    w2c, k = np.asarray(w2c, np.float64), np.asarray(intrinsics, np.float64)
    pixels = np.concatenate([np.asarray(pixels, np.float64), np.ones((len(pixels), 1))], axis=1)
    local = pixels @ np.linalg.inv(k).T * np.asarray(depth, np.float64)[:, None]
    return (local - w2c[:3, 3]) @ w2c[:3, :3]
