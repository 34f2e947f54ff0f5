"""The point that a camera path turns about, which ties an image's depth to the path's unit."""

import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.geometry.cameras import camera_centers

# The world's origin counts as the pivot when the first camera looks at it within this angle.
_AIM_COSINE = float(np.cos(np.radians(1.0)))
# Mean squared sine of the angle between the optical axes and their common direction: below it the
# axes are so nearly parallel that where they meet is noise. 2e-3 is a turn of about 5 degrees.
_MIN_SPREAD = 2e-3
# Root mean square distance of the axes from the pivot, as a share of its depth.
_MAX_MISS = 0.1


def pivot_depth(w2c: Float[Array | ndarray, "f 4 4"]) -> float | None:
    """Depth of a path's pivot before its first camera, in the path's unit, None without a pivot.

    Paths of the official scenes are laid about the middle of what the first camera sees, so the
    pivot's depth is that of the image's middle. The pivot is the world's origin when the first
    camera looks straight at it (the official single-view layout), else the point nearest to all
    optical axes in the least-squares sense, if the axes turn and meet there.

    Args:
        w2c: world-to-camera matrices of the path.
    """
    matrices = np.asarray(w2c, np.float64)
    axes = matrices[:, 2, :3]
    centres = np.asarray(camera_centers(np.asarray(w2c, np.float32)), np.float64)
    distance = float(np.linalg.norm(centres[0]))
    if distance > 1e-6 and -(centres[0] @ axes[0]) / distance >= _AIM_COSINE:
        return distance
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    normal_matrix = across.mean(0)
    if np.linalg.eigvalsh(normal_matrix)[0] < _MIN_SPREAD:
        return None
    pivot = np.linalg.solve(normal_matrix, np.einsum("fij,fj->fi", across, centres).mean(0))
    miss = np.einsum("fij,fj->fi", across, pivot - centres)
    depth = float((pivot - centres[0]) @ axes[0])
    if depth <= 0 or np.sqrt((miss**2).sum(-1).mean()) > _MAX_MISS * depth:
        return None
    return depth
