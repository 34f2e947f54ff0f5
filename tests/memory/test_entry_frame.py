import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import project, unproject
from worldstereo_jax.memory import entry_frame
from worldstereo_jax.memory.entry_frame import surface_points

frame_surface = jax.jit(entry_frame.frame_surface)
make_entry_frame = jax.jit(entry_frame.make_entry_frame)
sample_surface_at = jax.jit(entry_frame.sample_surface_at)


@pytest.fixture(scope="module")
def frame(room):
    w2c = es.cameras(room, 3)[1:2]
    images, depth = es.photographs(room, w2c)
    return es.one(es.frames(images, depth, w2c), 0)


@pytest.mark.row("S10")
def test_points_on_the_surface_are_found_on_it_between_pixels_too(frame):
    surface = frame_surface(frame)
    random = np.random.default_rng(0)
    pixel = jnp.asarray(random.uniform([1, 1], [47, 31], (400, 2)), jnp.float32)
    guess = unproject(pixel, jnp.full((400,), 3.0), frame.w2c, frame.intrinsics)
    sample = sample_surface_at(surface, guess)
    known = np.asarray(sample.confidence) > 0
    assert known.mean() > 0.9
    np.testing.assert_allclose(sample.pixel, pixel, atol=1e-3)
    points = surface_points(surface, sample)
    # Away from edges the tangent plane is the room's own plane.
    assert np.quantile(es.surface_error(points)[known], 0.9) < 1e-3
    back, _ = project(points, frame.w2c, frame.intrinsics)
    np.testing.assert_allclose(np.asarray(back)[known], np.asarray(pixel)[known], atol=1e-2)
    again = sample_surface_at(surface, points)
    np.testing.assert_allclose(np.asarray(again.ratio)[known], 1.0, atol=1e-3)


@pytest.mark.row("S36")
def test_outside_the_picture_and_behind_the_camera_nothing_is_known(frame):
    surface = frame_surface(frame)
    pixel = jnp.array([[-1.0, 5.0], [5.0, 33.0], [24.0, 16.0]])
    outside = unproject(pixel, jnp.array([3.0, 3.0, -3.0]), frame.w2c, frame.intrinsics)
    sample = sample_surface_at(surface, outside)
    assert not sample.inside.any()
    np.testing.assert_array_equal(sample.confidence, 0.0)
    np.testing.assert_array_equal(sample.ratio, 0.0)


@pytest.mark.row("S6")
def test_confidence_comes_from_the_depth_when_not_given(room):
    w2c = es.cameras(room, 1)
    images, depth = es.photographs(room, w2c)
    made = make_entry_frame(
        jnp.asarray(images[0]),
        jnp.asarray(depth[0]),
        jnp.asarray(w2c[0]),
        jnp.asarray(es.INTRINSICS),
        view=3,
        source=2,
    )
    assert 0.0 <= float(made.confidence.min()) < 0.3
    assert 0.8 < float(made.confidence.max()) <= 1.0
    assert (int(made.view), int(made.source)) == (3, 2)


@pytest.mark.usefixtures("unchecked")
def test_a_frame_is_float32_whatever_it_is_made_of():
    """Or a scan that carries a bank would change its types."""
    image, depth = np.zeros((6, 8, 3)), np.full((6, 8), 2.0)
    camera = np.eye(4), np.diag([8.0, 8.0, 1.0])
    with jax.enable_x64(True):
        frame = make_entry_frame(image, depth, *camera, view=0, confidence=np.ones((6, 8)))
        surface = frame_surface(frame)
    half = make_entry_frame(jnp.asarray(image, jnp.bfloat16), depth, *camera, view=0)
    for leaf in jax.tree.leaves((frame, surface, half)):
        assert leaf.dtype in (jnp.float32, jnp.int32, jnp.bool_)


@pytest.mark.usefixtures("unchecked")
def test_what_is_no_frame_is_named():
    image, depth, w2c, lens = np.zeros((6, 8, 3)), np.ones((6, 8)), np.eye(4), np.eye(3)
    with pytest.raises(InputError, match=r"depth must have shape \[6, 8\], got \[4, 8\]"):
        make_entry_frame(image, depth[:4], w2c, lens, view=0)
    with pytest.raises(InputError, match=r"w2c must have shape \[4, 4\], got \[3, 4\]"):
        make_entry_frame(image, depth, w2c[:3], lens, view=0)
    with pytest.raises(InputError, match=r"confidence must have shape \[6, 8\], got \[6\]"):
        make_entry_frame(image, depth, w2c, lens, view=0, confidence=depth[:, 0])
