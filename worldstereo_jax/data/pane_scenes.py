"""A stained pane before a painted wall: two surfaces on one ray (row S24).

What a camera sees through the pane is a mixture: `opacity` times the pane's own stains, and the
rest the wall behind, each moving with its own parallax. Depth estimators tell now the one
and now the other; the truth of both is here, ray by ray.

World frame: metres, x right, y down, z forward; cameras stand near the origin.
"""

import dataclasses

import numpy as np

from worldstereo_jax.array_types import Bool, Float, ndarray
from worldstereo_jax.errors import InputError

WALL_DEPTH, PANE_DEPTH = 4.0, 2.6
_WIDTH, _HEIGHT = 0.9, 0.6  # |x| and |y| of the pane


@dataclasses.dataclass(frozen=True)
class PaneScene:
    """Numbers of one scene. waves [2, 5, 3]: of wall and pane, (x, y) frequency and phase.

    tint [2, 3]: mean colours in [0, 1]. opacity: share of the pane's own colour.
    """

    waves: Float[ndarray, "2 5 3"]
    tint: Float[ndarray, "2 3"]
    opacity: float


@dataclasses.dataclass(frozen=True)
class PaneFrames:
    """Views with their truth.

    image [f, h, w, 3] in [-1, 1], anti-aliased. depth [f, h, w]: camera z of the first surface,
    metres. behind [f, h, w]: of the wall. through [f, h, w]: the ray passes the pane.
    """

    image: Float[ndarray, "f h w 3"]
    depth: Float[ndarray, "f h w"]
    behind: Float[ndarray, "f h w"]
    through: Bool[ndarray, "f h w"]

    def alternating(self) -> Float[ndarray, "f h w"]:
        """Depth as estimators tell it: even frames see the pane, odd ones look through it."""
        even = (np.arange(len(self.depth)) % 2 == 0)[:, None, None]
        return np.where(even, self.depth, self.behind)


def make_pane_scene(seed: int) -> PaneScene:
    """A scene; the same seed gives the same numbers. Raises InputError for a negative seed."""
    if seed < 0:
        raise InputError(f"seed {seed} is negative; scenes are numbered from 0")
    rng = np.random.default_rng([11, seed])
    frequency = rng.uniform(-14, 14, (2, 5, 2))
    phase = rng.uniform(0, 2 * np.pi, (2, 5, 1))
    return PaneScene(
        waves=np.concatenate([frequency, phase], -1),
        tint=rng.uniform(0.4, 0.7, (2, 3)),
        opacity=float(rng.uniform(0.35, 0.55)),
    )


def render_pane(
    scene: PaneScene,
    w2c: Float[ndarray, "f 4 4"],
    intrinsics: Float[ndarray, "f 3 3"],
    *,
    height: int,
    width: int,
    samples: int = 2,
) -> PaneFrames:
    """The scene from every camera, `samples` x `samples` rays per pixel for its colour."""
    views = [
        (np.linalg.inv(np.asarray(pose, float)), np.asarray(k, float))
        for pose, k in zip(w2c, intrinsics, strict=True)
    ]
    fine = np.stack([_cast(scene, *view, height, width, samples)[0] for view in views])
    fine = fine.reshape(len(views), height, samples, width, samples, 3).mean((2, 4))
    centre = [_cast(scene, *view, height, width, 1)[1:] for view in views]
    depth, behind, through = (np.stack(x) for x in zip(*centre, strict=True))
    return PaneFrames(
        image=np.clip(2.0 * fine - 1.0, -1.0, 1.0).astype(np.float32),
        depth=depth.astype(np.float32),
        behind=behind.astype(np.float32),
        through=through,
    )


def _cast(
    scene: PaneScene, c2w: ndarray, k: ndarray, height: int, width: int, samples: int
) -> tuple[ndarray, ndarray, ndarray, ndarray]:
    """Colour in [0, 1], depth of the first surface and of the wall, whether the pane is met."""
    y, x = (np.mgrid[: height * samples, : width * samples] + 0.5) / samples
    local = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(k).T
    ray, eye = local @ c2w[:3, :3].T, c2w[:3, 3]
    wall, pane = ((z - eye[2]) / ray[..., 2] for z in (WALL_DEPTH, PANE_DEPTH))
    at_wall, at_pane = (eye + depth[..., None] * ray for depth in (wall, pane))
    through = (np.abs(at_pane[..., 0]) < _WIDTH) & (np.abs(at_pane[..., 1]) < _HEIGHT)
    colours = [_painted(scene, i, point) for i, point in enumerate((at_wall, at_pane))]
    share = scene.opacity * through[..., None]
    colour = (1.0 - share) * colours[0] + share * colours[1]
    return colour, np.where(through, pane, wall), wall, through


def _painted(scene: PaneScene, which: int, point: Float[ndarray, "h w 3"]) -> ndarray:
    angle = point[..., :2] @ scene.waves[which, :, :2].T + scene.waves[which, :, 2]
    light = 1.0 + 0.18 * np.sin(angle).sum(-1)
    return np.clip(scene.tint[which] * light[..., None], 0.0, 1.0)
