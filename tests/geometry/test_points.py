import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry import cameras, points, rotations

K = np.array([[30.0, 0.0, 16.0], [0.0, 28.0, 12.0], [0.0, 0.0, 1.0]], np.float32)
H, W = 24, 32


def a_camera() -> np.ndarray:
    w2c = np.eye(4, dtype=np.float32)
    w2c[:3, :3] = np.asarray(rotations.axis_angle_to_matrix(jnp.array([0.2, -0.4, 0.1])))
    w2c[:3, 3] = [0.3, -0.2, 0.5]
    return w2c


def plane_depth(normal: np.ndarray, offset: float, w2c: np.ndarray) -> np.ndarray:
    """Depth of the world plane normal . p = offset, by float64 ray casting."""
    y, x = np.mgrid[:H, :W] + 0.5
    rays = np.stack([(x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1], np.ones((H, W))], -1)
    rotation, translation = w2c[:3, :3].astype(float), w2c[:3, 3].astype(float)
    centre = -rotation.T @ translation
    return ((offset - normal @ centre) / ((rays @ rotation) @ normal)).astype(np.float32)


def step_depth() -> np.ndarray:
    depth = np.full((H, W), 4.0, np.float32)
    depth[:, W // 2 :] = 1.0
    return depth


def test_unprojection_keeps_the_official_pixels(goldens_dir: Path):
    golden = np.load(goldens_dir / "unprojection.npz", allow_pickle=False)
    cloud = jax.jit(
        lambda image, depth, w2c, k, valid: points.unproject_image(
            image, depth, w2c, k, valid=valid, invalid_depth="as_given"
        )
    )(
        golden["image"][0].transpose(1, 2, 0),
        golden["depth"],
        golden["w2c"][0],
        golden["K"][0],
        ~golden["invalid_mask"],
    )
    positions, colors = points.compact(cloud)
    assert positions.shape == (166, 3)
    np.testing.assert_allclose(positions, golden["points"], atol=1e-5)
    np.testing.assert_allclose(colors, golden["colors"], atol=1e-5)


def test_an_invalid_pixel_saves_real_edges_as_officially_but_not_in_our_form():
    depth = step_depth()
    image = np.zeros((H, W, 3), np.float32)
    edge = np.zeros((H, W), bool)
    edge[:, W // 2 - 1 : W // 2 + 1] = True

    def kept(depth: np.ndarray, mode: str) -> np.ndarray:
        cloud = points.unproject_image(image, depth, np.eye(4), K, invalid_depth=mode)
        return np.asarray(cloud.valid).reshape(H, W)

    for mode in ("zero", "excluded"):
        np.testing.assert_array_equal(kept(depth, mode), ~edge)
    hole = depth.copy()
    hole[3, 4] = 0.0
    around = np.zeros((H, W), bool)
    around[2:5, 3:6] = True
    official = kept(hole, "zero")
    assert official[edge].all(), "the disparity of a zero depth swamps the real edge"
    assert not official[around].any()
    ours = kept(hole, "excluded")
    assert not ours[edge].any()
    np.testing.assert_array_equal(ours[around].sum(), 8)
    np.testing.assert_array_equal(
        np.asarray(points.unproject_image(image, hole, np.eye(4), K).valid).reshape(H, W), official
    )


@pytest.mark.parametrize("bad", [0.0, -1.0, np.nan, np.inf])
def test_unknown_depth_is_dropped_and_harms_nothing(bad: float):
    depth = plane_depth(np.array([0.0, 0.0, 1.0]), 3.0, np.eye(4))
    depth[5, 7] = bad
    cloud = points.unproject_image(
        np.zeros((H, W, 3), np.float32), depth, np.eye(4), K, invalid_depth="excluded"
    )
    assert not cloud.valid[5 * W + 7]
    assert int(cloud.valid.sum()) == H * W - 1
    assert np.isfinite(points.compact(cloud)[0]).all()


def test_nothing_valid_gives_an_empty_cloud():
    for mode in ("zero", "excluded", "as_given"):
        cloud = points.unproject_image(
            np.zeros((H, W, 3), np.float32), np.zeros((H, W)), np.eye(4), K, invalid_depth=mode
        )
        assert points.compact(cloud)[0].shape == (0, 3)


def test_unknown_mode_is_refused():
    with pytest.raises(InputError, match="invalid_depth"):
        points.unproject_image(
            np.zeros((H, W, 3), np.float32),
            np.ones((H, W)),
            np.eye(4),
            K,
            invalid_depth="exclude",
        )


def test_points_project_back_to_their_pixels():
    w2c = a_camera()
    depth = plane_depth(np.array([0.2, 0.1, 1.0]), 5.0, w2c)
    pixels, z = cameras.project(points.depth_to_points(depth, w2c, K), w2c, K)
    np.testing.assert_allclose(pixels, cameras.pixel_grid(H, W), atol=1e-4)
    np.testing.assert_allclose(z, depth, rtol=1e-5)


def test_lower_median_of_an_even_count_is_the_lower_one():
    values = jnp.array([[5.0, 1.0, 7.0, 3.0, 100.0]])
    where = jnp.array([[True, True, True, True, False]])
    assert float(points.lower_median(values, where)) == 3.0
    assert float(points.lower_median(values, jnp.zeros_like(where))) == 0.0


def test_contraction_is_official_far_away_and_leaves_the_rest():
    depth = np.full((H, W), 2.0, np.float32)
    depth[0, :4] = [15.9, 16.0, 32.0, 1e6]
    depth[0, 4] = 0.0
    contracted = np.asarray(points.contract_depth(depth))
    # The limit is 16: 2 * 16 - 256 / d.
    np.testing.assert_allclose(contracted[0, :5], [15.9, 16.0, 24.0, 32.0, 0.0], rtol=1e-4)
    np.testing.assert_array_equal(contracted[1:], depth[1:])
    np.testing.assert_array_equal(points.contract_depth(depth, medians=math.inf), depth)


def test_edges_fall_on_steps_only():
    assert np.asarray(points.depth_edges(np.full((H, W), 3.0, np.float32))).all()
    keep = np.asarray(points.depth_edges(step_depth()))
    np.testing.assert_array_equal(np.flatnonzero(~keep[0]), [W // 2 - 1, W // 2])
    assert np.asarray(points.depth_edges(step_depth(), threshold=0.0)).all()


@pytest.mark.row("S4")
def test_normals_of_a_slanted_plane_are_exact_and_face_the_camera():
    w2c = a_camera()
    normal = np.array([0.3, -0.5, 1.0])
    normal /= np.linalg.norm(normal)
    depth = plane_depth(normal, 6.0, w2c)
    found = np.asarray(points.normals_from_depth(depth, w2c, K))
    # The camera stands on the side that the plane's normal points away from.
    np.testing.assert_allclose(found, np.broadcast_to(-normal, found.shape), atol=2e-3)
    to_camera = np.asarray(cameras.camera_centers(w2c)) - np.asarray(
        points.depth_to_points(depth, w2c, K)
    )
    assert (np.sum(found * to_camera, -1) > 0).all()


@pytest.mark.row("S4")
def test_normals_keep_to_their_own_side_of_a_step_and_vanish_where_undefined():
    near = plane_depth(np.array([0.4, 0.0, 1.0]), 2.0, np.eye(4))
    far = plane_depth(np.array([-0.3, 0.2, 1.0]), 6.0, np.eye(4))
    depth = np.where(np.arange(W)[None, :] < W // 2, near, far)
    depth[10, 10] = 0.0
    depth[0:3, 0:3] = 0.0
    depth[1, 1] = 2.0
    found = np.asarray(points.normals_from_depth(depth, np.eye(4), K))
    known = np.ones((H, W), bool)
    known[10, 10] = known[0:3, 0:3] = False
    for normal, side in (([0.4, 0.0, 1.0], slice(0, W // 2)), ([-0.3, 0.2, 1.0], slice(W // 2, W))):
        expected = -np.array(normal) / np.linalg.norm(normal)
        angle = found[:, side][known[:, side]] @ expected
        assert angle.min() > 0.9999
    assert (found[10, 10] == 0).all()
    assert (found[0:3, 0:3] == 0).all(), "a pixel without neighbours has no normal"
