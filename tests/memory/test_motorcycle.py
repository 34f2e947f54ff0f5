"""Middlebury's motorcycle: a real pair with dense true disparity, against what the memory finds."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from worldstereo_jax.memory.descriptors import brightness
from worldstereo_jax.memory.matching import fundamental_matrix, match_images, match_keypoints
from worldstereo_jax.memory.warping import warp_views

# Whole cells of the coarsest level of matching.
HEIGHT, WIDTH = 496, 736


@pytest.fixture(scope="module")
def pair(motorcycle):
    """Left and right photograph, where left pixels land in the right one, which are seen there."""
    left, right = np.asarray(motorcycle.left)[:HEIGHT, :WIDTH], motorcycle.right[:HEIGHT, :WIDTH]
    disparity = motorcycle.disparity[:HEIGHT, :WIDTH]
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    known = np.isfinite(disparity)
    place = np.where(known, columns - np.nan_to_num(disparity), -1.0)
    landed = np.floor(place + 0.5).astype(int)
    inside = known & (landed >= 0) & (landed < WIDTH)
    buffer = np.full((HEIGHT, WIDTH), -np.inf)
    np.maximum.at(buffer, (rows[inside], landed[inside]), disparity[inside])
    shown = buffer[rows, np.clip(landed, 0, WIDTH - 1)]
    visible = inside & (np.nan_to_num(disparity) >= shown - 1)
    return left, right, np.stack([place, rows], -1) + 0.5, visible, known


def disturbed(image):
    """Another exposure, and noise of 3 % of the range."""
    noise = np.random.default_rng(0).normal(0, 0.06, image.shape)
    return np.clip((image + 1) * 0.6 - 0.9 + noise, -1, 1).astype(np.float32)


CHANGES = pytest.mark.parametrize("change", [lambda x: x, disturbed], ids=["same", "disturbed"])


@pytest.mark.slow
@pytest.mark.row("S8")
@pytest.mark.row("S35")
@CHANGES
def test_sparse_keypoints_are_inliers(pair, change):
    left, right, truth, _, known = pair
    found = match_keypoints(jnp.asarray(left), jnp.asarray(change(right)))
    pixels = np.asarray(found.pixels_a).astype(int)
    column, row = pixels.T
    judged = np.asarray(found.valid) & known[row, column]
    off = np.linalg.norm(np.asarray(found.pixels_b) - truth[row, column], axis=-1)
    assert judged.sum() > 300
    assert (off < 3)[judged].mean() >= 0.9


@pytest.mark.slow
@pytest.mark.row("S8")
@pytest.mark.row("S35")
@CHANGES
def test_dense_matches_by_descriptors_and_cameras(pair, motorcycle, change):
    """Both cameras but no depth: four fifths of the textured pixels that both views show."""
    m = motorcycle
    left, right, truth, visible, known = pair
    light = np.asarray(brightness(jnp.asarray(left)), np.float64)
    deviation = gaussian_filter(light * light, 3) - gaussian_filter(light, 3) ** 2
    textured = visible & (deviation > 0.06**2)  # 7.6 of 255 grey levels
    lines = fundamental_matrix(m.left_w2c, m.left_intrinsics, m.right_w2c, m.right_intrinsics)
    found = match_images(
        jnp.asarray(left), jnp.asarray(change(right)), fundamental=lines, finest=0, levels=4
    )
    off = np.linalg.norm(np.asarray(found.pixels) - truth, axis=-1)
    valid = np.asarray(found.valid)
    figures = {
        "matched": (valid & (off < 3))[textured].mean(),
        "right": (off < 3)[valid & textured].mean(),
        "claimed where hidden": valid[known & ~visible].mean(),
    }
    assert textured.mean() > 0.4
    assert figures["matched"] >= 0.8
    assert figures["right"] > 0.88
    assert figures["claimed where hidden"] < 0.5


@pytest.mark.slow
@pytest.mark.row("S18")
def test_nearly_all_pixels_are_warped_from_where_they_come(motorcycle):
    """The left image's own pixel coordinates, warped into the right camera."""
    m = motorcycle
    h, w = m.disparity.shape
    rows, columns = np.mgrid[:h, :w].astype(np.float32) + 0.5
    warped = jax.jit(warp_views)(
        jnp.asarray(np.stack([columns, rows], -1))[None],
        m.depth[None],
        jnp.ones((1, h, w)),
        m.left_w2c[None],
        m.left_intrinsics[None],
        jnp.ones((1,), bool),
        m.right_w2c,
        m.right_intrinsics,
    )
    covered = np.asarray(warped.mask) < 0.5
    x, y = np.moveaxis(np.asarray(warped.features), -1, 0)
    column, row = np.clip(x.astype(int), 0, w - 1), np.clip(y.astype(int), 0, h - 1)
    off = np.hypot(x - m.disparity[row, column] - columns, y - rows)
    judged = covered & np.isfinite(off)
    assert judged.mean() > 0.75
    assert (off < 1)[judged].mean() >= 0.99
