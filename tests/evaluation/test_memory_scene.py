"""What a viewer shows, without a viewer."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.evaluation import wall_world as ww
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation import memory_scene
from worldstereo_jax.evaluation.memory_scene import (
    ENTRY_COLOURS,
    entry_cloud,
    path_segments,
    point_cloud,
    pose_of,
    stored_frusta,
    view_scale,
    w2c_of,
)


def test_poses_are_the_cameras_axes_and_place_in_the_world_and_go_back():
    random = np.random.default_rng(0)
    for vector in random.normal(size=(20, 3)):
        w2c = np.eye(4, dtype=np.float32)
        w2c[:3, :3] = Rotation.from_rotvec(vector).as_matrix()
        w2c[:3, 3] = random.normal(size=3)
        pose = pose_of(w2c)
        np.testing.assert_allclose(w2c @ np.append(pose.position, 1), [0, 0, 0, 1], atol=1e-5)
        np.testing.assert_allclose(w2c_of(*pose), w2c, atol=1e-5)
        # Browsers give quaternions of either sign, and not quite of length 1.
        np.testing.assert_allclose(w2c_of(-1.01 * pose.wxyz, pose.position), w2c, atol=1e-5)
        # The quaternion turns the camera's z, which is ahead, into the world.
        w, axis = pose.wxyz[0], pose.wxyz[1:]
        ahead = np.array([0.0, 0.0, 1.0])
        turned = ahead + 2 * np.cross(axis, np.cross(axis, ahead) + w * ahead)
        np.testing.assert_allclose(turned, w2c[2, :3], atol=1e-5)


def test_entries_of_a_confidence_are_shown_in_every_colour():
    bank = ww.wall().entries
    count = int(bank.valid.sum())
    bank = bank.replace(
        confidence=jnp.where(jnp.arange(bank.capacity) < 100, 0.2, bank.confidence),
        features=(*bank.features[:2], bank.features[2].at[200:].set(0.0)),
        footprint=bank.footprint.at[300:].multiply(4.0),
    )
    assert len(entry_cloud(bank, by="colour", least_confidence=0.0).points) == count
    shown = {by: entry_cloud(bank, by=by, least_confidence=0.3) for by in ENTRY_COLOURS}
    held = np.arange(100, count)
    for cloud in shown.values():
        np.testing.assert_array_equal(cloud.points, np.asarray(bank.position)[held])
        assert cloud.colors.shape == (len(held), 3)
        assert cloud.diameter == pytest.approx(0.2)
    x, y = np.asarray(bank.position)[held, :2].T
    np.testing.assert_allclose(shown["colour"].colors, to_uint8(ww.colour(x, y)), atol=1)
    np.testing.assert_array_equal(shown["normal"].colors[0], to_uint8(np.array([0.0, 0.0, -1.0])))
    both = (x > -0.9) & (x < 1.2)
    views = shown["views"].colors
    assert (views[both] == views[both][0]).all()
    assert not (views[~both] == views[both][0]).all(-1).any()
    for by, first in (("level", 100), ("size", 200)):
        colours = shown[by].colors
        assert (colours[:first] == colours[0]).all()
        assert not (colours[first:] == colours[0]).all(-1).any()
    with pytest.raises(InputError, match="did you mean 'colour'"):
        entry_cloud(bank, by="color", least_confidence=0.0)
    assert len(entry_cloud(bank, by="size", least_confidence=0.95).points) == 0


def test_points_are_those_held_or_evenly_chosen_ones(monkeypatch):
    points = ww.wall().points
    cloud = point_cloud(points)
    assert len(cloud.points) == int(points.count)
    # Of a grid of this width, drawn a little wider or narrower.
    assert 0.02 < cloud.diameter < 0.15
    monkeypatch.setattr(memory_scene, "MOST_POINTS", 50)
    few = point_cloud(points)
    assert len(few.points) == 50
    np.testing.assert_array_equal(few.points[[0, -1]], cloud.points[[0, -1]])


def test_frusta_have_the_views_pose_field_of_view_and_picture():
    stereo = ww.wall().stereo
    views = stored_frusta(stereo)
    assert len(views) == 2
    np.testing.assert_allclose(views[1].pose.position, ww.EYES[1], atol=1e-6)
    # The upper border of the picture, at the middle column, lies on the frustum's upper side.
    assert np.tan(views[0].fov / 2) == pytest.approx(16 / 40)
    assert np.tan(views[0].fov / 2) * views[0].aspect == pytest.approx(24 / 40)
    np.testing.assert_array_equal(views[1].picture, to_uint8(stereo.images[1]))
    assert view_scale(stereo) == pytest.approx(2)
    assert view_scale(stereo.replace(depth=0 * stereo.depth)) == 1


def test_a_path_is_the_way_between_its_cameras():
    segments = path_segments(ww.ahead((0, 0, 0), (1, 0, 0), (1, 2, 0)))
    np.testing.assert_allclose(segments, [[[0, 0, 0], [1, 0, 0]], [[1, 0, 0], [1, 2, 0]]])
