"""Windows and views of a wall, chosen by their overlap."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from worldstereo_jax.data.clip_windows import Window, candidates, draw_window, overlapping_window
from worldstereo_jax.data.posed_clips import PosedClip

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
