import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import map_coordinates

from worldstereo_jax.geometry.cameras import pixel_grid
from worldstereo_jax.geometry.sampling import sample_bilinear


@pytest.mark.parametrize("size", [(7, 11), (1, 5), (6, 1), (1, 1)])
def test_agrees_with_scipy_inside_and_beyond_the_border(size):
    rng = np.random.default_rng(0)
    image = rng.normal(size=(*size, 3)).astype(np.float32)
    pixels = rng.uniform(-3, 3 + max(size), (40, 6, 2)).astype(np.float32)
    found = sample_bilinear(image, pixels)
    at = np.stack([pixels[..., 1] - 0.5, pixels[..., 0] - 0.5])
    expected = np.stack(
        [map_coordinates(image[..., c], at, order=1, mode="nearest") for c in range(3)], -1
    )
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_pixel_centres_give_the_image_itself():
    image = np.random.default_rng(1).normal(size=(5, 8, 2)).astype(np.float32)
    np.testing.assert_array_equal(sample_bilinear(image, pixel_grid(5, 8)), image)


def test_is_exact_on_a_plane_and_its_gradient_is_the_slope():
    grid = pixel_grid(6, 9)
    plane = (2.0 * grid[..., 0] - 3.0 * grid[..., 1])[..., None]
    at = jnp.array([3.3, 2.8])
    np.testing.assert_allclose(sample_bilinear(plane, at)[0], 2 * 3.3 - 3 * 2.8, rtol=1e-5)
    slope = jax.grad(lambda p: sample_bilinear(plane, p)[0])(at)
    np.testing.assert_allclose(slope, [2, -3], rtol=1e-5)
