import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.lowered import coarse_products
from worldstereo_jax.geometry import cameras
from worldstereo_jax.geometry.normalisation import normalise_unified

# Each one program, not one of every operation.
project, unproject, camera_vector, invert_rigid, camera_centers, relative_to_first = (
    jax.jit(getattr(cameras, name))
    for name in (
        "project", "unproject", "camera_vector", "invert_rigid", "camera_centers",
        "relative_to_first",
    )
)  # fmt: skip
plucker_rays = jax.jit(cameras.plucker_rays, static_argnums=(2, 3), static_argnames="x_offset")
polar_places = jax.jit(cameras.polar_places, static_argnames="step")


def _camera(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    w2c = np.eye(4, dtype=np.float32)
    w2c[:3, :3] = Rotation.from_rotvec(rng.normal(size=3)).as_matrix()
    w2c[:3, 3] = rng.normal(size=3)
    return w2c


_K = np.array([[50.0, 1.5, 21.0], [0.0, 46.0, 13.0], [0.0, 0.0, 1.0]], np.float32)


def test_invert_rigid_inverts_and_centres_map_to_zero():
    w2c = np.stack([_camera(i) for i in range(5)])
    np.testing.assert_allclose(
        np.asarray(invert_rigid(w2c)) @ w2c,
        np.broadcast_to(np.eye(4), w2c.shape),
        atol=1e-5,
    )
    centres = np.asarray(camera_centers(w2c))
    mapped = np.einsum("fij,fj->fi", w2c[:, :3, :3], centres) + w2c[:, :3, 3]
    np.testing.assert_allclose(mapped, 0, atol=1e-5)


def test_relative_to_first_starts_at_identity_and_keeps_relative_poses():
    w2c = np.stack([_camera(i) for i in range(4)])
    moved = np.asarray(relative_to_first(w2c))
    np.testing.assert_array_equal(moved[0], np.eye(4))
    np.testing.assert_allclose(
        moved[3] @ np.linalg.inv(moved[1]), w2c[3] @ np.linalg.inv(w2c[1]), atol=1e-5
    )


def test_projection_by_hand():
    w2c = np.eye(4, dtype=np.float32)
    w2c[:3, 3] = [0, 0, 2]
    pixels, depth = project(np.array([[1.0, -2.0, 3.0]]), w2c, _K)
    np.testing.assert_allclose(depth, [5.0])
    np.testing.assert_allclose(pixels, [[50 * 0.2 + 1.5 * -0.4 + 21, 46 * -0.4 + 13]], rtol=1e-6)


def test_unproject_inverts_project():
    w2c = _camera(7)
    grid = cameras.pixel_grid(12, 20)
    depth = jnp.asarray(np.random.default_rng(0).uniform(0.5, 9, (12, 20)), jnp.float32)
    points = unproject(grid, depth, w2c, _K)
    assert points.shape == (12, 20, 3)
    pixels, seen = project(points, w2c, _K)
    np.testing.assert_allclose(pixels, grid, atol=1e-3)
    np.testing.assert_allclose(seen, depth, rtol=1e-5)


def test_pixel_grid_holds_centres_x_first():
    grid = np.asarray(cameras.pixel_grid(2, 3))
    np.testing.assert_array_equal(grid[0, 0], [0.5, 0.5])
    np.testing.assert_array_equal(grid[1, 2], [2.5, 1.5])


def test_points_behind_or_in_the_camera_plane_stay_finite():
    points = np.array([[0.3, 0.2, 0.0], [0.3, 0.2, -1.0]])
    pixels, depth = project(points, np.eye(4), _K)
    assert np.all(np.isfinite(pixels))
    assert np.all(np.asarray(depth) <= 0)


def test_resized_intrinsics_project_to_the_same_place_of_the_image():
    point = np.array([[0.4, -0.3, 2.0]])
    before, _ = project(point, np.eye(4), _K)
    resized = cameras.resize_intrinsics(_K, (26, 42), (13, 126))
    after, _ = project(point, np.eye(4), resized)
    np.testing.assert_allclose(after, np.asarray(before) * [3.0, 0.5], rtol=1e-5)
    np.testing.assert_array_equal(resized[2], [0, 0, 1])


def test_plucker_rays_equal_the_official_ones(goldens_dir):
    golden = np.load(goldens_dir / "cameras.npz", allow_pickle=False)
    height, width = (int(x) for x in golden["hw"])
    rays = plucker_rays(golden["normalised"], golden["K"], height, width)
    expected = np.transpose(golden["plucker"][0], (1, 2, 3, 0))
    np.testing.assert_allclose(rays, expected, atol=1e-5)


def test_plucker_rays_with_true_centres_pass_through_the_unprojected_pixels():
    w2c = np.stack([_camera(1), _camera(2)])
    intrinsics = np.stack([_K, _K * np.array([[1.1], [0.9], [1.0]], np.float32)])
    rays = np.asarray(plucker_rays(w2c, intrinsics, 6, 8, x_offset=0.5))
    for i in range(2):
        points = unproject(cameras.pixel_grid(6, 8), jnp.full((6, 8), 3.0), w2c[i], intrinsics[i])
        # A point p lies on the line [d, m] when p x d = m.
        np.testing.assert_allclose(
            np.cross(np.asarray(points), rays[i, ..., :3]), rays[i, ..., 3:], atol=1e-4
        )
    np.testing.assert_allclose(np.linalg.norm(rays[..., :3], axis=-1), 1, atol=1e-5)
    default = np.asarray(plucker_rays(w2c, intrinsics, 6, 8))
    np.testing.assert_allclose(default[:, :, 1:], rays[:, :, :-1], atol=1e-5)


def test_camera_vector_is_quaternion_then_translation(goldens_dir):
    golden = np.load(goldens_dir / "cameras.npz", allow_pickle=False)
    vector = camera_vector(golden["w2c"])
    np.testing.assert_allclose(vector[:, :4], golden["quat"], atol=1e-5)
    np.testing.assert_array_equal(vector[:, 4:], golden["w2c"][:, :3, 3])


def test_wrong_shapes_are_rejected():
    with pytest.raises(Exception, match="w2c"):
        cameras.project(np.zeros((5, 3), np.float32), np.eye(3, dtype=np.float32), _K)


def test_polar_places_follow_the_picture_and_not_the_world():
    """A step is `step` pixels in the middle; moving the world with the camera changes nothing."""
    rng = np.random.default_rng(0)
    k = np.array([[40.0, 0, 20], [0, 40, 16], [0, 0, 1]], np.float32)
    ahead = np.array([[0.0, 0, 3], [3 * 4 / 40, 0, 3], [0, 3 * 4 / 40, 3]], np.float32)
    places = np.asarray(polar_places(ahead, np.eye(4), k, step=4.0))
    np.testing.assert_allclose(places[1:, ::-1][:, :2], [[1, 0], [0, 1]], atol=0.02)
    np.testing.assert_allclose(places[0], [10 * np.log(3), 0, 0], rtol=1e-5)
    points, w2c = rng.normal(size=(20, 3)).astype(np.float32), _camera(1)
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    here = polar_places(points, w2c, k, step=4.0)
    np.testing.assert_allclose(
        here, polar_places(local, np.eye(4), k, step=4.0), rtol=1e-3, atol=1e-3
    )
    twice = polar_places(2 * local, np.eye(4), k, step=4.0) - here
    np.testing.assert_allclose(
        twice, np.broadcast_to([10 * np.log(2), 0, 0], twice.shape), rtol=1e-3, atol=1e-3
    )
    at_camera = polar_places(np.zeros((1, 3), np.float32), np.eye(4), k, step=4.0)
    assert np.isfinite(at_camera).all()


def test_no_device_rounds_a_camera():
    def shape(*sizes):
        return jax.ShapeDtypeStruct(sizes, jnp.float32)

    points, w2c, intrinsics = shape(5, 3), shape(4, 4), shape(3, 3)
    path = shape(6, 4, 4)
    assert not coarse_products(cameras.project, points, w2c, intrinsics)
    assert not coarse_products(cameras.unproject, shape(5, 2), shape(5), w2c, intrinsics)
    assert not coarse_products(lambda w, k: cameras.plucker_rays(w, k, 4, 6), path, shape(6, 3, 3))
    assert not coarse_products(cameras.camera_vector, path)
    assert not coarse_products(normalise_unified, path, shape(2, 4, 4))
