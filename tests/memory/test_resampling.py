import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.memory.resampling import cubic_weights, sample_surface
from worldstereo_jax.memory.surface import one_surface, tangent_planes


@jax.jit
def _sample(features, inverse, pixels):
    planes = tangent_planes(inverse)
    smooth = one_surface(inverse, planes, tolerance=0.04)
    cell = pixels.astype(jnp.int32)
    return sample_surface(
        features[None],
        inverse[None],
        smooth[None],
        jnp.zeros(pixels.shape[:1], jnp.int32),
        pixels,
        planes[cell[:, 1], cell[:, 0]],
        tolerance=0.04,
    )


def test_cubic_weights_interpolate_quadratics():
    t = jnp.linspace(0, 1, 7)
    weights = cubic_weights(t)
    for power in range(3):
        value = sum(w * float(x) ** power for w, x in zip(weights, (-1, 0, 1, 2), strict=True))
        np.testing.assert_allclose(value, t**power, atol=1e-6)


def test_samples_on_one_surface_are_exact_for_quadratics():
    y, x = np.mgrid[:10, :12] + 0.5
    features = jnp.asarray(np.stack([x**2 - y, x * y], -1), jnp.float32)
    pixels = jnp.array([[5.3, 4.9], [6.0, 5.5], [3.75, 6.2]])
    found = _sample(features, jnp.full((10, 12), 0.5), pixels)
    px, py = pixels.T
    np.testing.assert_allclose(found, jnp.stack([px**2 - py, px * py], -1), rtol=1e-4)


def test_two_surfaces_do_not_mix():
    near = (jnp.arange(12) < 6)[None, :, None]
    features = jnp.where(near, 1.0, -1.0) * jnp.ones((10, 12, 1))
    inverse = jnp.where(near[..., 0], 0.5, 0.1) * jnp.ones((10, 12))
    pixels = jnp.stack([jnp.linspace(3.5, 8.4, 23), jnp.full((23,), 5.2)], -1)
    found = _sample(features, inverse, pixels)[:, 0]
    np.testing.assert_allclose(found, jnp.where(pixels[:, 0] < 6, 1.0, -1.0), atol=1e-3)
