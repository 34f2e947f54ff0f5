import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.posed_cameras import random_cameras
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats.posed_cameras import (
    UNIT_SIZE,
    by_number,
    fitted,
    inverse,
    resized,
    rigid_from_quaternions,
    rigid_from_rows,
)


def test_the_inverse_undoes_a_pose_far_from_the_origin():
    w2c = random_cameras().w2c
    w2c[:, :3, 3] *= 1e6
    np.testing.assert_allclose(inverse(w2c) @ w2c, np.broadcast_to(np.eye(4), w2c.shape), atol=1e-8)
    np.testing.assert_allclose(inverse(inverse(w2c)), w2c, rtol=1e-12, atol=1e-8)


def test_a_quaternion_and_its_negative_are_one_rotation_half_turns_included():
    turns = Rotation.from_matrix(random_cameras().w2c[:, :3, :3])
    place = np.zeros((len(turns), 3))
    for sign in (1, -1):
        found = rigid_from_quaternions(sign * turns.as_quat(), place, str)
        np.testing.assert_allclose(found[:, :3, :3], turns.as_matrix(), atol=1e-12)


def test_lengths_and_rotations_are_checked_and_rounding_is_mended():
    place = np.zeros((2, 3))
    good = np.array([[0, 0, 0, 1.0], [0, 0, 0, 1.0]])
    with pytest.raises(InputError, match=r"camera 1: the quaternion has length 1\.5"):
        rigid_from_quaternions(good * [[1], [1.5]], place, lambda i: f"camera {i}")
    with pytest.raises(InputError, match="length 0"):
        rigid_from_quaternions(good * 0, place, str)
    rows = random_cameras().w2c[:, :3]
    rounded = rigid_from_rows(np.round(rows, 4), str)
    error = rounded[:, :3, :3] @ np.swapaxes(rounded[:, :3, :3], 1, 2) - np.eye(3)
    assert np.abs(error).max() < 1e-12
    np.testing.assert_allclose(rounded[:, :3], rows, atol=1e-3)
    for spoil in (np.diag([1.0, 1.0, -1.0]), 1.1 * np.eye(3)):
        with pytest.raises(InputError, match="0: the left 3 x 3 of its matrix is no rotation"):
            rigid_from_rows(spoil @ rows, str)


def test_images_of_the_same_proportions_are_resized_and_others_cut():
    k = random_cameras(1).intrinsics
    np.testing.assert_allclose(fitted(k, (48, 64), (96, 128)), resized(k, (48, 64), (96, 128)))
    square = k.copy()
    square[:, 1, 1] = square[:, 0, 0]
    for target in ((48, 48), (64, 64), (100, 20)):
        found = fitted(square, (48, 64), target)
        # One factor, the cut is even, and nothing of the target stays empty.
        factor = found[0, 0, 0] / square[0, 0, 0]
        np.testing.assert_allclose(found[0, 1, 1], factor * square[0, 1, 1])
        np.testing.assert_allclose(factor, max(target[0] / 48, target[1] / 64))
        middle = np.array([target[1] / 2, target[0] / 2])
        np.testing.assert_allclose(found[0, :2, 2] - middle, factor * (square[0, :2, 2] - [32, 24]))


def test_shares_of_an_image_know_its_proportions_by_square_pixels():
    k = np.array([[[100.0, 0, 80], [0, 100, 45], [0, 0, 1]]])
    shares = resized(k, (90, 160), UNIT_SIZE)
    for target in ((180, 320), (90, 90), (200, 100)):
        np.testing.assert_allclose(fitted(shares, UNIT_SIZE, target), fitted(k, (90, 160), target))


def test_numbers_in_names_count_as_numbers():
    names = ["b/2.png", "a10.png", "a9.png", "a09.png", "b/10.png"]
    assert [names[i] for i in by_number(names)] == [
        "a9.png",
        "a09.png",
        "a10.png",
        "b/2.png",
        "b/10.png",
    ]


def test_frames_are_taken_with_all_that_is_theirs():
    given = random_cameras()
    found = given.take(np.array([4, 0]))
    assert found.names == ("0004.png", "0000.png")
    np.testing.assert_array_equal(found.w2c, given.w2c[[4, 0]])
    np.testing.assert_array_equal(found.times, given.times[[4, 0]])
    assert len(found) == len(found.intrinsics) == 2
