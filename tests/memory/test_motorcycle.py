"""Middlebury's motorcycle: a real pair with dense true disparity, against what the memory finds."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from tests.geometry.test_absolute_pose import errors
from worldstereo_jax.memory.correspondence import (
    dense_correspondence,
    hidden_pixels,
    patch_correspondence,
)
from worldstereo_jax.memory.descriptors import brightness
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_codec import bytes_per_entry, quantise_entries, restore_entries
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_pose import LocationRule, locate_camera
from worldstereo_jax.memory.entry_prune import prune_entries
from worldstereo_jax.memory.entry_update import build_entries
from worldstereo_jax.memory.entry_warp import warp_entries
from worldstereo_jax.memory.matching import fundamental_matrix, match_images, match_keypoints
from worldstereo_jax.memory.warping import warp_views

# Whole cells of the coarsest level of matching.
HEIGHT, WIDTH = 496, 736
# Rows of wheels, engine and floor, about as hard as the whole: the tests of entries take these.
TOP, BOTTOM = 272, 400

# Optimised, unlike most programs of tests: at this size it is the run that takes the time.
MATCH = jax.jit(
    functools.partial(match_images, finest=0, levels=4),
    compiler_options={"xla_backend_optimization_level": 1},
)


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
    found = MATCH(jnp.asarray(left), jnp.asarray(change(right)), fundamental=lines)
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


@pytest.fixture(scope="module")
def strip(motorcycle, pair):
    """A strip of the pair: pictures, depth, both cameras, truth, and what the right one hides."""
    _, _, truth, visible, known = pair
    rows = slice(TOP, BOTTOM)
    up = jnp.array([[0, 0, 0], [0, 0, TOP], [0, 0, 0]], jnp.float32)
    place = np.floor(truth[rows, :, 0]).astype(int)
    inside = known[rows] & (place >= 0) & (place < WIDTH)
    return SimpleNamespace(
        left=motorcycle.left[rows, :WIDTH],
        right=motorcycle.right[rows, :WIDTH],
        depth=motorcycle.depth[rows, :WIDTH],
        disparity=motorcycle.disparity[rows, :WIDTH],
        left_camera=(motorcycle.left_w2c, motorcycle.left_intrinsics - up),
        right_camera=(motorcycle.right_w2c, motorcycle.right_intrinsics - up),
        place=truth[rows] - [0, TOP],
        inside=inside,
        hidden=inside & ~visible[rows],
        to_disparity=motorcycle.to_disparity,
    )


@pytest.fixture(scope="module")
def noise(strip):
    """Of the depth of three views from the left camera, as shares."""
    return np.random.default_rng(0).normal(0, 0.002, (3, *strip.depth.shape)).astype(np.float32)


@pytest.fixture(scope="module")
def build(strip):
    """Entries of the left picture with noisy depths; noise of -1 leaves nothing of a depth."""

    @jax.jit
    def run(noise):
        def frame(noise, view):
            depth = strip.depth * (1 + noise)
            return make_entry_frame(strip.left, depth, *strip.left_camera, view=view)

        empty = init_entries(EntryConfig(strip.depth.size, pyramid_widths()))
        return build_entries(empty, jax.vmap(frame)(noise, jnp.arange(3)))

    return run


@pytest.fixture(scope="module")
def half(strip, build, noise):
    """Three noisy depths fused, half pruned away, 8 bits each."""
    bank = build(noise)
    count = int(bank.count)
    assert count > 0.85 * (strip.depth > 0).sum()
    assert int(np.asarray(bank.observations).max()) == 3
    coded = quantise_entries(prune_entries(bank, count // 2))
    assert 4 * bytes_per_entry(coded)["features"] <= bytes_per_entry(bank)["features"]
    restored = restore_entries(coded)
    assert int(restored.count) == count // 2
    return restored


@pytest.fixture(scope="module")
def seen(strip, half):
    """Those entries in the right camera."""
    return warp_entries(half, *strip.right_camera, height=BOTTOM - TOP, width=WIDTH)


def judged_disparity(strip, seen):
    """Error of the disparity drawn in the right camera, and where it can be judged."""
    disparity = strip.to_disparity(np.asarray(seen.depth))
    rows, columns = np.mgrid[: BOTTOM - TOP, :WIDTH]
    origin = np.round(columns + disparity).astype(int)
    judged = (np.asarray(seen.mask) < 0.5) & (origin < WIDTH)
    true = strip.disparity[rows, np.clip(origin, 0, WIDTH - 1)]
    return np.abs(disparity - true), judged & np.isfinite(true)


@pytest.mark.row("S10")
@CHANGES
def test_the_right_photograph_is_located_by_the_left_one(strip, half, change):
    """The truth: a baseline of 193.0 mm along x, and no turn."""
    camera, lens = strip.right_camera
    rule = LocationRule(places=400)
    image = jnp.asarray(change(np.asarray(strip.right)))
    found = locate_camera(half, image, lens, jax.random.key(0), rule=rule)
    degrees, units = errors(found.pose.w2c, camera)
    assert int(found.inliers) > 50
    assert degrees < 0.1
    assert units < 0.01


@pytest.mark.row("S13")
def test_more_views_show_no_less_and_err_less(strip, build, noise):
    """The right view's pixels with a correct correspondence, after one and after three views."""
    share, median = [], []
    for count in (1, 3):
        given = np.where(np.arange(3)[:, None, None] < count, noise, np.float32(-1))
        seen = warp_entries(build(given), *strip.right_camera, height=BOTTOM - TOP, width=WIDTH)
        error, judged = judged_disparity(strip, seen)
        share.append(((error < 1) & judged).mean())
        median.append(np.median(error[judged]))
    assert share[0] > 0.7
    assert share[1] >= share[0]
    assert median[1] < 0.75 * median[0]


@pytest.mark.row("S18")
@pytest.mark.row("S21")
@pytest.mark.row("S30")
@pytest.mark.row("S31")
def test_half_of_the_fused_entries_in_8_bits_are_seen_where_they_are(strip, seen):
    covered = np.asarray(seen.mask) < 0.5
    error, judged = judged_disparity(strip, seen)
    assert (error < 1)[judged].mean() >= 0.99
    # All but a few pixels that show what the left camera saw are covered.
    shown = np.zeros(covered.shape, bool)
    visible = strip.inside & ~strip.hidden
    shown[np.nonzero(visible)[0], np.floor(strip.place[visible][:, 0]).astype(int)] = True
    assert covered[shown].mean() > 0.93
    away = np.asarray(seen.features)[covered] - strip.right[covered]
    assert 10 * np.log10(4 / np.mean(np.square(away))) >= 26.5


@pytest.mark.row("S34")
def test_even_half_of_the_entries_hide_what_is_behind_them(strip, seen):
    found = strip.inside & np.asarray(
        jax.jit(hidden_pixels)(strip.depth, *strip.left_camera, seen.depth, *strip.right_camera)
    )
    both = (found & strip.hidden).sum()
    assert both / found.sum() >= 0.95
    assert both / strip.hidden.sum() >= 0.95


@pytest.mark.row("S8")
@pytest.mark.row("S14")
def test_patches_hold_the_true_match_of_nearly_all_queries(strip, seen):
    """Queries are pixels of the right view, of which the memory alone knows the depth."""
    pixels, valid = jax.jit(dense_correspondence)(
        seen.depth, *strip.right_camera, strip.depth, *strip.left_camera
    )
    rows, columns = (BOTTOM - TOP) // 16, WIDTH // 16
    found = patch_correspondence(pixels, valid, BOTTOM - TOP, WIDTH, k=8)
    tiles = np.zeros((rows * columns, rows * columns), bool)
    key = np.asarray(found.key)
    query, which = np.nonzero(key >= 0)
    tiles[query, key[query, which]] = True
    y, x = np.nonzero(strip.inside & ~strip.hidden)
    there = np.floor(strip.place[y, x]).astype(int)
    holds = tiles[there[:, 1] // 16 * columns + there[:, 0] // 16, y // 16 * columns + x // 16]
    assert holds.mean() >= 0.99
    assert tiles.mean() < 0.02
