"""Random cameras that every format can hold, for the tests of its readers and of their users."""

import numpy as np
from scipy.spatial.transform import Rotation

from worldstereo_jax.geometry.camera_formats import PosedCameras

SIZE = (48, 64)


def random_cameras(count: int = 6, *, seed: int = 0, size: tuple[int, int] = SIZE) -> PosedCameras:
    """Turned by any angle, a half turn about each axis included; one lens, off the middle."""
    rng = np.random.default_rng(seed)
    turns = Rotation.random(count, rng=rng).as_matrix()
    turns[1:4] = Rotation.from_rotvec(np.pi * np.eye(3)).as_matrix()[: max(count - 1, 0)]
    w2c = np.tile(np.eye(4), (count, 1, 1))
    w2c[:, :3, :3], w2c[:, :3, 3] = turns, rng.normal(size=(count, 3))
    k = np.array([[50.0, 0, 0.48 * size[1]], [0, 52.0, 0.52 * size[0]], [0, 0, 1]])
    names = tuple(f"{number:04d}.png" for number in range(count))
    return PosedCameras(w2c, np.stack([k] * count), size, names, np.arange(count) / 32 + 1.25)
