"""A clip over a relief, and entry banks of any size around it: what `memory_bench` measures with.

The clip sees the same place whatever the bank holds: the rest lies to both sides of it.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.geometry.points import PointCloud
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.memory.entries import EntryBank, EntryConfig, init_entries
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_frame import EntryFrame, make_entry_frame
from worldstereo_jax.memory.entry_points import entries_from_points

HEIGHT, WIDTH, FRAMES = 480, 832, 21
MANY = (1 << 20) + (1 << 18)
"""Room in every bank, so that one compiled program serves all sizes."""


def _relief(x: jax.Array, y: jax.Array) -> jax.Array:
    return 5 + 0.3 * jnp.sin(2 * x) + 0.2 * jnp.cos(3 * y)


def clip_frames(frames: int = FRAMES, *, height: int = HEIGHT, width: int = WIDTH) -> EntryFrame:
    """Frames of one field of view on an orbit before the relief, stacked."""
    w2c = jnp.asarray(make_path("orbit", frames, amplitude=0.5, pivot_depth=5.0))
    focal = 600.0 * width / WIDTH
    intrinsics = jnp.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])

    def frame(w2c: jax.Array, view: jax.Array) -> EntryFrame:
        y, x = jnp.mgrid[:height, :width] + 0.5
        x, y = (x - width / 2) / focal, (y - height / 2) / focal
        rays = jnp.stack([x, y, jnp.ones_like(x)], -1)
        c2w = jnp.linalg.inv(w2c)
        ray, eye = rays @ c2w[:3, :3].T, c2w[:3, 3][None, None]
        depth = jnp.full((height, width), 5.0)
        for _ in range(12):
            point = eye + depth[..., None] * ray
            depth = depth + (_relief(point[..., 0], point[..., 1]) - point[..., 2]) / ray[..., 2]
        x, y, _ = jnp.moveaxis(eye + depth[..., None] * ray, -1, 0)
        image = 0.8 * jnp.stack([jnp.sin(7 * x), jnp.sin(9 * y), jnp.cos(5 * (x + y))], -1)
        return make_entry_frame(image, depth, w2c, intrinsics, view=view)

    return jax.jit(jax.vmap(frame))(w2c, jnp.arange(frames, dtype=jnp.int32))


def full_bank(size: int) -> EntryBank:
    """A bank of `size` entries to both sides of what the clip sees."""
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (size, 3)) * [60, 60, 2] + [0, 0, 9]
    points[:, 0] += np.where(points[:, 0] > 0, 8, -8)
    cloud = PointCloud(
        jnp.asarray(points, jnp.float32), jnp.zeros((size, 3)), jnp.ones((size,), bool)
    )
    bank = init_entries(EntryConfig(MANY, pyramid_widths()))
    bank = entries_from_points(bank, cloud, footprint=jnp.full((size,), 0.03))
    return dataclasses.replace(bank, confidence=2.0 * bank.confidence)
