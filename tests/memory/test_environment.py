import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.geometry.rotations import axis_angle_to_matrix
from worldstereo_jax.memory.environment import mirrored_environment, reflect

HEIGHT, WIDTH, FOCAL = 24, 40, 30.0
INTRINSICS = jnp.array([[FOCAL, 0.0, WIDTH / 2], [0.0, FOCAL, HEIGHT / 2], [0.0, 0.0, 1.0]])


def _turned(degrees: float, centre=(0.0, 0.0, 0.0)) -> jax.Array:
    rotation = axis_angle_to_matrix(jnp.array([0.0, jnp.radians(degrees), 0.0]))
    return jnp.eye(4).at[:3, :3].set(rotation).at[:3, 3].set(-rotation @ jnp.asarray(centre))


def _picture() -> jax.Array:
    coarse = jax.random.uniform(jax.random.key(0), (6, 10, 3), minval=-1.0)
    return jax.image.resize(coarse, (HEIGHT, WIDTH, 3), "cubic")


def test_numbers_are_folded_at_both_ends():
    x = jnp.array([0.0, 0.5, 1.0, 1.25, 2.0, 2.75, -0.25, -1.5, 7.1])
    expected = [0.0, 0.5, 1.0, 0.75, 0.0, 0.75, 0.25, 0.5, 0.9]
    np.testing.assert_allclose(reflect(x, jnp.float32(0), jnp.float32(1)), expected, atol=1e-5)


@pytest.mark.row("S36")
def test_the_view_itself_is_the_picture_wherever_the_camera_stands():
    image, start = _picture(), _turned(10.0)
    for centre in ((0.0, 0.0, 0.0), (3.0, -1.0, 5.0)):
        seen = mirrored_environment(image, start, INTRINSICS, _turned(10.0, centre), INTRINSICS)
        np.testing.assert_allclose(seen, image, atol=1e-3)


@pytest.mark.row("S17")
def test_a_turning_camera_sees_no_seam_and_the_same_directions_again():
    """Neighbouring cameras of a full turn show nearly the same; every colour is the picture's."""
    image = _picture()
    look = jax.jit(
        lambda w2c: mirrored_environment(image, _turned(0.0), INTRINSICS, w2c, INTRINSICS)
    )
    views = [np.asarray(look(_turned(angle))) for angle in np.arange(0.0, 360.0, 15.0)]
    for view in views:
        assert np.isfinite(view).all()
        assert view.min() >= image.min() - 1e-5
        assert view.max() <= image.max() + 1e-5
        assert view.std() > 0.5 * float(image.std())
        # Neighbouring pixels differ no more than the picture's own, but for perspective.
        assert np.abs(np.diff(view, axis=1)).max() < 2.5 * np.abs(np.diff(image, axis=1)).max()
    for angle in (40.0, 160.0):
        near, nearer = look(_turned(angle)), look(_turned(angle + 0.2))
        assert float(jnp.abs(near - nearer).mean()) < 0.02


def test_sky_stays_above_and_ground_below():
    ramp = jnp.broadcast_to(jnp.linspace(1.0, -1.0, HEIGHT)[:, None, None], (HEIGHT, WIDTH, 1))
    for angle in (50.0, 100.0, 180.0):
        seen = mirrored_environment(ramp, jnp.eye(4), INTRINSICS, _turned(angle), INTRINSICS)
        middle = np.asarray(seen)[:, WIDTH // 4 : -WIDTH // 4, 0].mean(1)
        assert (np.diff(middle) < 1e-6).all()
        assert middle[0] - middle[-1] > 1.5
