"""Coverage, angle and distance along paths before a wall whose memory is known exactly."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.evaluation import wall_world as ww
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.path_preview import (
    frame_figures,
    preview_path,
    preview_stride,
    previewed_views,
)
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory
from worldstereo_jax.sampling.world import Cameras, RolloutConfig, render_points

pytestmark = pytest.mark.row("S26")


def along(*w2c):
    return Cameras(
        w2c=jnp.asarray(np.stack(w2c)), intrinsics=jnp.asarray(np.stack([ww.K] * len(w2c)))
    )


# From view 0, from 0.9 to its right, from above where nothing is stored, from behind.
PATH = along(*ww.ahead((0, 0, 0), (0.9, 0, 0), (0, -3, 0)), ww.back((0.1, 0, 3)))


@pytest.fixture(scope="module")
def preview():
    return preview_path(ww.wall(), PATH)


def test_a_stored_view_is_known_whole(preview):
    frame = frame_figures(preview)[0]
    assert (frame.points, frame.entries, frame.views, frame.known) == (1, 1, 1, 1)
    assert frame.angle == pytest.approx(0, abs=0.1)
    assert (frame.distance, frame.view, frame.behind, frame.through) == (0, 0, 0, False)
    assert frame.nearest == pytest.approx(2, rel=1e-3)
    x, y = np.meshgrid((np.arange(48) - 23.5) / 20, (np.arange(32) - 15.5) / 20)
    for drawn in (preview.entries, preview.points):
        np.testing.assert_allclose(drawn[0], ww.colour(x, y), atol=0.15)


def test_beside_the_views_the_share_angle_and_distance_are_those_of_geometry(preview):
    frame = frame_figures(preview)[1]
    # 36 of 48 columns show what is stored, which ends at x = 1.5.
    for share in (frame.points, frame.entries, frame.views, frame.known):
        assert share == pytest.approx(0.75, abs=0.03)
    assert (preview.points_seen[1, :, :35]).all()
    assert not preview.entries_seen[1, :, 38:].any()
    assert frame.view == 1
    assert frame.distance == pytest.approx(0.6, abs=1e-5)
    x, y = np.meshgrid((np.arange(36) - 23.5) / 20 + 0.9, (np.arange(32) - 15.5) / 20)
    rays = [np.stack([x - eye, y, np.full_like(x, 2.0)], -1) for eye in (0.9, 0.3)]
    mine, theirs = (ray / np.linalg.norm(ray, axis=-1, keepdims=True) for ray in rays)
    expected = np.degrees(np.median(np.arccos((mine * theirs).sum(-1))))
    assert frame.angle == pytest.approx(expected, abs=0.3)
    assert frame.behind == 0


def test_nothing_is_known_of_what_was_never_seen(preview):
    frame = frame_figures(preview)[2]
    assert (frame.points, frame.entries, frame.views, frame.known) == (0, 0, 0, 0)
    assert np.isnan(frame.angle)
    assert np.isnan(frame.distance)
    assert frame.view == -1


def test_from_behind_a_surface_it_is_said_so(preview):
    frame = frame_figures(preview)[3]
    assert (frame.behind, frame.known) == (1, 1)
    # The stored views show its other side.
    assert frame.views == 0
    assert frame.nearest == pytest.approx(1, rel=1e-3)


def test_points_are_those_that_a_clip_will_be_given(preview):
    config = RolloutConfig(height=ww.HEIGHT, width=ww.WIDTH)
    memory = ww.wall()
    render = render_points(config, memory.points, PATH, memory.stereo.images[0])
    np.testing.assert_array_equal(preview.points_seen[1:], render.mask[1:] < 0.5)


def test_large_memories_are_previewed_at_a_fraction_of_their_size():
    assert [preview_stride(*size) for size in ((96, 160), (480, 832), (100, 1000))] == [1, 4, 2]
    stereo = ww.wall().stereo
    tilted = jnp.asarray(np.fromfunction(lambda y, x: 2 + x / 50 + y / 80, (32, 48)), jnp.float32)
    stereo = stereo.replace(depth=stereo.depth.at[:2].set(tilted))
    halves = previewed_views(stereo, 2)
    assert halves.depth.shape == (2, 16, 24)
    assert halves.valid.all()
    # The pixels taken show the points that they showed before.
    whole, half = (unprojected(views, 1) for views in (stereo, halves))
    np.testing.assert_allclose(half, whole[1::2, 1::2], atol=1e-5)


def unprojected(stereo, view):
    """Points [h, w, 3] of a view, in its own frame."""
    depth, k = np.asarray(stereo.depth[view]), np.asarray(stereo.intrinsics[view])
    y, x = np.mgrid[: depth.shape[0], : depth.shape[1]] + 0.5
    return (
        np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], 1 + 0 * x], -1)
        * depth[..., None]
    )


def test_a_memory_without_views_is_refused():
    empty = ww.wall().replace(stereo=init_spatial_memory(3, ww.HEIGHT, ww.WIDTH))
    with pytest.raises(InputError, match="holds no views"):
        preview_path(empty, along(*ww.ahead((0, 0, 0))))
