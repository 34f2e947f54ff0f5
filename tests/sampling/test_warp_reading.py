"""Pictures of warps become candidates on the latent's grid."""

import jax
import numpy as np
import pytest

from worldstereo_jax.geometry.splat import Render
from worldstereo_jax.memory.entry_points import POINT_CONFIDENCE
from worldstereo_jax.memory.masks import token_geometry
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes
from worldstereo_jax.memory.warping import Warped
from worldstereo_jax.sampling.warp_reading import (
    UNSEEN_LOG_WEIGHT,
    CandidatePictures,
    candidate_features,
    divide,
    path_views,
    stored_views,
)
from worldstereo_jax.sampling.world import Cameras

LENS = np.array([[40.0, 0, 32], [0, 40.0, 8], [0, 0, 1]], np.float32)
ONE_CAMERA = jax.device_put(Cameras(w2c=np.eye(4, dtype=np.float32)[None], intrinsics=LENS[None]))
geometry_of = jax.jit(lambda views: token_geometry(views, views))


def _sizes(geometry):
    """Volumes of the tokens' fields."""
    xx, yy, zz, xy, xz, yz = np.moveaxis(np.asarray(geometry.metric[0], np.float64), -1, 0)
    matrix = np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return np.linalg.det(np.moveaxis(matrix, -1, 0)) ** -0.5


@pytest.mark.row("S15")
@pytest.mark.row("S19")
def test_of_a_path_tokens_are_wider_and_weigh_less_the_less_sure_their_depth_is():
    """One token seen by a sure view, one by a doubtful one, one of points, one of nothing."""
    token = np.broadcast_to(np.arange(64) // 16, (1, 16, 64))
    black = np.zeros((1, 16, 64, 3))

    def where(*cases):
        return np.select([token == number for number, _ in cases], [to for _, to in cases])

    hole, depth, sure = (
        where((2, 1.0), (3, 1.0)),
        where((0, 3.0), (1, 3.0)),
        where((0, 1), (1, 0.3)),
    )
    points, there = where((2, 3.0)), where((2, 1.0))
    given = (black, hole, depth, sure, sure), (black, there, 1 - there, points)
    warped, render = (
        jax.tree.map(lambda a: jax.device_put(a.astype(np.float32)), arrays) for arrays in given
    )
    known = jax.jit(divide)(Warped(*warped), Render(*render))
    expected = np.array([1.0, 0.3, POINT_CONFIDENCE, 0.0], np.float32)
    np.testing.assert_array_equal(np.asarray(known.confidence)[0, 0, ::16], expected)
    views = jax.jit(path_views)(known.depth, known.confidence, ONE_CAMERA)
    geometry = jax.device_get(geometry_of(views))
    doubt = 0.5 + 0.5 * expected
    np.testing.assert_array_equal(geometry.valid[0], [True, True, True, False])
    weight = np.exp(np.asarray(geometry.log_weight[0]))
    # Both tokens in the middle are seen at one angle.
    np.testing.assert_allclose(weight[2] / weight[1], doubt[2] / doubt[1], rtol=0.01)
    assert weight[2] < weight[1] < weight[0]
    sizes = _sizes(jax.tree.map(lambda leaf: leaf[:, :3], geometry))
    growth = (2 - doubt[2]) / (2 - doubt[1])
    np.testing.assert_allclose(sizes[2] / sizes[1], growth**3, rtol=0.02)
    assert sizes[1] > 1.3 * sizes[0]


@pytest.mark.row("S15")
@pytest.mark.row("S19")
def test_of_stored_views_the_angle_counts_once_and_doubt_is_heard():
    """A wall seen at a slant: its confidence is low for that alone, which tokens know."""
    x = np.broadcast_to(np.arange(64, dtype=np.float32)[None] + 0.5, (16, 64))
    depth = (3.0 / (1.0 - 0.6 * (x - 32) / 40.0))[None]
    memory = insert_keyframes(
        init_spatial_memory(2, 16, 64),
        *jax.device_put((np.zeros((1, 16, 64, 3), np.float32), depth)),
        ONE_CAMERA.w2c, ONE_CAMERA.intrinsics,
    )  # fmt: skip
    confidence = np.asarray(memory.confidence)
    assert confidence[0, 8, 50] < 0.75
    one, stored = jax.device_put((np.array([0], np.int32), np.array([True]))), jax.jit(stored_views)
    views = stored(memory, *one)
    sure = jax.device_put(np.ones_like(depth))
    plain = jax.device_get(geometry_of(views._replace(confidence=sure)))
    told = jax.device_get(geometry_of(views))
    for a, b in zip(jax.tree.leaves(told), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    doubtful = memory.replace(confidence=jax.device_put(np.float32(0.2) * confidence))
    told = jax.device_get(geometry_of(stored(doubtful, *one)))
    fall = (told.log_weight - plain.log_weight)[0]
    np.testing.assert_allclose(fall, np.log(0.6), atol=1e-3)
    assert (_sizes(told) > 1.2 * _sizes(plain)).all()


@pytest.mark.row("S18")
@pytest.mark.parametrize("stride", [1, 4])
def test_cover_and_weight_are_means_over_what_a_latent_pixel_stands_for(stride):
    """Its 8 x 8 pixels, and of a causal clip its frames: the first alone, then four by four."""
    frames = 1 + 2 * stride
    random = np.random.default_rng(0)
    cover = (random.random((frames, 16, 24, 2)) < 0.5).astype(np.float32)
    cover[:, :8, :8, 1], cover[:, 8:, 8:16] = 1, 0
    weight = cover * random.random(cover.shape, np.float32)
    black = np.zeros((*cover.shape, 3), np.float32)
    pictures = CandidatePictures(*jax.device_put((black, weight, cover)))
    latents = random.standard_normal((2, 3, 2, 3, 16), np.float32)
    found = jax.jit(candidate_features)(jax.device_put(latents), pictures)
    features, log_weight = jax.device_get(found)
    np.testing.assert_array_equal(features[..., :16], np.moveaxis(latents, 0, -2))

    def mean(value, frame, row, column, k):
        first = 0 if frame == 0 else 1 + stride * (frame - 1)
        last = 1 if frame == 0 else first + stride
        box = value[first:last, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8, k]
        return box.mean(dtype=np.float64)

    for place in np.ndindex(3, 2, 3, 2):
        share = mean(cover, *place)
        np.testing.assert_allclose(features[*place, 16], share, atol=1e-6)
        expected = max(np.log(max(mean(weight, *place), 1e-9)), UNSEEN_LOG_WEIGHT)
        # A single view that shows less than half of it is none; the fusion always is one.
        if place[-1] == 1 and not share > 0.5:
            expected = -np.inf
        np.testing.assert_allclose(log_weight[place], expected, rtol=1e-4)
