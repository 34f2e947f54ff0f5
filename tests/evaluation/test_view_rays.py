"""Matches of two views as rays and lines."""

import numpy as np
import pytest

from tests.evaluation import wall_world as ww
from worldstereo_jax.evaluation.view_rays import correspondence_rays

pytestmark = pytest.mark.row("S8")


def test_rays_of_a_match_meet_on_the_surface():
    rays = correspondence_rays(ww.wall().stereo, 0, 1, most=20)
    assert rays.segments.shape == rays.colors.shape == (40, 2, 3)
    first, second = rays.segments[:20], rays.segments[20:]
    np.testing.assert_allclose(first[:, 0], np.tile(ww.EYES[0], (20, 1)), atol=1e-6)
    np.testing.assert_allclose(second[:, 0], np.tile(ww.EYES[1], (20, 1)), atol=1e-6)
    # To within a pixel, which is 0.05 wide on the wall.
    assert np.abs(first[:, 1] - second[:, 1]).max() <= 0.05
    np.testing.assert_allclose(rays.segments[:, 1, 2], 2, rtol=1e-5)
    np.testing.assert_array_equal(rays.colors[:20], rays.colors[20:])
    assert len(np.unique(rays.colors[:20, 0], axis=0)) == 20
    # All over the part that both see, six columns of 48 of which only the first sees.
    assert np.ptp(first[:, 1, 0]) > 1.2
    assert np.ptp(first[:, 1, 1]) > 1.0
    assert rays.share == pytest.approx(42 / 48, abs=0.03)
    assert rays.picture.shape == (ww.HEIGHT, 2 * ww.WIDTH, 3)


def test_views_that_share_nothing_have_no_rays():
    stereo = ww.wall().stereo
    apart = stereo.replace(w2c=stereo.w2c.at[1, 0, 3].set(-9.0))
    rays = correspondence_rays(apart, 0, 1)
    assert rays.segments.shape == (0, 2, 3)
    assert rays.share == 0
