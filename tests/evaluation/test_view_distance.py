"""Angles, distances and sight before a wall, and sums of error by bin, against brute force."""

import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.view_distance import binned_error, nearest_view
from worldstereo_jax.geometry.points import depth_to_points

K = np.array([[30.0, 0, 16], [0, 30.0, 12], [0, 0, 1]], np.float32)


def poses(*eyes):
    w2c = np.tile(np.eye(4, dtype=np.float32), (len(eyes), 1, 1))
    w2c[:, :3, 3] = -np.asarray(eyes, np.float32)
    return w2c


def test_angle_and_distance_are_those_to_the_nearest_view_that_sees_the_point():
    """A wall at 2 m, a target camera and two stored ones, of which the nearer sees only a part."""
    wall = np.full((1, 24, 32), 2.0, np.float32)
    target, stored = poses((0, 0, 0)), poses((0.9, 0, 0), (0, 0, -1))
    depth = np.concatenate([wall, wall + 1])
    found = nearest_view(wall, target, K[None], depth, stored, np.stack([K, K]))
    points = np.asarray(depth_to_points(wall[0], target[0], K))
    eyes = np.array([[0.9, 0, 0], [0, 0, -1]])
    mine = points / np.linalg.norm(points, axis=-1, keepdims=True)
    angle = np.zeros((2, 24, 32))
    for i, eye in enumerate(eyes):
        ray = points - eye
        cosine = (mine * ray / np.linalg.norm(ray, axis=-1, keepdims=True)).sum(-1)
        angle[i] = np.arccos(np.clip(cosine, -1, 1))
    # The first stored camera sees what lies right of its left border.
    shift = 0.9 * 30 / 2
    sees = np.arange(32)[None] + 0.5 - shift > 0.5
    sees = np.broadcast_to(sees, (24, 32))
    expected = np.where(sees, np.minimum(angle[0], angle[1]), angle[1])
    assert bool(found.seen.all())
    inner = (slice(None), np.r_[0:12, 16:32])  # not the column where sight begins
    np.testing.assert_allclose(np.asarray(found.angle[0])[inner], expected[inner], atol=2e-3)
    assert (angle[0] > angle[1]).all()
    np.testing.assert_array_equal(found.view[0], 1)
    away = np.where(sees, 0.9, 1.0)
    np.testing.assert_allclose(np.asarray(found.distance[0])[inner], away[inner], atol=1e-5)


def test_hidden_and_unknown_points_are_never_seen():
    wall = np.full((1, 24, 32), 2.0, np.float32)
    before = np.full((1, 24, 32), 1.0, np.float32)  # the stored view shows a nearer surface
    found = nearest_view(wall, poses((0, 0, 0)), K[None], before, poses((0.1, 0, 0)), K[None])
    assert not bool(found.seen.any())
    assert np.isinf(found.angle).all()
    assert (np.asarray(found.view) == -1).all()
    unknown = nearest_view(0 * wall, poses((0, 0, 0)), K[None], wall, poses((0, 0, 0)), K[None])
    assert not bool(unknown.seen.any())


def test_bins_hold_the_error_of_their_pixels():
    rng = np.random.default_rng(0)
    truth, video = rng.uniform(-1, 1, (2, 2, 6, 8, 3))
    value = rng.uniform(0, 4, (2, 6, 8))
    value[0, 0, 0] = np.inf
    edges = np.array([0.0, 1.0, 3.0])
    found = binned_error(video, truth, value, edges)
    for i in range(2):
        here = (value >= edges[i]) & (value < edges[i + 1])
        assert found.pixels[i] == here.sum()
        expected = 10 * np.log10(4 / np.square(video - truth)[here].mean())
        assert found.psnr()[i] == pytest.approx(expected)
    assert np.isnan(binned_error(video, truth, value + 9, edges).psnr()).all()
    with pytest.raises(InputError, match="ascend"):
        binned_error(video, truth, value, np.array([1.0, 0.0]))
