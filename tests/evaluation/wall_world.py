"""The memory of a wall at z = 2, seen from two places; all of it known exactly, nothing estimated.

View 0 stands at the origin and sees x from -1.2 to 1.2, view 1 at x = 0.3 and sees it from -0.9 to
1.5; both see y from -0.8 to 0.8. A pixel of either is 0.05 wide on the wall.
"""

import functools
import tempfile
from pathlib import Path

import jax
import numpy as np

from worldstereo_jax.cli.memory_input import open_memory
from worldstereo_jax.cli.outputs import save_world
from worldstereo_jax.sampling.world import RolloutConfig, WorldMemory, empty_memory

HEIGHT, WIDTH = 32, 48
K = np.array([[40.0, 0, 24], [0, 40.0, 16], [0, 0, 1]], np.float32)
EYES = ((0.0, 0.0, 0.0), (0.3, 0.0, 0.0))


def ahead(*eyes) -> np.ndarray:
    """World-to-camera matrices [f, 4, 4] at `eyes` that look along z."""
    w2c = np.tile(np.eye(4, dtype=np.float32), (len(eyes), 1, 1))
    w2c[:, :3, 3] = -np.asarray(eyes, np.float32)
    return w2c


def back(eye) -> np.ndarray:
    """One that looks against z."""
    w2c = np.diag([-1.0, 1.0, -1.0, 1.0]).astype(np.float32)
    w2c[:3, 3] = -w2c[:3, :3] @ np.asarray(eye, np.float32)
    return w2c


def colour(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of the wall, in [-1, 1]."""
    waves = [np.sin(5 * x), np.cos(4 * y), np.sin(3 * (x + y))]
    return (0.6 * np.stack(waves, -1)).astype(np.float32)


def make_wall() -> WorldMemory:
    """Both memories of the wall; the views' pictures are those of the wall, too.

    Made by numpy, since every little program of jax's would have to be compiled.
    """
    columns, rows = np.arange(54) * 0.05 - 1.175, np.arange(32) * 0.05 - 0.775
    x, y = (a.ravel().astype(np.float32) for a in np.meshgrid(columns, rows))
    count = len(x)
    place = np.stack([x, y, np.full_like(x, 2.0)], -1)
    towards = np.tile(np.array([0.0, 0.0, -1.0], np.float32), (count, 1))
    colours = colour(x, y)
    both = (x > -0.9) & (x < 1.2)
    config = RolloutConfig(
        height=HEIGHT, width=WIDTH, bank_capacity=3, point_capacity=2048, entry_capacity=count
    )
    shapes = jax.eval_shape(lambda: empty_memory(config))
    empty = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    views = empty.entries.views
    views[:, 0] = np.where(both, 3, np.where(x < 0, 1, 2))
    entries = empty.entries.replace(
        position=place,
        anchor=place,
        normal=towards,
        direction=towards,
        footprint=np.full(count, 0.05, np.float32),
        distance=np.full(count, 2.0, np.float32),
        spacing=np.ones(count, np.float32),
        confidence=np.full(count, 0.9, np.float32),
        observations=np.ones(count, np.int32),
        views=views,
        features=tuple(np.tile(colours, (1, 9)) for _ in empty.entries.features),
        valid=np.ones(count, bool),
        count=np.int32(count),
    )
    u, v = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    stereo = empty.stereo
    for i, eye in enumerate(EYES):
        stereo.images[i] = colour(2 * (u - 24) / 40 + eye[0], 2 * (v - 16) / 40)
    stereo.depth[:2], stereo.confidence[:2], stereo.valid[:2] = 2.0, 1.0, True
    stereo.w2c[:2], stereo.intrinsics[:2] = ahead(*EYES), K
    stereo.w2c[2], stereo.intrinsics[2] = np.eye(4), np.eye(3)
    points = empty.points
    points.positions[:count], points.colors[:count], points.valid[:count] = place, colours, True
    return WorldMemory(
        points=points.replace(count=np.int32(count)),
        stereo=stereo.replace(count=np.int32(2)),
        entries=entries,
    )


@functools.cache
def wall() -> WorldMemory:
    """The wall as a command reads it, so that what is compiled for one test serves the others."""
    with tempfile.TemporaryDirectory() as home:
        save_world(Path(home) / "memory", make_wall(), "tiny")
        return open_memory(Path(home) / "memory").memory
