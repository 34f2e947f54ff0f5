"""A camera path built from keys: cameras to pass through, added and taken away one by one."""

import dataclasses

import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.geometry.trajectories import spline_path

# A key this near to a stored view, in its turn and as a share of the depth in view, is meant to be
# that view: clips start from stored views, and a browser gives cameras back rounded.
_SAME_TURN, _SAME_PLACE = 0.01, 0.01


@dataclasses.dataclass(frozen=True)
class KeyPath:
    """Keys in their order: world-to-camera matrices [4, 4]."""

    keys: tuple[Float[ndarray, "4 4"], ...] = ()

    def add(self, w2c: Float[Array | ndarray, "4 4"]) -> "KeyPath":
        """The path with one more key at its end."""
        return KeyPath((*self.keys, np.asarray(w2c, np.float32)))

    def without(self, number: int) -> "KeyPath":
        """The path without key `number`.

        Raises:
            InputError: when there is no such key.
        """
        if not 0 <= number < len(self.keys):
            raise InputError(f"the path has keys 0 to {len(self.keys) - 1}, not {number}")
        return KeyPath(self.keys[:number] + self.keys[number + 1 :])

    def cameras(self, frames: int) -> Float[ndarray, "f 4 4"]:
        """`frames` world-to-camera matrices of a smooth path through the keys, which starts and
        stops gently.

        Raises:
            InputError: when there are fewer than two keys.
        """
        if len(self.keys) < 2:
            raise InputError(f"a path needs at least 2 keys to pass through, not {len(self.keys)}")
        # The spline is seen from its first key; put it back where that stands.
        path = np.asarray(spline_path(np.stack(self.keys), frames)) @ self.keys[0]
        path[0] = self.keys[0]
        return path


def snap_to_view(
    w2c: Float[Array | ndarray, "4 4"], views: Float[Array | ndarray, "v 4 4"], scale: float
) -> tuple[Float[ndarray, "4 4"], int | None]:
    """The stored view that a camera all but stands at, and its number; else the camera and None.

    Args:
        w2c: the camera.
        views: those that are stored.
        scale: depth in view, world units, against which distances count.
    """
    w2c, views = np.asarray(w2c, np.float32), np.asarray(views, np.float32)
    if len(views) == 0:
        return w2c, None
    turn = np.abs(views[:, :3, :3] - w2c[None, :3, :3]).max((1, 2))
    centre = np.asarray(camera_centers(w2c))
    away = np.linalg.norm(np.asarray(camera_centers(views)) - centre[None], axis=-1) / scale
    error = np.maximum(turn / _SAME_TURN, away / _SAME_PLACE)
    nearest = int(error.argmin())
    return (views[nearest], nearest) if error[nearest] <= 1 else (w2c, None)
