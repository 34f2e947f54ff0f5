"""Small frames of the room for tests of the entry bank; all of one shape, so all compile once."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from scipy.spatial.transform import Rotation

from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_update import EntryRule, update_entries

HEIGHT, WIDTH = 32, 48
INTRINSICS = np.array([[42.0, 0, WIDTH / 2], [0, 42.0, HEIGHT / 2], [0, 0, 1]], np.float32)
NOISE = 0.01
RULE = EntryRule(noise=NOISE)
CONFIG = EntryConfig(6000, pyramid_widths())
# (axis, value) of every plane of the room: see `_quads` in conftest.
FACES = [(2, 6.0), (1, 2.0), (0, -5.0), (0, 5.0), (2, 3.4), (2, 4.2), (0, -1.6), (0, -0.5)]
FACES += [(1, 0.2), (2, 2.9), (2, 3.7), (0, 0.6), (0, 1.7), (1, 0.8)]


def turn(degrees):
    """A rotation about an axis that is none of the world's."""
    axis = np.array([0.3, 0.9, -0.2])
    around = Rotation.from_rotvec(np.radians(degrees) * axis / np.linalg.norm(axis))
    return around.as_matrix().astype(np.float32)


def cameras(room, count):
    """World-to-camera of `count` places on a small loop, all looking at the middle of the room."""
    turns = np.linspace(0, 2 * np.pi, count, endpoint=False)
    eyes = [[0.35 * np.cos(t), 0.2 * np.sin(t) - 0.2, 0.2 * np.sin(2 * t)] for t in turns]
    return np.stack([room.look(eye, [0.0, 0.4, 4.0]) for eye in eyes]).astype(np.float32)


def photographs(room, w2c):
    """Images [f, h, w, 3] and exact depth [f, h, w] of the room."""
    taken = [room.take(camera, INTRINSICS, HEIGHT, WIDTH) for camera in w2c]
    return np.stack([image for image, _ in taken]), np.stack([depth for _, depth in taken])


def noisy(depth, seed=0, noise=NOISE):
    random = np.random.default_rng(seed)
    return (depth * (1 + noise * random.standard_normal(depth.shape))).astype(np.float32)


@functools.cache
def _maker():
    def make(image, depth, w2c, intrinsics, confidence, view, source):
        return make_entry_frame(
            image, depth, w2c, intrinsics, view=view, source=source, confidence=confidence
        )

    return jax.jit(jax.vmap(make))


def frames(images, depth, w2c, *, confidence=None, views=None, source=0, scale=1.0):
    """Stacked frames; every pixel with depth is certain unless told otherwise."""
    # By numpy: jax would compile a program for every one of these lines.
    count = len(images)
    depth = np.asarray(depth, np.float32)
    if confidence is None:
        confidence = depth > 0
    w2c = np.array(w2c, np.float32)
    w2c[:, :3, 3] *= scale
    return _maker()(
        np.asarray(images, np.float32),
        np.float32(scale) * depth,
        w2c,
        np.broadcast_to(INTRINSICS, (count, 3, 3)),
        np.asarray(confidence, np.float32),
        np.asarray(range(count) if views is None else views, np.int32),
        np.full((count,), source, np.int32),
    )


def one(stacked, index):
    return jax.device_put(jax.tree.map(lambda x: np.asarray(x)[index], stacked))


def build(stacked, order=None, bank=None):
    bank = init_entries(CONFIG) if bank is None else bank
    for index in range(len(stacked.view)) if order is None else order:
        bank = update_entries(bank, one(stacked, index), rule=RULE)
    return bank


def with_box(images, depth, w2c, present, colour=(1.0, -1.0, -1.0)):
    """Photographs in some of which an opaque plate stands 2 metres before the room's cameras.

    Returns images, depth, and for every view where the middle of the plate is or would be.
    """
    images, depth, middle = images.copy(), depth.copy(), np.zeros(depth.shape, bool)
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    ray = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(INTRINSICS).T
    for view, pose in enumerate(w2c):
        c2w = np.linalg.inv(pose.astype(float))
        away = ray @ c2w[:3, :3].T
        z = (2.0 - c2w[2, 3]) / away[..., 2]
        place = c2w[:2, 3] + z[..., None] * away[..., :2] - [0.0, 0.1]
        inside = (np.abs(place) < [0.35, 0.3]).all(-1)
        middle[view] = (np.abs(place) < [0.28, 0.23]).all(-1)
        if view in present:
            images[view][inside], depth[view][inside] = colour, z[inside]
    return images, depth, middle


def surface_error(position):
    """Distance of points to the nearest plane of the room."""
    position = np.asarray(position)
    return np.min([np.abs(position[:, axis] - value) for axis, value in FACES], axis=0)


def assert_equal_banks(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_finite(bank):
    for leaf in jax.tree.leaves(bank):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert np.isfinite(leaf).all()
