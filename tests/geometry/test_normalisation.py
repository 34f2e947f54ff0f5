import jax
import numpy as np
import pytest

from worldstereo_jax.geometry import cameras, normalisation, rotations

# Each one program, not one of every operation.
camera_centers, look_at = jax.jit(cameras.camera_centers), jax.jit(rotations.look_at)
normalise_trajectory = jax.jit(normalisation.normalise_trajectory, static_argnums=1)
normalise_unified = jax.jit(normalisation.normalise_unified)


def _path(centres: np.ndarray) -> np.ndarray:
    return np.asarray(look_at(centres, np.array([0.3, -0.2, 30.0]) + 0 * centres))


def test_equals_the_official_normalisation(goldens_dir):
    golden = np.load(goldens_dir / "cameras.npz", allow_pickle=False)
    np.testing.assert_allclose(normalise_trajectory(golden["w2c"]), golden["normalised"], atol=1e-5)
    targets, references = normalise_unified(golden["w2c"], golden["w2c_ref"])
    np.testing.assert_allclose(targets, golden["unified_w2c"], atol=1e-5)
    np.testing.assert_allclose(references, golden["unified_w2c_ref"], atol=1e-5)


def test_does_not_depend_on_world_frame_or_unit():
    rng = np.random.default_rng(0)
    w2c = _path(rng.normal(size=(9, 3)))
    world = np.asarray(look_at(np.array([4.0, 1.0, -2.0]), np.array([0.0, 0.0, 0.0])))
    moved = w2c @ world
    moved[:, :3, 3] *= 3.7
    # Scaling the world by 3.7 scales every translation.
    np.testing.assert_allclose(normalise_trajectory(moved), normalise_trajectory(w2c), atol=2e-4)


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_first_centre_stands_at_the_scale_and_the_mean_at_the_origin(scale):
    w2c = normalise_trajectory(_path(np.random.default_rng(1).normal(size=(8, 3))), scale)
    centres = np.asarray(camera_centers(w2c))
    np.testing.assert_allclose(np.linalg.norm(centres[0]), scale, rtol=1e-5)
    np.testing.assert_allclose(centres.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(w2c[0, :3, :3], np.eye(3), atol=1e-6)


def test_a_camera_that_only_turns_gets_the_factor_itself():
    target = np.array([[0.0, 0.0, 1.0], [0.3, 0.0, 1.0], [0.6, 0.1, 1.0]])
    w2c = np.asarray(look_at(np.zeros((3, 3)), target))
    reference = np.eye(4, dtype=np.float32)[None].copy()
    reference[0, :3, 3] = [0.5, 0.0, -1.0]
    targets, references = normalise_unified(w2c, reference)
    np.testing.assert_allclose(targets[:, :3, 3], 0, atol=1e-6)
    np.testing.assert_allclose(references[0, :3, 3], [1.0, 0.0, -2.0], atol=1e-5)


def test_a_far_outlier_does_not_shift_the_origin():
    # 60 cameras: the single outlier lies beyond the 97th percentile.
    centres = np.random.default_rng(2).normal(size=(60, 3))
    centres[40] = [900.0, 0.0, 0.0]
    w2c = _path(centres)
    kept = np.delete(np.arange(60), 40)
    normalised = np.asarray(camera_centers(normalise_trajectory(w2c)))
    np.testing.assert_allclose(normalised[kept].mean(0), 0, atol=1e-4)
