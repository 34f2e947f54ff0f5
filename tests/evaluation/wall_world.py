"""The memory of a wall at z = 2, seen from two places; all of it known exactly, nothing estimated.

View 0 stands at the origin and sees x from -1.2 to 1.2, view 1 at x = 0.3 and sees it from -0.9 to
1.5; both see y from -0.8 to 0.8. A pixel of either is 0.05 wide on the wall.
"""

import functools
import tempfile
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.cli.memory_input import read_any_memory
from worldstereo_jax.cli.outputs import save_world
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.global_geometric import init_global_memory, insert_points
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes
from worldstereo_jax.sampling.world import WorldMemory

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
    return 0.6 * np.stack([np.sin(5 * x), np.cos(4 * y), np.sin(3 * (x + y))], -1)


def make_wall() -> WorldMemory:
    """Both memories of the wall; the views' pictures are those of the wall, too."""
    x, y = (
        a.ravel() for a in np.meshgrid(np.arange(54) * 0.05 - 1.175, np.arange(32) * 0.05 - 0.775)
    )
    place = jnp.asarray(np.stack([x, y, np.full_like(x, 2.0)], -1), jnp.float32)
    colours = jnp.asarray(colour(x, y), jnp.float32)
    count = len(x)
    bank = init_entries(EntryConfig(count))
    both = (x > -0.9) & (x < 1.2)
    views = np.where(both, 3, np.where(x < 0, 1, 2)).astype(np.uint32)
    bank = bank.replace(
        position=place,
        anchor=place,
        normal=jnp.tile(jnp.array([[0.0, 0.0, -1.0]]), (count, 1)),
        direction=jnp.tile(jnp.array([[0.0, 0.0, -1.0]]), (count, 1)),
        footprint=jnp.full(count, 0.05),
        distance=jnp.full(count, 2.0),
        spacing=jnp.ones(count),
        confidence=jnp.full(count, 0.9),
        observations=jnp.ones(count, jnp.int32),
        views=bank.views.at[:, 0].set(views),
        features=tuple(jnp.tile(colours, (1, 9)) for _ in bank.features),
        valid=jnp.ones(count, bool),
        count=jnp.asarray(count, jnp.int32),
    )
    u, v = np.meshgrid(np.arange(WIDTH) + 0.5, np.arange(HEIGHT) + 0.5)
    pictures = [colour(2 * (u - 24) / 40 + eye[0], 2 * (v - 16) / 40) for eye in EYES]
    stereo = insert_keyframes(
        init_spatial_memory(3, HEIGHT, WIDTH),
        jnp.asarray(np.stack(pictures), jnp.float32),
        jnp.full((2, HEIGHT, WIDTH), 2.0),
        jnp.asarray(ahead(*EYES)),
        jnp.asarray(np.stack([K, K])),
    )
    points = insert_points(init_global_memory(2048), place, colours, jnp.ones(count, bool))
    return WorldMemory(points=points, stereo=stereo, entries=bank)


@functools.cache
def wall() -> WorldMemory:
    """The wall as a command reads it, so that what is compiled for one test serves the others."""
    with tempfile.TemporaryDirectory() as home:
        save_world(Path(home) / "memory", make_wall(), "tiny")
        return read_any_memory(Path(home) / "memory", "tiny")
