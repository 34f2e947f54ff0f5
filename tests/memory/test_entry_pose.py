"""Pictures are located by the entries they show, pictures of other rooms are not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.geometry.test_absolute_pose import errors
from worldstereo_jax.memory.entry_pose import locate_camera


def locate(memory, image, intrinsics):
    return locate_camera(memory.entries, jnp.asarray(image), intrinsics, jax.random.key(0))


@pytest.mark.row("S10")
@pytest.mark.parametrize("exposure", [(1.0, 0.0), (0.7, -0.1)], ids=["same", "darker"])
def test_frames_are_located_within_half_a_pixel(memory, scene, exposure):
    """By the entries of the first frame alone, of 48 x 64 pixels: one of them is 1.04 degrees."""
    gain, shift = exposure
    for frame in (1, 2):
        found = locate(memory, gain * scene["image"][frame] + shift, scene["intrinsics"][frame])
        degrees, units = errors(found.pose.w2c, scene["w2c"][frame])
        assert degrees < 0.5
        assert units < 0.01 * np.median(scene["depth"][frame])
        assert int(found.inliers) > 100
        assert found.pose.residual < 1.0
        assert memory.entries.valid[found.entry[found.pose.inlier]].all()


@pytest.mark.row("S37")
def test_of_another_room_next_to_nothing_agrees(memory, scene, room):
    image, _ = room.take(np.eye(4), np.asarray(scene["intrinsics"][0], float), 48, 64)
    found = locate(memory, image, scene["intrinsics"][0])
    assert int(found.inliers) < 12
    assert found.matched.sum() < 60
