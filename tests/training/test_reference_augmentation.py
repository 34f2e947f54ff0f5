"""What is done to true views before they enter the memory."""

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.geometry.cameras import pixel_grid, unproject
from worldstereo_jax.training import reference_augmentation
from worldstereo_jax.training.reference_augmentation import (
    CROP,
    LESS_DEPTH,
    NOISY_DEPTH,
    Reference,
    augment_reference,
    degrade_depth,
)

coarsen_depth = jax.jit(reference_augmentation.coarsen_depth)
crop = jax.jit(reference_augmentation.crop)
gaussian_blur = jax.jit(reference_augmentation.gaussian_blur)
jitter_colours = jax.jit(reference_augmentation.jitter_colours)

HEIGHT, WIDTH = 24, 40
K = jnp.array([[30.0, 0, 20], [0, 32.0, 12], [0, 0, 1]])


def view() -> Reference:
    """A wall whose colours say where in the world it is, 4 m away."""
    depth = jnp.full((HEIGHT, WIDTH), 4.0)
    points = unproject(pixel_grid(HEIGHT, WIDTH).reshape(-1, 2), depth.reshape(-1), jnp.eye(4), K)
    return Reference(0.2 * points.reshape(HEIGHT, WIDTH, 3), depth, K, jnp.zeros_like(depth))


def test_a_crop_shows_each_point_where_its_camera_puts_it():
    whole = view()
    found = crop(whole, jnp.float32(0.8), jnp.array([0.25, 0.75]))
    points = unproject(
        pixel_grid(HEIGHT, WIDTH).reshape(-1, 2), found.depth.reshape(-1), jnp.eye(4),
        found.intrinsics,
    )  # fmt: skip
    np.testing.assert_allclose(
        found.image[1:-1, 1:-1], 0.2 * points.reshape(HEIGHT, WIDTH, 3)[1:-1, 1:-1], atol=2e-3
    )
    assert float(found.intrinsics[0, 0]) > 1.2 * float(K[0, 0])
    same = crop(whole, jnp.float32(1.0), jnp.array([0.3, 0.3]))
    np.testing.assert_allclose(same.image, whole.image, atol=1e-5)
    np.testing.assert_array_equal(same.intrinsics, K)


def test_a_crop_takes_the_nearest_depth():
    whole = view()._replace(depth=jnp.full((HEIGHT, WIDTH), 2.0).at[:, 17:].set(9.0))
    found = crop(whole, jnp.float32(0.9), jnp.array([0.5, 0.1]))
    assert set(np.unique(found.depth)) == {2.0, 9.0}


def test_blur_and_colours_stay_near_and_within_range():
    image = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (HEIGHT, WIDTH, 3)), jnp.float32)
    np.testing.assert_allclose(gaussian_blur(image, jnp.float32(0)), image, atol=1e-6)
    smooth = gaussian_blur(image, jnp.float32(1.5))
    assert float(jnp.diff(smooth, axis=1).std()) < 0.3 * float(jnp.diff(image, axis=1).std())
    np.testing.assert_allclose(smooth.mean(), image.mean(), atol=0.02)
    constant = jnp.full((4, 4, 3), 0.3)
    np.testing.assert_allclose(gaussian_blur(constant, jnp.float32(1.5)), constant, atol=1e-6)
    shades = [np.asarray(jitter_colours(image, jax.random.key(i))) for i in range(3)]
    assert all(np.abs(shade).max() <= 1 for shade in shades)
    assert 0.01 < np.abs(shades[0] - shades[1]).mean() < 0.3


def test_depth_is_made_worse_as_often_as_stated():
    depth = jnp.linspace(1, 9, HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) % 3.0 + 1
    depth = depth.at[:3].set(0)
    draws = 600
    keys = jax.random.split(jax.random.key(0), draws)
    found = np.asarray(jax.jit(jax.vmap(degrade_depth, in_axes=(None, 0)))(depth, keys))
    assert not found[:, :3].any()
    assert (found[:, 3:] > 0).all()
    untouched = (found == np.asarray(depth)).all((1, 2)).mean()
    coarse = (np.abs(found - np.asarray(coarsen_depth(depth))) < 1e-5).all((1, 2)).mean()
    assert abs(untouched - (1 - LESS_DEPTH) * (1 - NOISY_DEPTH)) < 0.06
    assert abs(coarse - LESS_DEPTH * (1 - NOISY_DEPTH)) < 0.06


def test_coarse_depth_of_a_slope_is_the_slope():
    slope = 2 + 0.05 * jnp.broadcast_to(jnp.arange(WIDTH)[None], (HEIGHT, WIDTH))
    inside = np.asarray(coarsen_depth(slope)[:, 6:-6])
    np.testing.assert_allclose(inside, slope[:, 6:-6], atol=1e-4)
    # Unknown pixels do not pull their neighbours to zero.
    holes = jnp.where(jnp.arange(WIDTH)[None] % 7 == 0, 0.0, 3.0) * jnp.ones((HEIGHT, 1))
    found = np.asarray(coarsen_depth(holes))
    np.testing.assert_allclose(found[np.asarray(holes) > 0], 3.0, atol=1e-5)


def test_augmentation_is_seeded_and_small():
    whole = view()
    augment = jax.jit(augment_reference)
    first, again, other = (augment(whole, jax.random.key(i)) for i in (0, 0, 1))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    assert np.abs(np.asarray(first.image - other.image)).max() > 1e-3
    focal = [float(found.intrinsics[0, 0]) / 30 for found in (first, other)]
    assert all(1 <= f <= 1 / (1 - CROP) for f in focal)
