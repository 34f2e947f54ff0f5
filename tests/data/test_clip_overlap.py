"""Overlap of views of a wall that can be worked out by hand, and windows chosen by it."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from worldstereo_jax.data.clip_overlap import coarse_size, overlaps, shown_again
from worldstereo_jax.data.clip_windows import Window, candidates, draw_window, overlapping_window
from worldstereo_jax.data.posed_clips import PosedClip
from worldstereo_jax.geometry.sparse_depth import unit_of_points

HEIGHT, WIDTH = 16, 32
# At depth 2 the image is as wide as 4 units, and as high as 2.
K = np.array([[16.0, 0, 16], [0, 16, 8], [0, 0, 1]], np.float32)
WALL = np.full((HEIGHT, WIDTH), 2, np.float32)


def shifted(*right: float) -> np.ndarray:
    """Cameras so far to the right of the first."""
    w2c = np.tile(np.eye(4, dtype=np.float32), (len(right), 1, 1))
    w2c[:, 0, 3] = -np.array(right)
    return w2c


def lenses(w2c: np.ndarray) -> np.ndarray:
    return np.stack([K] * len(w2c))


def test_a_wall_is_left_by_as_much_as_the_camera_moves():
    w2c = shifted(0, 1, 2, 3.5, 5)
    shares = shown_again(WALL, w2c, lenses(w2c))
    np.testing.assert_allclose(shares, [1, 0.75, 0.5, 0.125, 0])
    # In any world, and whatever the rows that are unknown.
    world = np.eye(4, dtype=np.float32)
    world[:3, :3] = [[0, -1, 0], [1, 0, 0], [0, 0, 1]]
    world[:3, 3] = [5, 6, 7]
    part = WALL.copy()
    part[:5] = 0
    np.testing.assert_allclose(shown_again(part, w2c @ world, lenses(w2c)), shares, atol=0.04)
    # A camera that has turned round shows nothing, and nothing known is nothing shown.
    back = shifted(0, 0)
    back[1, :3, :3] = np.diag([-1, 1, -1])
    np.testing.assert_array_equal(shown_again(WALL, back, lenses(back)), [1, 0])
    np.testing.assert_array_equal(shown_again(0 * WALL, back, lenses(back)), [0, 0])


def test_known_depth_hides_what_lies_behind_it():
    w2c = shifted(0, 0, 0)
    depth = np.stack([WALL, WALL, WALL])
    depth[1, :, :8] = 1.0
    depth[2, :, :8] = 0
    depth[1, :, 8:16] = 1.95
    np.testing.assert_allclose(shown_again(WALL, w2c, lenses(w2c), depth), [1, 0.75, 1])


def test_the_least_share_decides():
    assert overlaps(np.array([0.95, 0.5]))
    assert overlaps(np.array([0.3]))
    assert not overlaps(np.array([0.95, 0.2]))
    assert not overlaps(np.array([0.95, 0.97]))
    assert overlaps(np.array([0.97]), (0.9, 1.0))
    assert coarse_size(480, 832) == (32, 55)
    assert coarse_size(16, 32) == (16, 32)


@dataclasses.dataclass(frozen=True)
class Nothing:
    def read(self, chosen):
        raise AssertionError("a size that is known need not be read from frames")


@dataclasses.dataclass(frozen=True)
class Walls:
    def read(self, chosen):
        return [WALL for _ in chosen]


def video(step: float, frames: int = 40, maps=None) -> PosedClip:
    w2c = shifted(*(step * np.arange(frames)))
    return PosedClip(Path("a"), w2c, lenses(w2c), (HEIGHT, WIDTH), "", Nothing(), maps, None)


@pytest.mark.parametrize("maps", [None, Walls()])
def test_windows_and_views_that_overlap_are_kept(maps):
    # A clip of 6 frames ends 5 steps away from its first: at 0.2 a step it shows 0.75 of it.
    rng = np.random.default_rng(0)

    def drawn(step: float):
        one = video(step, maps=maps)
        return (draw_window(one, 6, candidates(3), rng, spread=False) for _ in range(4))

    kept = overlapping_window(drawn(0.2), lambda window: WALL, (0.3, 0.9))
    assert kept is not None
    assert len(kept.frames) == 6
    assert len(kept.views) > 0
    away = 0.2 * np.abs(kept.views - kept.frames[0]) / 4
    assert (1 - away >= 0.3 - 0.02).all()
    assert (1 - away <= 0.9 + 0.02).all()
    for step in (0.01, 0.7):
        assert overlapping_window(drawn(step), lambda window: WALL, (0.3, 0.9)) is None
    # Four times as far away, a step is a quarter as long, and what is nearer hides it.
    far = overlapping_window(drawn(0.7), lambda window: 4 * WALL, (0.3, 0.9))
    assert (far is None) == (maps is not None)


def test_a_window_without_other_frames_has_no_views():
    one = Window(video(0.2, frames=6), np.arange(6), np.arange(0))
    kept = overlapping_window([one], lambda window: WALL, (0.3, 0.9))
    assert kept is not None
    assert len(kept.views) == 0


def test_points_give_estimated_depth_its_unit():
    rng = np.random.default_rng(1)
    x, y = rng.uniform(-1.9, 1.9, 30), rng.uniform(-0.9, 0.9, 30)
    points = np.stack([x, y, np.full(30, 2.0)], -1) * 10
    # Hidden, stray and behind the camera.
    stray = np.array([[0, 0, 50.0], [3, 0, 90], [0, 0, -5]])
    pose = shifted(0)[0]
    pose[:3, 3] = [4, 5, 6]
    world = np.concatenate([points, stray]) - pose[:3, 3]
    assert unit_of_points(WALL, world, pose, K) == pytest.approx(10)
    assert unit_of_points(WALL, world[:7], pose, K) is None
    part = WALL.copy()
    part[:, :16] = 0
    assert unit_of_points(part, world, pose, K) == pytest.approx(10)
