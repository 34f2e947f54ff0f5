import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_jax.evaluation.camera_error import (
    rotation_angles,
    rotation_error,
    trajectory_error,
    translation_error,
    umeyama,
    worldscore_error,
)


def poses(seed=0, frames=6):
    """Random world-to-camera poses and the same as camera-to-world, float32 and float64."""
    rng = np.random.default_rng(seed)
    c2w = np.tile(np.eye(4), (frames, 1, 1))
    c2w[:, :3, :3] = Rotation.random(frames, rng=rng).as_matrix()
    c2w[:, :3, 3] = rng.normal(size=(frames, 3))
    return np.linalg.inv(c2w).astype(np.float32), c2w


def moved(c2w, rotation, translation, scale=1.0):
    """World-to-camera poses of the trajectory in another world frame."""
    world = np.eye(4)
    world[:3, :3], world[:3, 3] = rotation, translation
    scaled = c2w.copy()
    scaled[:, :3, 3] *= scale
    return np.linalg.inv(world @ scaled).astype(np.float32)


def official_errors(found, truth, own):
    """The definition, frame by frame in float64."""
    relative = [np.linalg.inv(p[0]) @ p for p in (found, truth)]
    rotation = [
        np.arccos(np.clip((np.trace(a[:3, :3].T @ b[:3, :3]) - 1) / 2, -1, 1))
        for a, b in zip(*relative, strict=True)
    ]
    extents = [np.linalg.norm(p[:, :3, 3], axis=1).max() for p in relative]
    a = relative[0][:, :3, 3] / (extents[0] if own else extents[1])
    b = relative[1][:, :3, 3] / extents[1]
    return sum(rotation), np.linalg.norm(a - b, axis=1).sum()


@pytest.mark.parametrize("scale", ["own", "truth"])
def test_errors_equal_the_definition(scale):
    (found, found_c2w), (truth, truth_c2w) = poses(0), poses(1)
    rotation, translation = official_errors(found_c2w, truth_c2w, scale == "own")
    np.testing.assert_allclose(rotation_error(found, truth), rotation, rtol=1e-4)
    np.testing.assert_allclose(translation_error(found, truth, scale=scale), translation, rtol=1e-4)


def test_a_known_rotation_is_measured_also_when_tiny():
    _, c2w = poses()
    for degrees in (0.01, 1.0, 179.0):
        turned = c2w.copy()
        turned[3, :3, :3] = turned[3, :3, :3] @ Rotation.from_euler("y", degrees, True).as_matrix()
        angles = rotation_angles(
            np.linalg.inv(turned).astype(np.float32), np.linalg.inv(c2w).astype(np.float32)
        )
        np.testing.assert_allclose(np.degrees(angles)[3], degrees, rtol=5e-3)
        np.testing.assert_allclose(np.degrees(np.delete(angles, 3)), 0, atol=1e-4)


def test_the_world_frame_does_not_matter():
    truth, c2w = poses()
    elsewhere = moved(c2w, Rotation.from_rotvec([0.3, -1.0, 0.5]).as_matrix(), [3.0, -2.0, 1.0])
    assert rotation_error(elsewhere, truth) < 1e-4
    assert translation_error(elsewhere, truth, scale="truth") < 1e-4
    assert trajectory_error(elsewhere, truth) < 1e-4


def test_scale_is_removed_where_it_should_be():
    truth, c2w = poses()
    larger = moved(c2w, np.eye(3), np.zeros(3), scale=2.5)
    assert translation_error(larger, truth, scale="own") < 1e-4
    relative = np.linalg.inv(c2w[0]) @ c2w
    lengths = np.linalg.norm(relative[:, :3, 3], axis=1)
    np.testing.assert_allclose(
        translation_error(larger, truth, scale="truth"),
        1.5 * lengths.sum() / lengths.max(),
        rtol=1e-4,
    )
    assert worldscore_error(larger, truth).translation < 1e-4
    assert trajectory_error(larger, truth) < 1e-4


def test_worldscore_takes_means_in_degrees():
    (found, _), (truth, _) = poses(0), poses(1)
    error = worldscore_error(found, truth)
    np.testing.assert_allclose(
        error.rotation_degrees, np.degrees(rotation_error(found, truth)) / 6, rtol=1e-5
    )
    best = min(
        float(np.sum(np.square(s * relative(found) - relative(truth))))
        for s in np.linspace(-2, 2, 4001)
    )
    scaled = float(np.sum(relative(found) * relative(truth)) / np.sum(relative(found) ** 2))
    assert np.sum(np.square(scaled * relative(found) - relative(truth))) <= best + 1e-5
    expected = np.linalg.norm(scaled * relative(found) - relative(truth), axis=1).mean()
    np.testing.assert_allclose(error.translation, expected, rtol=1e-4)


def relative(w2c):
    return (w2c[0].astype(np.float64) @ np.linalg.inv(w2c.astype(np.float64)))[:, :3, 3]


def test_still_cameras_give_finite_errors():
    still = np.tile(np.eye(4, dtype=np.float32), (4, 1, 1))
    truth, _ = poses(frames=4)
    for value in (
        translation_error(still, truth, scale="own"),
        worldscore_error(still, truth).translation,
        trajectory_error(still, truth),
    ):
        assert np.isfinite(value)
    assert rotation_error(still, still) == 0


@pytest.mark.parametrize("seed", range(4))
def test_umeyama_recovers_a_similarity(seed):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(8, 3))
    if seed == 3:
        points[:, 2] = 0
    rotation = Rotation.random(rng=rng).as_matrix()
    target = 1.7 * points @ rotation.T + [1.0, 2.0, -3.0]
    s, r, t = umeyama(points.astype(np.float32), target.astype(np.float32))
    np.testing.assert_allclose(s, 1.7, rtol=1e-4)
    np.testing.assert_allclose(r, rotation, atol=1e-4)
    np.testing.assert_allclose(t, [1.0, 2.0, -3.0], atol=1e-3)


def test_umeyama_never_mirrors():
    points = np.random.default_rng(0).normal(size=(8, 3)).astype(np.float32)
    _, rotation, _ = jax.jit(umeyama)(points, points * np.array([1, 1, -1], np.float32))
    np.testing.assert_allclose(jnp.linalg.det(rotation), 1, rtol=1e-4)


def test_ate_is_the_rms_after_alignment():
    truth, c2w = poses(frames=8)
    noisy = c2w.copy()
    noisy[:, :3, 3] += 0.1 * np.random.default_rng(5).normal(size=(8, 3))
    error = float(trajectory_error(np.linalg.inv(noisy).astype(np.float32), truth))
    unaligned = np.sqrt(np.mean(np.sum((noisy - c2w)[:, :3, 3] ** 2, axis=-1)))
    assert 0.02 < error < unaligned
