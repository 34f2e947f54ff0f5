import numpy as np
import pytest

from worldstereo_jax.data.scene_distance import signed_distance
from worldstereo_jax.data.scene_layouts import make_scene
from worldstereo_jax.data.scene_render import trace_depth
from worldstereo_jax.data.scene_trajectories import (
    CLEARANCE,
    KINDS,
    OVERLAP,
    overlap_with_first,
    revisited,
    sample_revisit,
    sample_trajectory,
    scene_intrinsics,
)
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers


@pytest.mark.parametrize("kind", KINDS)
def test_paths_start_at_the_identity_keep_clear_and_overlap(kind):
    for seed in (0, 1, 4):
        scene = make_scene(seed, "train")
        w2c, k = sample_trajectory(seed, scene, 5, kind, height=48, width=80)
        np.testing.assert_array_equal(w2c[0], np.eye(4))
        rotation = np.asarray(w2c[:, :3, :3])
        np.testing.assert_allclose(
            rotation @ rotation.transpose(0, 2, 1), np.tile(np.eye(3), (5, 1, 1)), atol=1e-5
        )
        np.testing.assert_allclose(np.linalg.det(rotation), 1, atol=1e-5)
        centres = np.asarray(camera_centers(w2c))
        assert signed_distance(scene, centres).min() > CLEARANCE - 1e-4
        # Seen through the camera itself: nothing is nearer than a wide ray allows.
        assert float(trace_depth(scene, w2c, k, height=48, width=80).min()) > 0.5 * CLEARANCE
        least = overlap_with_first(scene, w2c).min()
        assert OVERLAP[0] <= least <= OVERLAP[1]
        # Parallax: the last camera has really moved.
        assert np.linalg.norm(centres[-1]) > 0.1


def test_paths_keep_upright():
    scene = make_scene(2, "train")
    w2c, _ = sample_trajectory(2, scene, 5, "orbit")
    up = -np.asarray(scene.room_from_world)[1, :3]
    right = np.asarray(w2c)[:, 0, :3]
    np.testing.assert_allclose(right @ up, 0, atol=1e-5)


def test_a_seed_gives_one_path():
    scene = make_scene(2, "train")
    first, _ = sample_trajectory(9, scene, 5)
    again, _ = sample_trajectory(9, scene, 5)
    other, _ = sample_trajectory(10, scene, 5)
    np.testing.assert_array_equal(first, again)
    assert np.any(np.asarray(first) != np.asarray(other))


def test_intrinsics_have_the_scenes_field_of_view():
    scene = make_scene(3, "train")
    k = np.asarray(scene_intrinsics(scene, 2, height=96, width=160))
    fov = 2 * np.arctan(80 / k[0, 0, 0])
    np.testing.assert_allclose(fov, float(scene.horizontal_fov), rtol=1e-5)
    assert np.deg2rad(60) <= fov <= np.deg2rad(80)
    np.testing.assert_array_equal(k[1, :, 2], [80, 48, 1])
    assert k[0, 0, 0] == k[0, 1, 1]


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_the_second_path_of_a_pair_revisits(seed):
    scene = make_scene(seed, "held_out")
    first, second, _ = sample_revisit(seed, scene, 5)
    np.testing.assert_array_equal(first[0], np.eye(4))
    np.testing.assert_array_equal(second[0], np.eye(4))
    assert np.abs(np.asarray(first) - np.asarray(second)).max() > 0.02
    share = revisited(scene, second, first)
    assert share.mean() >= 0.08
    assert not share[0].any()


def test_nothing_is_revisited_after_a_clip_that_stood_still():
    scene = make_scene(0, "train")
    _, second, _ = sample_revisit(0, scene, 5)
    still = np.tile(np.eye(4, dtype=np.float32), (5, 1, 1))
    assert not revisited(scene, second, still).any()


def test_bad_arguments_are_named():
    scene = make_scene(0, "train")
    with pytest.raises(InputError, match="zigzag"):
        sample_trajectory(0, scene, 5, "zigzag")
    with pytest.raises(InputError, match="frames is 1"):
        sample_revisit(0, scene, 1)
