"""Camera paths: named presets around or past a pivot, and a spline through given cameras.

Every path starts at the identity (the world is the first camera's frame), has its pivot on that
camera's axis at depth `pivot_depth`, and starts and stops gently. Distances are proportional to
`pivot_depth`, so a path looks the same whatever the scene's unit.
"""

import math
from collections.abc import Callable

import jax
import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.errors import InputError, unknown_name
from worldstereo_jax.geometry.cameras import camera_centers, invert_rigid, relative_to_first
from worldstereo_jax.geometry.rotations import (
    look_at,
    matrix_from_quaternion,
    quaternion_from_matrix,
)

_ORBIT_DEGREES = 20.0
_PAN_DEGREES = 25.0
_ARC_DEGREES = 16.0
DOLLY = 0.35
"""How far the path "dolly" goes at amplitude 1, as a share of the pivot's depth."""
_SPIRAL_RADIUS = 0.22
_LOOP_RADII = (0.25, 0.12)

LARGEST_AMPLITUDE = 1000
"""Far beyond any use; cameras still farther away are lost to float32."""

# A preset takes (t[f] in 0..1, amplitude) and gives eyes and targets [f, 3] for a pivot at depth 1.
_Preset = Callable[[ndarray, float], tuple[ndarray, ndarray]]


def _on_sphere(yaw: ndarray, pitch: ndarray) -> tuple[ndarray, ndarray]:
    """Cameras at distance 1 from the pivot, all looking at it; angles in radians."""
    pivot = np.array([0.0, 0.0, 1.0])
    eye = np.stack(
        [np.sin(yaw) * np.cos(pitch), -np.sin(pitch), 1 - np.cos(yaw) * np.cos(pitch)], -1
    )
    return eye, np.broadcast_to(pivot, eye.shape)


def _orbit(t: ndarray, amplitude: float) -> tuple[ndarray, ndarray]:
    """Swing about the vertical through the pivot: right, back through the start, left, back."""
    yaw = math.radians(_ORBIT_DEGREES) * amplitude * np.sin(2 * np.pi * t)
    return _on_sphere(yaw, np.zeros_like(t))


def _dolly(t: ndarray, amplitude: float) -> tuple[ndarray, ndarray]:
    """Straight ahead; backwards when the amplitude is negative."""
    eye = np.stack([0 * t, 0 * t, DOLLY * amplitude * t], -1)
    return eye, eye + np.array([0.0, 0.0, 1.0])


def _pan(t: ndarray, amplitude: float) -> tuple[ndarray, ndarray]:
    """Turn to the right on the spot; the centre does not move."""
    yaw = math.radians(_PAN_DEGREES) * amplitude * t
    eye = np.zeros((*t.shape, 3))
    return eye, eye + np.stack([np.sin(yaw), 0 * t, np.cos(yaw)], -1)


def _spiral(t: ndarray, amplitude: float) -> tuple[ndarray, ndarray]:
    """One turn of growing radius while moving ahead, looking at the pivot."""
    radius = _SPIRAL_RADIUS * amplitude * t
    turn = 2 * np.pi * t
    ahead = 0.5 * DOLLY * min(abs(amplitude), 1.5) * t
    eye = np.stack([radius * np.sin(turn), -radius * np.cos(turn), ahead], -1)
    return eye, np.broadcast_to(np.array([0.0, 0.0, 1.0]), eye.shape)


def _arc(yaw_sign: float, pitch_sign: float) -> _Preset:
    def preset(t: ndarray, amplitude: float) -> tuple[ndarray, ndarray]:
        angle = math.radians(_ARC_DEGREES) * amplitude * t
        return _on_sphere(yaw_sign * angle, pitch_sign * angle)

    return preset


def _loop(t: ndarray, amplitude: float) -> tuple[ndarray, ndarray]:
    """An ellipse across the viewing direction that ends where it began, looking at the pivot."""
    turn = 2 * np.pi * t
    eye = np.stack(
        [
            _LOOP_RADII[0] * amplitude * np.sin(turn),
            _LOOP_RADII[1] * amplitude * (np.cos(turn) - 1),
            0 * t,
        ],
        -1,
    )
    return eye, np.broadcast_to(np.array([0.0, 0.0, 1.0]), eye.shape)


_PRESETS: dict[str, _Preset] = {
    "orbit": _orbit,
    "dolly": _dolly,
    "pan": _pan,
    "spiral": _spiral,
    "up": _arc(0.0, 1.0),
    "left": _arc(-1.0, 0.0),
    "right": _arc(1.0, 0.0),
    "loop": _loop,
}

PATHS = (*_PRESETS, "spline")
"""Names that `make_path` knows."""


def path_names() -> tuple[str, ...]:
    """Names of the paths that need no cameras to go through: all of `PATHS` but "spline"."""
    return tuple(_PRESETS)


def make_path(
    name: str,
    frames: int,
    *,
    amplitude: float = 1.0,
    pivot_depth: float = 1.0,
    keyframes: Float[Array | ndarray, "k 4 4"] | None = None,
) -> Float[Array, "f 4 4"]:
    """World-to-camera matrices [frames, 4, 4] of a named path; the first is the identity.

    For plain Python: none of its arguments can be traced.

    name: one of `PATHS`. orbit swings right and left about the pivot; dolly moves ahead; pan turns
        right on the spot; spiral circles outwards while moving ahead; up, left and right arc about
        the pivot; loop returns to its start; spline passes through `keyframes`.
    amplitude: 1 is a moderate move; 0 stands still; negative mirrors it (spiral's advance aside).
    pivot_depth: depth of the pivot before the first camera, in world units, > 0.
    keyframes: world-to-camera matrices [k, 4, 4], k >= 2, for "spline" only.

    Raises InputError for an unknown name (with the nearest one), fewer than 2 frames, an amplitude
    or depth that is no usable number, and keyframes missing or out of place.
    """
    if name not in PATHS:
        raise InputError(unknown_name("camera path", name, PATHS))
    if frames < 2:
        raise InputError(f"A camera path needs at least 2 frames, not {frames}.")
    if not abs(amplitude) <= LARGEST_AMPLITUDE:
        raise InputError(
            f"The amplitude of a camera path must be a finite number from {-LARGEST_AMPLITUDE} to "
            f"{LARGEST_AMPLITUDE}, not {amplitude}."
        )
    if not (math.isfinite(pivot_depth) and pivot_depth > 0):
        raise InputError(f"The pivot depth of a camera path must be positive, not {pivot_depth}.")
    if name == "spline":
        if keyframes is None:
            raise InputError(
                "The path 'spline' needs cameras to pass through, and none were given."
            )
        return spline_path(keyframes, frames)
    if keyframes is not None:
        raise InputError(f"Only the path 'spline' takes cameras to pass through, not '{name}'.")
    eye, target = _PRESETS[name](ease(np.linspace(0.0, 1.0, frames)), amplitude)
    if np.any(np.linalg.norm(eye - target, axis=-1) < 0.05) or np.any(_vertical(eye, target)):
        raise InputError(
            f"The amplitude {amplitude} of the path '{name}' is too large: the camera would run "
            "into its pivot or turn over."
        )
    # look_at is scale free but for the translation.
    return _from_first(
        (eye * pivot_depth).astype(np.float32), (target * pivot_depth).astype(np.float32)
    )


def spline_path(keyframes: Float[Array | ndarray, "k 4 4"], frames: int) -> Float[Array, "f 4 4"]:
    """A smooth path [frames, 4, 4] through world-to-camera keyframes, seen from the first one."""
    if keyframes.shape[0] < 2:
        raise InputError(
            f"A spline needs at least 2 cameras to pass through, not {keyframes.shape[0]}."
        )
    at = ease(np.linspace(0.0, 1.0, frames)) * (keyframes.shape[0] - 1)
    return relative_to_first(interpolate_cameras(keyframes, at))


def interpolate_cameras(
    keyframes: Float[Array | ndarray, "k 4 4"], at: Float[ndarray, "f"]
) -> Float[Array, "f 4 4"]:
    """Cameras [f, 4, 4] at real positions `at` in 0..k-1 along keyframes; exact at whole numbers.

    Catmull-Rom on the camera centres and on the quaternions, whose signs are first made to agree
    and whose length is restored: continuous velocity, and the keyframes themselves are reached.
    """
    centres = np.asarray(camera_centers(keyframes), np.float64)
    quaternions = np.array(quaternion_from_matrix(keyframes[:, :3, :3]), np.float64)
    for i in range(1, len(quaternions)):
        if quaternions[i] @ quaternions[i - 1] < 0:
            quaternions[i] = -quaternions[i]
    centre = _catmull_rom(centres, at).astype(np.float32)
    rotation = np.asarray(matrix_from_quaternion(_catmull_rom(quaternions, at)))
    c2w = np.zeros((len(at), 4, 4), np.float32)
    # The quaternions are those of world-to-camera rotations.
    c2w[:, :3, :3] = np.swapaxes(rotation, -1, -2)
    c2w[:, :3, 3] = centre
    c2w[:, 3, 3] = 1
    return invert_rigid(c2w)


def ease(t: Float[ndarray, "f"]) -> Float[ndarray, "f"]:
    """Smoothstep 3 t^2 - 2 t^3 of t in 0..1: velocity zero at both ends, 0.5 stays 0.5."""
    return t * t * (3 - 2 * t)


def _catmull_rom(values: ndarray, at: ndarray) -> ndarray:
    """Values [k, c] at real positions [f]; the ends are extended by reflection."""
    padded = np.concatenate(
        [2 * values[:1] - values[1:2], values, 2 * values[-1:] - values[-2:-1]], axis=0
    )
    index = np.clip(np.floor(at).astype(int), 0, len(values) - 2)
    u = (at - index)[:, None]
    a, b, c, d = (padded[index + i] for i in range(4))
    return b + 0.5 * u * (c - a + u * (2 * a - 5 * b + 4 * c - d + u * (3 * (b - c) + d - a)))


@jax.jit
def _from_first(eye: Float[Array, "f 3"], target: Float[Array, "f 3"]) -> Float[Array, "f 4 4"]:
    """The path of cameras at `eye` that look at `target`, from the first one."""
    return relative_to_first(look_at(eye, target))


def _vertical(eye: ndarray, target: ndarray) -> ndarray:
    """Whether cameras look so steeply up or down (more than 85 degrees) that up is undefined."""
    forward = target - eye
    return np.abs(forward[:, 1]) > math.sin(math.radians(85)) * np.linalg.norm(forward, axis=-1)
