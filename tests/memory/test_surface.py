import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.geometry.cameras import project, unproject
from worldstereo_jax.memory import surface

between_surfaces = jax.jit(surface.between_surfaces)
one_surface = jax.jit(surface.one_surface, static_argnames="tolerance")
tangent_planes = jax.jit(surface.tangent_planes)


def _plane(slope_x, slope_y, offset, h=12, w=16):
    y, x = np.mgrid[:h, :w] + 0.5
    return jnp.asarray(slope_x * x + slope_y * y + offset, jnp.float32)


@pytest.mark.row("S3")
def test_tangent_planes_are_exact_on_slanted_planes():
    inverse = _plane(0.004, -0.002, 0.3)
    planes = tangent_planes(inverse)
    wanted = np.broadcast_to([0.004, -0.002, 0.3], planes.shape)
    np.testing.assert_allclose(planes, wanted, atol=2e-6)


def test_tangent_planes_do_not_lean_over_a_depth_edge():
    near, far = _plane(0.002, 0.0, 0.5), _plane(0.0, 0.001, 0.1)
    inverse = jnp.where(jnp.arange(16)[None, :] < 8, near, far)
    planes = tangent_planes(inverse)
    np.testing.assert_allclose(planes[:, :8, 0], 0.002, atol=1e-5)
    np.testing.assert_allclose(
        planes[:, 8:, :2], np.broadcast_to([0, 0.001], (12, 8, 2)), atol=1e-5
    )


@pytest.mark.row("S6")
def test_a_pixel_between_two_surfaces_is_found_and_a_steep_plane_is_not():
    inverse = jnp.where(jnp.arange(16)[None, :] < 8, _plane(0, 0, 0.5), _plane(0, 0, 0.1))
    assert not between_surfaces(inverse).any()
    bled = inverse.at[:, 8].set(0.3)
    found = between_surfaces(bled)
    assert found[:, 8].all()
    assert found.sum() == 12
    assert not between_surfaces(_plane(0.03, 0.01, 0.05)).any()


def test_one_surface_ends_two_pixels_before_an_edge():
    inverse = jnp.where(jnp.arange(16)[None, :] < 8, _plane(0.01, 0, 0.5), _plane(0, 0, 0.1))
    whole = one_surface(inverse, tangent_planes(inverse), tolerance=0.02)
    np.testing.assert_array_equal(whole[5], [True] * 6 + [False] * 4 + [True] * 6)


def test_extremes_around_ignore_missing_depth():
    inverse = jnp.zeros((5, 5)).at[2, 2].set(0.5).at[2, 3].set(0.2)
    assert surface.farthest_around(inverse)[2, 2] == pytest.approx(0.2)
    assert surface.farthest_around(inverse)[2, 1] == pytest.approx(0.5)
    assert surface.farthest_around(inverse)[0, 0] == 0
    assert surface.nearest_around(inverse)[1, 4] == pytest.approx(0.2)


@pytest.mark.row("S34")
def test_only_a_nearer_surface_right_beside_a_pixel_stands_before_it():
    """A box before a slanted wall, a dent in the wall, and a pixel of unknown depth."""
    near, far = _plane(0.0, 0.002, 0.5), _plane(0.01, -0.004, 0.15)
    x, y = np.arange(16)[None, :], np.arange(12)[:, None]
    inverse = jnp.where(x < 5, near, far).at[3, 11].set(0.0).at[8, 11].multiply(0.8)
    found = surface.nearer_beside(inverse, tangent_planes(inverse), tolerance=0.04)
    wanted = np.where((x == 5) & (y >= 0), near[np.minimum(y + 1, 11), 4], 0.0)
    np.testing.assert_allclose(np.asarray(found)[:, :10], wanted[:, :10])
    # A dent is behind its neighbours, which stand before it; it does not stand before them.
    beyond = np.asarray(found)[:, 10:]
    assert beyond[8, 1] > 0
    assert np.count_nonzero(beyond) == 1


@pytest.mark.row("S34")
def test_only_what_a_nearer_surface_encloses_shines_through_it():
    near = _plane(0.002, -0.001, 0.5)
    # A dot, two side by side, a slit one pixel wide, a window, and a silhouette.
    far = np.zeros(near.shape, bool)
    far[2, 3] = far[5, 2:4] = True
    enclosed = far.copy()
    far[:, 6] = far[8:12, 0:4] = far[:, 12:] = True
    inverse = jnp.where(far, 0.1, near)
    found = surface.shines_through(inverse, tolerance=0.1)
    np.testing.assert_array_equal(found, enclosed)
    np.testing.assert_array_equal(surface.shines_through(7.0 * inverse, tolerance=0.1), enclosed)
    for still in (near, jnp.where(far, 0.47, near), jnp.where(enclosed, 0.0, near), 0.0 * near):
        assert not surface.shines_through(still, tolerance=0.1).any()


def test_pixel_transfer_is_projection_of_the_unprojected(room):
    one, other = room.bank, room.target
    matrix, vector = surface.pixel_transfer(
        one.w2c[0], one.intrinsics[0], other.w2c[1], other.intrinsics[1]
    )
    pixels = jnp.array([[3.5, 70.25], [100.0, 11.0]])
    depth = jnp.array([2.0, 5.0])
    q = (matrix @ jnp.append(pixels, jnp.ones((2, 1)), 1).T).T + vector[None] / depth[:, None]
    points = unproject(pixels, depth, one.w2c[0], one.intrinsics[0])
    wanted, z = project(points, other.w2c[1], other.intrinsics[1])
    np.testing.assert_allclose(q[:, :2] / q[:, 2:], wanted, atol=1e-3)
    np.testing.assert_allclose(depth * q[:, 2], z, rtol=1e-5)


def test_inverse_intrinsics_with_skew():
    k = jnp.array([[90.0, 2.0, 50.0], [0, 80.0, 40.0], [0, 0, 1.0]])
    found = jax.jit(surface.inverse_intrinsics)(k)
    np.testing.assert_allclose(found, np.linalg.inv(k), rtol=1e-5, atol=1e-6)


@pytest.mark.row("S22")
def test_only_pixels_beside_a_jump_are_at_an_edge():
    """A slanted wall with a box before it, and a pixel of unknown depth."""
    y, x = np.mgrid[:24, :32].astype(np.float32)
    inverse = 0.2 + 0.004 * x + 0.002 * y
    inverse[8:16, 10:20] = 0.5
    inverse[3, 27] = 0.0
    inverse = jnp.asarray(inverse)
    found = np.asarray(surface.beside_jump(inverse, tangent_planes(inverse), tolerance=0.02))
    wanted = np.zeros((24, 32), bool)
    wanted[7:17, 9:21] = True
    wanted[9:15, 11:19] = False
    wanted[2:5, 26:29] = True
    wanted[3, 27] = False
    np.testing.assert_array_equal(found, wanted)


def test_half_precision_becomes_single_before_anything_is_computed():
    depth = jnp.array([[3.0, 0.0], [jnp.inf, 0.7]], jnp.bfloat16)
    found = surface.inverse_depth(depth)
    np.testing.assert_array_equal(found, surface.inverse_depth(depth.astype(jnp.float32)))
    assert found.dtype == jnp.float32
