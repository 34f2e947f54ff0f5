import jax
import numpy as np
import pytest

from worldstereo_jax.evaluation.flicker import flicker

pytestmark = pytest.mark.row("S25")

H, W, FRAMES, STEP, BACK, FRONT = 24, 32, 3, 0.05, 2.0, 1.0
K = np.array([[30, 0, W / 2], [0, 30, H / 2], [0, 0, 1]], np.float32)


def scene(occluder=False):
    """A camera sliding right before a wall whose colour is linear in world x and y, maybe behind
    a dark square, rendered exactly."""
    y, x = np.mgrid[:H, :W] + 0.5
    video, depth, w2c = [], [], []
    for i in range(FRAMES):
        centre = STEP * i
        world = [((c - K[j, 2]) / 30) for j, c in enumerate((x, y))]
        wall = [world[0] * BACK + centre, world[1] * BACK]
        image = np.stack([0.5 * wall[0], 0.5 * wall[1], 0 * wall[0]], axis=-1)
        z = np.full((H, W), BACK)
        if occluder:
            front = (np.abs(world[0] * FRONT + centre) < 0.2) & (np.abs(world[1] * FRONT) < 0.2)
            image[front], z[front] = -1, FRONT
        pose = np.eye(4)
        pose[0, 3] = -centre
        video, depth, w2c = [*video, image], [*depth, z], [*w2c, pose]
    stack = [np.stack(a).astype(np.float32) for a in (video, depth, w2c)]
    return (*stack, np.repeat(K[None], FRAMES, axis=0))


def test_a_consistent_clip_does_not_flicker():
    found = jax.jit(flicker)(*scene())
    assert float(found.mean()) < 1e-5
    # The camera moves 0.75 pixel on the wall: one column leaves the picture.
    assert np.asarray(found.tracked).sum() == (FRAMES - 1) * H * (W - 1)


def test_a_change_of_brightness_is_measured():
    video, *rest = scene()
    video[1] += 0.1
    found = flicker(video, *rest)
    np.testing.assert_allclose(np.asarray(found.change)[np.asarray(found.tracked)], 0.1, atol=1e-4)


def test_colours_that_stick_to_the_image_flicker():
    video, *rest = scene()
    video[:] = video[0]
    # The wall moves by STEP under colours of slope 0.5 in one of three channels.
    np.testing.assert_allclose(flicker(video, *rest).mean(), 0.5 * STEP / 3, rtol=1e-3)


def test_hidden_points_are_not_tracked():
    video, depth, w2c, intrinsics = scene(occluder=True)
    found = flicker(video, depth, w2c, intrinsics)
    assert float(found.mean()) < 1e-5
    covered = np.asarray(found.tracked).mean()
    assert 0.5 < covered < (W - 1) / W


def test_without_depth_nothing_is_tracked():
    video, depth, w2c, intrinsics = scene()
    found = flicker(video, 0 * depth, w2c, intrinsics)
    assert not found.tracked.any()
    assert np.isnan(found.mean())
