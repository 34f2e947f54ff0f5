"""How far a point is from everything in a scene, to keep cameras in free space."""

import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.data.scene_types import Scene


def signed_distance(scene: Scene, points: Float[Array | ndarray, "n 3"]) -> Float[ndarray, "n"]:
    """Distance (m) from world points to the nearest surface, negative inside an object or wall.

    Exact outside boxes, spheres and cylinders; inside it is a lower bound of the depth, which is
    enough to reject a camera.
    """
    room_from_world = np.asarray(scene.room_from_world, np.float64)
    p = np.asarray(points, np.float64) @ room_from_world[:3, :3].T + room_from_world[:3, 3]
    half = np.asarray(scene.room_half, np.float64)
    middle = np.array([0.0, -half[1], 0.0])
    distance = (half - np.abs(p - middle)).min(-1)

    size = np.asarray(scene.box_half, np.float64)
    used = size.min(-1) > 0
    offset = p[:, None] - np.asarray(scene.box_center, np.float64)[used]
    yaw = np.asarray(scene.box_yaw, np.float64)[used]
    local = np.stack(
        [
            np.cos(yaw) * offset[..., 0] - np.sin(yaw) * offset[..., 2],
            offset[..., 1],
            np.sin(yaw) * offset[..., 0] + np.cos(yaw) * offset[..., 2],
        ],
        -1,
    )
    distance = np.minimum(distance, _box_distance(np.abs(local) - size[used]))

    radius = np.asarray(scene.sphere_radius, np.float64)
    used = radius > 0
    offset = p[:, None] - np.asarray(scene.sphere_center, np.float64)[used]
    spheres = np.linalg.norm(offset, axis=-1) - radius[used]
    distance = np.minimum(distance, spheres.min(-1, initial=np.inf))

    radius = np.asarray(scene.cylinder_radius, np.float64)
    used = radius > 0
    offset = p[:, None] - np.asarray(scene.cylinder_center, np.float64)[used]
    excess = np.stack(
        [
            np.hypot(offset[..., 0], offset[..., 2]) - radius[used],
            np.abs(offset[..., 1]) - np.asarray(scene.cylinder_half_height, np.float64)[used],
        ],
        -1,
    )
    return np.minimum(distance, _box_distance(excess))


def _box_distance(excess: np.ndarray) -> np.ndarray:
    """Distance from how far each coordinate [n, boxes, axes] lies beyond the half extent."""
    outside = np.linalg.norm(np.maximum(excess, 0.0), axis=-1)
    inside = np.minimum(excess.max(-1), 0.0)
    return (outside + inside).min(-1, initial=np.inf)
