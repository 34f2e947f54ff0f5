"""Scores of point clouds against brute force, and against clouds whose faults are known."""

import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.reconstruction import (
    points_in_free_space,
    reconstruction_scores,
    thin_points,
)
from worldstereo_jax.geometry.points import depth_to_points

K = np.array([[40.0, 0, 32], [0, 40.0, 24], [0, 0, 1]], np.float32)


def brute_force(points, truth, tau):
    away = np.linalg.norm(points[:, None] - truth[None], axis=-1)
    precision, recall = (away.min(1) <= tau).mean(), (away.min(0) <= tau).mean()
    return precision, recall, 2 * precision * recall / max(precision + recall, 1e-12)


@pytest.mark.row("S27")
def test_scores_and_area_equal_brute_force():
    rng = np.random.default_rng(0)
    truth = rng.uniform(-1, 1, (80, 3))
    points = truth[:60] + rng.normal(0, 0.1, (60, 3))
    taus = (0.05, 0.2, 0.4)
    scores = reconstruction_scores(points, truth, tau=taus)
    expected = np.array([brute_force(points, truth, tau) for tau in taus]).T
    np.testing.assert_allclose([scores.precision, scores.recall, scores.f1], expected)
    fine = np.linspace(0, 0.4, 20_001)
    area = np.mean([brute_force(points, truth, tau)[2] for tau in fine[::20]])
    assert scores.auc == pytest.approx(area, abs=2e-3)


def test_a_perfect_cloud_a_shifted_one_and_none():
    truth = np.mgrid[:5, :5, :1].reshape(3, -1).T * 1.0
    assert reconstruction_scores(truth, truth, tau=[0.1]).auc == 1
    shifted = reconstruction_scores(truth + np.array([0, 0, 0.3]), truth, tau=[0.2, 0.4])
    np.testing.assert_array_equal(shifted.f1, [0, 1])
    assert shifted.auc == pytest.approx(0.25)
    half = reconstruction_scores(truth[:10], truth, tau=[0.1])
    assert (half.precision[0], half.recall[0]) == (1, 0.4)
    nothing = reconstruction_scores(np.zeros((0, 3)), truth, tau=[0.1])
    assert (nothing.f1[0], nothing.auc) == (0, 0)


@pytest.mark.parametrize(
    ("points", "truth", "tau", "message"),
    [
        (np.zeros((1, 3)), np.zeros((0, 3)), [0.1], "at least one true point"),
        (np.full((1, 3), np.nan), np.zeros((1, 3)), [0.1], "finite"),
        (np.zeros((1, 3)), np.zeros((1, 3)), [0.0], "positive"),
        (np.zeros((1, 3)), np.zeros((1, 3)), [], "one or more"),
    ],
)
def test_bad_input_is_named(points, truth, tau, message):
    with pytest.raises(InputError, match=message):
        reconstruction_scores(points, truth, tau=tau)


def test_thinning_keeps_the_mean_of_each_cube():
    rng = np.random.default_rng(1)
    points = rng.uniform(-2, 2, (500, 3))
    thin = thin_points(np.concatenate([points, [[np.nan] * 3]]), 0.5)
    cubes = {}
    for point in points:
        cubes.setdefault(tuple(np.floor(point / 0.5)), []).append(point)
    expected = np.array([np.mean(x, 0) for x in cubes.values()])
    assert len(thin) == len(expected)
    np.testing.assert_allclose(np.sort(thin, 0), np.sort(expected, 0))
    with pytest.raises(InputError, match="side"):
        thin_points(points, 0.0)


@pytest.mark.row("S27")
def test_floaters_hang_before_a_surface_of_some_view():
    """On a wall, behind it, and between it and one of the cameras only."""
    w2c = np.tile(np.eye(4, dtype=np.float32), (2, 1, 1))
    w2c[1, 0, 3] = -1.0  # the second camera stands 1 m to the right
    depth = np.full((2, 48, 64), 3.0, np.float32)
    cameras = {"depth": depth, "w2c": w2c, "intrinsics": np.stack([K, K])}
    on = np.asarray(depth_to_points(depth[0], w2c[0], K)).reshape(-1, 3)
    assert points_in_free_space(on, **cameras) == 0
    assert points_in_free_space(on + np.array([0, 0, 1.0]), **cameras) == 0
    # Far to the right, near: the first camera does not see it, the second one does.
    beside = np.array([[1.4, 0.0, 1.0]])
    assert points_in_free_space(beside, depth[:1], w2c[:1], K[None]) == 0
    assert points_in_free_space(beside, **cameras) == 1
    assert points_in_free_space(np.concatenate([on[:3], beside]), **cameras) == 0.25
    assert np.isnan(points_in_free_space(np.zeros((0, 3)), **cameras))
    unknown = {**cameras, "depth": np.zeros_like(depth)}
    assert points_in_free_space(beside, **unknown) == 0


def test_points_beside_a_nearer_surface_are_no_floaters():
    """At an edge of depth the last point of the near surface may fall into a pixel of the far."""
    w2c = np.eye(4, dtype=np.float32)[None]
    depth = np.full((1, 48, 64), 3.0, np.float32)
    depth[:, :, :32] = 1.0
    beside = np.array([[0.5 / 40, 0.0, 1.0], [3.5 / 40, 0.0, 1.0]])  # pixels 32 and 35
    alone = [points_in_free_space(point[None], depth, w2c, K[None]) for point in beside]
    assert alone == [0, 1]
