"""A small textured room with exact depth, cast ray by ray in numpy, independent of the package."""

from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest
from skimage import data

HEIGHT, WIDTH = 80, 112


def _texture(picture):
    picture = picture.astype(np.float32) / 127.5 - 1.0
    return np.repeat(picture[..., None], 3, -1) if picture.ndim == 2 else picture


def _read(texture, a, b):
    h, w = texture.shape[:2]
    x, y = np.clip(a * w - 0.5, 0, w - 1.001), np.clip(b * h - 0.5, 0, h - 1.001)
    i, j = x.astype(int), y.astype(int)
    fx, fy = (x - i)[:, None], (y - j)[:, None]
    top = texture[j, i] * (1 - fx) + texture[j, i + 1] * fx
    return top * (1 - fy) + (texture[j + 1, i] * (1 - fx) + texture[j + 1, i + 1] * fx) * fy


def _quads():
    """(corner, edge, edge) of each face: a room of 10 x 5 x 6 metres with two boxes."""
    x, y, z = np.eye(3)
    quads = [
        (np.array([-5.0, -3, 6]), 10 * x, 5 * y),
        (np.array([-5.0, 2, 0]), 10 * x, 6 * z),
        (np.array([-5.0, -3, 0]), 6 * z, 5 * y),
        (np.array([5.0, -3, 0]), 6 * z, 5 * y),
    ]
    for low, high in (([-1.6, 0.2, 3.4], [-0.5, 2, 4.2]), ([0.6, 0.8, 2.9], [1.7, 2, 3.7])):
        low = np.array(low, float)
        dx, dy, dz = np.diag(np.array(high) - low)
        quads += [(low, dx, dy), (low, dz, dy), (low + dx, dz, dy), (low, dx, dz)]
    return quads


def _cast(w2c, intrinsics, x, y):
    """Colour and depth of the rays through pixels (x, y)."""
    c2w = np.linalg.inv(w2c)
    local = [(x - intrinsics[0, 2]) / intrinsics[0, 0], (y - intrinsics[1, 2]) / intrinsics[1, 1]]
    direction = np.stack([*local, np.ones_like(x)], -1) @ c2w[:3, :3].T
    depth, colour = np.full(len(x), np.inf), np.zeros((len(x), 3), np.float32)
    for k, (corner, u, v) in enumerate(_quads()):
        normal = np.cross(u, v)
        facing = direction @ normal
        t = ((corner - c2w[:3, 3]) @ normal) / np.where(np.abs(facing) < 1e-9, 1e-9, facing)
        hit = c2w[:3, 3] + t[:, None] * direction - corner
        a, b = hit @ u / (u @ u), hit @ v / (v @ v)
        front = (t > 1e-3) & (t < depth) & (a >= 0) & (a <= 1) & (b >= 0) & (b <= 1)
        depth[front] = t[front]
        colour[front] = _read(TEXTURES[k % len(TEXTURES)], a[front], b[front])
    return colour, np.where(np.isfinite(depth), depth, 0.0)


TEXTURES = [_texture(f()) for f in (data.astronaut, data.gravel, data.coffee, data.brick)]


def look(eye, target):
    """World to camera of an upright camera at `eye` that looks at `target`."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    w2c = np.eye(4)
    w2c[:3, :3] = np.stack([right, np.cross(forward, right), forward])
    w2c[:3, 3] = -w2c[:3, :3] @ np.asarray(eye, float)
    return w2c


def take(w2c, intrinsics, height=HEIGHT, width=WIDTH):
    """Photograph (2x2 samples per pixel) and exact depth of the room."""
    rows, columns = (a.ravel() for a in np.mgrid[:height, :width].astype(float))
    colour = sum(
        _cast(w2c, intrinsics, columns + a, rows + b)[0] for a in (0.25, 0.75) for b in (0.25, 0.75)
    )
    depth = _cast(w2c, intrinsics, columns + 0.5, rows + 0.5)[1]
    image = (colour / 4).reshape(height, width, 3)
    return image.astype(np.float32), depth.reshape(height, width).astype(np.float32)


def _photographs(cameras, intrinsics):
    taken = [take(camera, intrinsics) for camera in cameras]
    return SimpleNamespace(
        images=jnp.asarray(np.stack([image for image, _ in taken])),
        depth=jnp.asarray(np.stack([depth for _, depth in taken])),
        confidence=jnp.ones((len(cameras), HEIGHT, WIDTH)),
        w2c=jnp.asarray(np.stack(cameras), jnp.float32),
        intrinsics=jnp.asarray(np.stack([intrinsics] * len(cameras)), jnp.float32),
        valid=jnp.ones((len(cameras),), bool),
    )


@pytest.fixture(scope="session")
def room():
    """`bank`: four views of the room; `target`: two other views; `take`, `look`: to make more."""
    intrinsics = np.array([[90.0, 0, WIDTH / 2], [0, 90.0, HEIGHT / 2], [0, 0, 1]])
    bank = [
        look([-0.5, 0.1, 0.0], [-0.2, 0.4, 4]),
        look([0.0, 0.0, 0.1], [0.0, 0.4, 4]),
        look([0.4, -0.1, -0.1], [0.2, 0.4, 4]),
        look([0.2, 0.3, 0.5], [0.4, 0.4, 4]),
    ]
    target = [look([0.15, -0.2, 0.25], [0.1, 0.4, 4]), look([-0.3, 0.3, -0.3], [0, 0.3, 4])]
    return SimpleNamespace(
        bank=_photographs(bank, intrinsics),
        target=_photographs(target, intrinsics),
        intrinsics=intrinsics,
        take=take,
        look=look,
    )


@pytest.fixture(scope="session")
def motorcycle():
    """A real rectified pair with dense true disparity: images, depth, cameras, disparity."""
    left, right, disparity = data.stereo_motorcycle()
    known = np.isfinite(disparity)
    focal, offset, baseline = 994.978, 31.086, 0.193001
    depth = np.where(known, baseline * focal / (np.where(known, disparity, 1.0) + offset), 0.0)
    left_intrinsics = np.array([[focal, 0, 311.693], [0, focal, 255.377], [0, 0, 1]], np.float32)
    right_intrinsics = left_intrinsics + np.array([[0, 0, offset], [0, 0, 0], [0, 0, 0]])
    right_w2c = np.eye(4, dtype=np.float32)
    right_w2c[0, 3] = -baseline
    return SimpleNamespace(
        left=jnp.asarray(left, jnp.float32) / 127.5 - 1,
        right=np.asarray(right, np.float32) / 127.5 - 1,
        disparity=np.where(known, disparity, np.nan),
        depth=jnp.asarray(depth, jnp.float32),
        left_w2c=jnp.eye(4),
        left_intrinsics=jnp.asarray(left_intrinsics),
        right_w2c=jnp.asarray(right_w2c),
        right_intrinsics=jnp.asarray(right_intrinsics, jnp.float32),
        to_disparity=lambda z: baseline * focal / np.maximum(z, 1e-6) - offset,
    )
