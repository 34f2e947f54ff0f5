import hypothesis
import hypothesis.extra.numpy as hnp
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from worldstereo_jax.geometry.rotations import (
    axis_angle_to_matrix,
    look_at,
    matrix_from_quaternion,
    quaternion_from_matrix,
)

_vectors = hnp.arrays(np.float32, (4, 3), elements=st.floats(-3.0, 3.0, width=32))
_settings = hypothesis.settings(max_examples=25, deadline=None)


@_settings
@hypothesis.given(_vectors)
def test_axis_angle_agrees_with_scipy(vectors):
    expected = Rotation.from_rotvec(vectors).as_matrix()
    np.testing.assert_allclose(axis_angle_to_matrix(vectors), expected, atol=2e-6)


def test_axis_angle_at_and_near_zero_is_exact_and_differentiable():
    np.testing.assert_array_equal(axis_angle_to_matrix(np.zeros(3, np.float32)), np.eye(3))
    for size in (1e-6, 1e-3, 0.0099, 0.0101):
        vector = np.array([0.6, 0.0, -0.8]) * size
        np.testing.assert_allclose(
            axis_angle_to_matrix(vector), Rotation.from_rotvec(vector).as_matrix(), atol=1e-7
        )
    derivative = jax.jacfwd(axis_angle_to_matrix)(jnp.zeros(3))
    # d R / d v at zero is the generator of each axis.
    np.testing.assert_allclose(derivative[:, :, 2], [[0, -1, 0], [1, 0, 0], [0, 0, 0]], atol=1e-6)


@_settings
@hypothesis.given(_vectors)
def test_quaternion_round_trip_and_half_sphere(vectors):
    matrix = Rotation.from_rotvec(vectors).as_matrix()
    quaternion = quaternion_from_matrix(matrix)
    assert np.all(np.asarray(quaternion[..., 0]) >= 0)
    np.testing.assert_allclose(np.linalg.norm(quaternion, axis=-1), 1, atol=1e-6)
    np.testing.assert_allclose(matrix_from_quaternion(quaternion), matrix, atol=3e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_quaternion_at_half_a_turn_is_finite(axis):
    matrix = Rotation.from_rotvec(np.eye(3)[axis] * np.pi).as_matrix()
    quaternion = np.asarray(quaternion_from_matrix(matrix))
    np.testing.assert_allclose(np.abs(quaternion), np.eye(4)[axis + 1], atol=1e-6)


def test_quaternion_equals_the_official_one(goldens_dir):
    golden = np.load(goldens_dir / "cameras.npz", allow_pickle=False)
    quaternion = quaternion_from_matrix(golden["w2c"][:, :3, :3])
    np.testing.assert_allclose(quaternion, golden["quat"], atol=1e-5)


def test_look_at_puts_the_target_on_the_axis_and_up_upwards():
    eye = np.array([[1.0, -2.0, 0.5], [0.0, 0.0, 0.0]])
    target = np.array([[0.0, 0.5, 4.0], [0.0, 0.0, 1.0]])
    w2c = np.asarray(look_at(eye, target))
    seen = np.einsum("fij,fj->fi", w2c[:, :3, :3], target) + w2c[:, :3, 3]
    np.testing.assert_allclose(seen[:, :2], 0, atol=1e-5)
    np.testing.assert_allclose(seen[:, 2], np.linalg.norm(target - eye, axis=-1), rtol=1e-5)
    np.testing.assert_allclose(np.linalg.det(w2c[:, :3, :3]), 1, atol=1e-5)
    higher = target + np.array([0.0, -0.1, 0.0])
    above = np.einsum("fij,fj->fi", w2c[:, :3, :3], higher) + w2c[:, :3, 3]
    assert np.all(above[:, 1] < 0)
    np.testing.assert_allclose(above[:, 0], 0, atol=1e-5)
    np.testing.assert_allclose(w2c[1], np.eye(4), atol=1e-7)
