"""Camera paths through the free space of a scene, with a chosen overlap with the first view.

All paths start at the scene's first camera, whose frame is the world's, so `w2c[0]` is exactly
the identity. How far a path goes is adjusted until the view that overlaps the first one least
still shares 30 to 90 % of its pixels with it, and no camera comes nearer than `CLEARANCE` to
anything.
"""

import dataclasses

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.data.scene_distance import signed_distance
from worldstereo_jax.data.scene_render import trace_depth
from worldstereo_jax.data.scene_types import Scene
from worldstereo_jax.errors import InputError

CLEARANCE = 0.3
"""Least distance from a camera to any surface, m."""
OVERLAP = (0.3, 0.9)
"""Allowed share of pixels seen by the first camera too, in the view where it is least."""

KINDS = ("dolly", "lateral", "orbit", "pan", "spiral", "rise")
"""Shapes of paths that `sample_trajectory` draws from."""

_CHECK_HW = (24, 40)
_START_AMPLITUDE = {
    "dolly": 1.6,
    "lateral": 0.9,
    "orbit": 0.5,
    "pan": 0.6,
    "spiral": 0.7,
    "rise": 0.6,
}


@dataclasses.dataclass(frozen=True)
class _Shape:
    """A path up to its size: kind, side (-1 left, 1 right), vertical drift (share), pace.

    `pivot` is the depth (m) looked at; `pace` blends a steady motion (0) with an eased one (1).
    """

    kind: str
    side: float
    drift: float
    pivot: float
    pace: float


def scene_intrinsics(
    scene: Scene, frames: int, *, height: int, width: int
) -> Float[Array, "{frames} 3 3"]:
    """Pinhole intrinsics (px) of the scene's field of view, principal point in the middle."""
    focal = 0.5 * width / np.tan(0.5 * float(scene.horizontal_fov))
    k = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float32)
    return jnp.tile(jnp.asarray(k)[None], (frames, 1, 1))


def _poses(
    shape: _Shape, amplitude: float, up: np.ndarray, progress: np.ndarray
) -> Float[np.ndarray, "f 4 4"]:
    """World-to-camera matrices at `progress` 0..1; amplitude in metres (radians for orbit, pan)."""
    t = progress * (1 - shape.pace) + shape.pace * progress**2 * (3 - 2 * progress)
    a, side, pivot = amplitude * t, shape.side, shape.pivot
    zero = np.zeros_like(t)
    target = np.stack([zero, zero, zero + pivot], -1)
    if shape.kind == "dolly":
        eye = np.stack([0.25 * side * a, shape.drift * a, a], -1)
        target = target + eye * np.array([0.6, 0.3, 1.0])
    elif shape.kind == "lateral":
        eye = np.stack([side * a, shape.drift * a, 0.1 * a], -1)
        target = target + eye * 0.7
    elif shape.kind == "orbit":
        eye = np.stack(
            [side * pivot * np.sin(a), shape.drift * pivot * a, pivot * (1 - np.cos(a))], -1
        )
    elif shape.kind == "pan":
        eye = np.stack([side * a, shape.drift * a, 0.3 * a], -1)
        turn = np.stack([side * np.sin(a), zero, np.cos(a)], -1)
        target = eye + pivot * turn
    elif shape.kind == "spiral":
        turn = 1.5 * np.pi * t
        eye = np.stack(
            [side * a * np.sin(turn), 0.6 * a * (1 - np.cos(turn)) * shape.drift, 0.8 * a], -1
        )
        target = target + eye * 0.3
    else:
        eye = np.stack([0.4 * side * a, -a if shape.drift > 0 else 0.6 * a, 0.2 * a], -1)
        target = target + eye * 0.3
    return _look_at(eye, target, up)


def _look_at(eye: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """World-to-camera matrices without roll. Double precision: the path is decided by thresholds,
    which float32 rounding that differs between machines should not tip."""
    z = target - eye
    z = z / np.linalg.norm(z, axis=-1, keepdims=True)
    x = np.cross(-up, z)
    x = x / np.linalg.norm(x, axis=-1, keepdims=True)
    rotation = np.stack([x, np.cross(z, x), z], -2)
    w2c = np.tile(np.eye(4), (len(eye), 1, 1))
    w2c[:, :3, :3] = rotation
    w2c[:, :3, 3] = -np.einsum("fij,fj->fi", rotation, eye)
    w2c[0] = np.eye(4)
    return w2c.astype(np.float32)


def _centres(w2c: np.ndarray) -> np.ndarray:
    return -np.einsum("fji,fj->fi", w2c[:, :3, :3], w2c[:, :3, 3])


def _trace(scene: Scene, w2c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Coarse depth [f, h, w] and the points [f, h, w, 3] it stands for."""
    height, width = _CHECK_HW
    k = scene_intrinsics(scene, len(w2c), height=height, width=width)
    depth = np.asarray(trace_depth(scene, jnp.asarray(w2c), k, height=height, width=width))
    y, x = np.mgrid[:height, :width] + 0.5
    focal = float(k[0, 0, 0])
    rays = np.stack([(x - width / 2) / focal, (y - height / 2) / focal, np.ones_like(x)], -1)
    local = rays * depth[..., None] - w2c[:, None, None, :3, 3]
    return depth, np.einsum("fji,fhwj->fhwi", w2c[:, :3, :3], local)


def _seen(scene: Scene, points: np.ndarray, w2c: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Which points [..., 3] one camera sees: inside its image and no more than 4 % behind it."""
    height, width = _CHECK_HW
    focal = 0.5 * width / np.tan(0.5 * float(scene.horizontal_fov))
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    z = np.maximum(local[..., 2], 1e-6)
    column = np.floor(focal * local[..., 0] / z + width / 2).astype(int)
    row = np.floor(focal * local[..., 1] / z + height / 2).astype(int)
    inside = (local[..., 2] > 0.05) & (column >= 0) & (column < width) & (row >= 0)
    inside &= row < height
    nearest = depth[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)]
    return inside & (z < nearest * 1.04 + 0.05)


def overlap_with_first(scene: Scene, w2c: Float[Array | ndarray, "f 4 4"]) -> Float[ndarray, "f"]:
    """Share of each view's pixels whose surface the first camera sees, measured at 24 x 40 px."""
    poses = np.asarray(w2c)
    depth, points = _trace(scene, poses)
    return _seen(scene, points, poses[0], depth[0]).mean((1, 2))


def revisited(
    scene: Scene,
    w2c: Float[Array | ndarray, "f 4 4"],
    first_clip: Float[Array | ndarray, "g 4 4"],
) -> Bool[ndarray, "f h w"]:
    """Pixels (24 x 40 per view) hidden from the first camera that the first clip then revealed."""
    poses, earlier = np.asarray(w2c), np.asarray(first_clip)
    depth, _ = _trace(scene, earlier)
    _, points = _trace(scene, poses)
    revealed = np.zeros(points.shape[:3], bool)
    for camera, seen_depth in zip(earlier[1:], depth[1:], strict=True):
        revealed |= _seen(scene, points, camera, seen_depth)
    return revealed & ~_seen(scene, points, earlier[0], depth[0])


def _fit(scene: Scene, shape: _Shape, amplitude: float, frames: int) -> np.ndarray | None:
    """The path of this shape with its amplitude adjusted to the limits, or None."""
    up = -np.asarray(scene.room_from_world, np.float64)[1, :3]
    progress, fine = np.linspace(0, 1, frames), np.linspace(0, 1, 4 * frames)
    shrinking = False
    for _ in range(10):
        fine_path = _poses(shape, amplitude, up, fine)
        clear = signed_distance(scene, _centres(fine_path)).min() > CLEARANCE
        path = _poses(shape, amplitude, up, progress)
        share = overlap_with_first(scene, path).min() if clear else 0.0
        if share < OVERLAP[0] + 0.05:
            amplitude, shrinking = amplitude * 0.8, True
        elif share > OVERLAP[1] - 0.02:
            if shrinking:
                return None
            amplitude *= 1.35
        else:
            return path
    return None


def _draw(rng: np.random.Generator, scene: Scene, kind: str | None) -> tuple[_Shape, float]:
    depth, _ = _trace(scene, np.eye(4, dtype=np.float32)[None])
    middle = depth[0, 8:16, 14:26]
    shape = _Shape(
        kind=kind if kind is not None else KINDS[int(rng.integers(len(KINDS)))],
        side=float(rng.choice([-1.0, 1.0])),
        drift=float(rng.uniform(-0.3, 0.3)),
        pivot=float(np.clip(np.median(middle), 1.5, 6.0)),
        pace=float(rng.uniform(0.0, 1.0)),
    )
    return shape, _START_AMPLITUDE[shape.kind] * float(rng.uniform(0.6, 1.5))


def _check(frames: int, kind: str | None) -> None:
    if frames < 2:
        raise InputError(f"frames is {frames}; a path needs at least 2")
    if kind is not None and kind not in KINDS:
        raise InputError(f"kind {kind!r} is no path; expected one of {', '.join(KINDS)}")


def sample_trajectory(
    seed: int,
    scene: Scene,
    frames: int,
    kind: str | None = None,
    *,
    height: int = 96,
    width: int = 160,
) -> tuple[Float[Array, "{frames} 4 4"], Float[Array, "{frames} 3 3"]]:
    """A random path: world-to-camera matrices that start at the identity, and intrinsics (px).

    `kind` is one of `KINDS`, or None to draw it. Raises InputError for another kind, for fewer
    than 2 frames, and when 32 draws fit nowhere in the scene.
    """
    _check(frames, kind)
    rng = np.random.default_rng([7, seed])
    for _ in range(32):
        path = _fit(scene, *_draw(rng, scene, kind), frames)
        if path is not None:
            k = scene_intrinsics(scene, frames, height=height, width=width)
            return jnp.asarray(path), k
    raise InputError(f"the scene has no room for a path of kind {kind or 'any'} (seed {seed})")


def sample_revisit(
    seed: int,
    scene: Scene,
    frames: int,
    kind: str | None = None,
    *,
    height: int = 96,
    width: int = 160,
) -> tuple[
    Float[Array, "{frames} 4 4"], Float[Array, "{frames} 4 4"], Float[Array, "{frames} 3 3"]
]:
    """Two paths from the same first camera, and intrinsics; the second revisits what the first saw.

    The second goes to the same side at another height and amplitude. At least 8 % of its pixels
    show surfaces that the first camera does not see and the first path reveals: there a memory
    can help, and nothing else can. Raises as `sample_trajectory` does.
    """
    _check(frames, kind)
    rng = np.random.default_rng([8, seed])
    for _ in range(32):
        shape, amplitude = _draw(rng, scene, kind)
        first = _fit(scene, shape, amplitude, frames)
        if first is None:
            continue
        drift = shape.drift - np.sign(shape.drift) * float(rng.uniform(0.2, 0.45))
        again = dataclasses.replace(shape, drift=drift, pace=float(rng.uniform(0.0, 1.0)))
        second = _fit(scene, again, amplitude * float(rng.uniform(0.8, 1.2)), frames)
        if second is not None and revisited(scene, second, first).mean() >= 0.08:
            k = scene_intrinsics(scene, frames, height=height, width=width)
            return jnp.asarray(first), jnp.asarray(second), k
    raise InputError(f"the scene has no room for a revisiting path of kind {kind or 'any'}")
