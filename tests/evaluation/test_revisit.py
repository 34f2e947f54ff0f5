import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.evaluation.image_metrics import masked_psnr
from worldstereo_jax.evaluation.revisit import revisited_pixels, smooth_surface
from worldstereo_jax.geometry.rotations import look_at

_HEIGHT, _WIDTH = 48, 64
_K = np.array([[60.0, 0, 32], [0, 60.0, 24], [0, 0, 1]], np.float32)
# A wall at z = 4 + 0.3 x and, before it, the front of a box at z = 2.
_WALL = np.array([-0.3, 0.0, 1.0]), 4.0
_BOX = np.array([-0.4, 0.5]), np.array([-0.3, 0.6]), 2.0


def _cast(eye, directions):
    """Distances along rays [..., 3] from `eye` to wall and box (inf where missed)."""
    normal, offset = _WALL
    wall = (offset - eye @ normal) / (directions @ normal)
    wall = np.where(wall > 0, wall, np.inf)
    front = (_BOX[2] - eye[2]) / directions[..., 2]
    at = eye + front[..., None] * directions
    on_box = (
        (front > 0)
        & (at[..., 0] > _BOX[0][0])
        & (at[..., 0] < _BOX[0][1])
        & (at[..., 1] > _BOX[1][0])
        & (at[..., 1] < _BOX[1][1])
    )
    return wall, np.where(on_box, front, np.inf)


def _frame(w2c):
    """Colours (wall reddish, box bluish, both shaded by place), depth, points and which."""
    rotation, eye = w2c[:3, :3], -w2c[:3, :3].T @ w2c[:3, 3]
    x, y = np.meshgrid(np.arange(_WIDTH) + 0.5, np.arange(_HEIGHT) + 0.5)
    local = np.stack([(x - _K[0, 2]) / _K[0, 0], (y - _K[1, 2]) / _K[1, 1], np.ones_like(x)], -1)
    directions = local @ rotation
    wall, box = _cast(eye, directions)
    depth = np.minimum(wall, box)
    points = eye + depth[..., None] * directions
    shade = 0.1 * np.sin(points[..., 0]) * np.cos(points[..., 1])
    is_box = box < wall
    colour = np.stack([np.where(is_box, -0.8, 0.8) + shade, shade, -shade], -1)
    return colour, depth, points, is_box


def _path(eyes):
    target = np.array([0.0, 0.0, 3.0], np.float32)
    return np.stack([np.asarray(look_at(np.array(eye, np.float32), target)) for eye in eyes])


def _visible(points, w2c):
    """Whether world points are in sight of a camera, by casting a ray to each."""
    eye = -w2c[:3, :3].T @ w2c[:3, 3]
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    pixels = local[..., :2] / local[..., 2:] * [_K[0, 0], _K[1, 1]] + [_K[0, 2], _K[1, 2]]
    inside = np.all((pixels > 0.5) & (pixels < [_WIDTH - 0.5, _HEIGHT - 0.5]), -1)
    wall, box = _cast(eye, points - eye)
    return inside & (local[..., 2] > 0) & (np.minimum(wall, box) > 1 - 1e-6)


def test_wall_and_box_agree_with_rays_and_no_colour_crosses_an_edge():
    earlier = _path([(-0.5, 0, 0), (0.0, 0.1, 0.2)])
    later = _path([(0.4, 0.0, 0.1), (0.9, 0.2, -0.3), (2.4, 0.0, 0.5)])
    shown = [_frame(w2c) for w2c in earlier]
    truth = [_frame(w2c) for w2c in later]
    found = revisited_pixels(
        np.stack([f[0] for f in shown]).astype(np.float32),
        np.stack([f[1] for f in shown]).astype(np.float32),
        earlier,
        np.stack([f[1] for f in truth]).astype(np.float32),
        later,
        _K,
    )
    mask, image = np.asarray(found.mask), np.asarray(found.image)
    visible = np.stack([np.any([_visible(f[2], e) for e in earlier], axis=0) for f in truth])
    assert not np.any(mask & ~visible)
    assert mask.sum() > 0.8 * visible.sum()
    assert 0.2 < visible.mean() < 0.95
    boxes = np.stack([f[3] for f in truth])
    assert (mask & boxes).sum() > 0.6 * (visible & boxes).sum()
    colours = np.stack([f[0] for f in truth])
    assert np.abs(image - colours)[mask].max() < 0.01
    assert not image[~mask].any()


def test_the_most_similar_distance_wins():
    # Two earlier frames see the same wall from 1 and from 3 away, each in a colour of its own.
    far, near = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)
    far[2, 3], near[2, 3] = 3.0, 1.0
    video = np.zeros((2, _HEIGHT, _WIDTH, 3), np.float32)
    video[0], video[1] = 0.9, -0.9
    depth = np.stack([np.full((_HEIGHT, _WIDTH), z, np.float32) for z in (3.0, 1.0)])
    later = np.stack([far, near])
    later[0, 2, 3], later[1, 2, 3] = 2.9, 1.1
    found = revisited_pixels(
        video,
        depth,
        np.stack([far, near]),
        np.stack([np.full((_HEIGHT, _WIDTH), z, np.float32) for z in (2.9, 1.1)]),
        later,
        _K,
    )
    middle = np.asarray(found.image)[:, _HEIGHT // 2, _WIDTH // 2, 0]
    np.testing.assert_allclose(middle, [0.9, -0.9])


def test_unknown_depth_is_never_revisited_on_either_side():
    eye = np.eye(4, dtype=np.float32)[None]
    video = np.full((1, _HEIGHT, _WIDTH, 3), 0.5, np.float32)
    depth = np.full((1, _HEIGHT, _WIDTH), 2.0, np.float32)
    holed = depth.copy()
    holed[:, :, 30:] = 0
    for earlier, later in ((holed, depth), (depth, holed), (0 * depth, depth), (depth, 0 * depth)):
        found = revisited_pixels(video, earlier, eye, later, eye, _K)
        both = np.asarray((earlier > 0) & (later > 0))
        assert not np.any(np.asarray(found.mask) & ~both)
        assert np.isfinite(np.asarray(found.image)).all()
        # Only the pixel next to the hole may be lost.
        assert np.asarray(found.mask).sum() >= both.sum() - 2 * _HEIGHT * bool(both.any())


def test_a_steep_plane_is_smooth_and_a_step_is_not():
    x = np.arange(20, dtype=np.float32)
    plane = jnp.broadcast_to(0.5 + 0.2 * x, (8, 20))
    assert np.asarray(smooth_surface(plane)).all()
    step = np.full((8, 20), 1.0, np.float32)
    step[:, 9:] = 1.05
    columns = np.flatnonzero(~np.asarray(smooth_surface(jnp.asarray(step))).all(0))
    np.testing.assert_array_equal(columns, [8, 9])


@pytest.mark.slow
def test_true_clips_of_a_procedural_scene_agree_in_colour():
    item = SceneClips(range(3, 4), frames=4)[0]
    found = revisited_pixels(
        item["image"],
        item["depth"],
        item["w2c"],
        item["revisit_depth"],
        item["revisit_w2c"],
        item["intrinsics"][0],
    )
    share = float(np.mean(np.asarray(found.mask)))
    assert share > 0.4
    rows = found.mask.shape[0] * found.mask.shape[1]
    agreement = masked_psnr(
        found.image.reshape(rows, -1, 3),
        item["revisit_image"].reshape(rows, -1, 3),
        found.mask.reshape(rows, -1),
    )
    # Bilinear reading blurs fine texture; a wrong camera or surface would fall below 20 dB.
    assert float(agreement) > 26
