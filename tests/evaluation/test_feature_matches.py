"""Tracks of made-up matches by hand; COLMAP's matches of true frames against spoilt ones."""

import sys

import numpy as np
import pytest

from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.feature_matches import (
    FeatureMatches,
    match_frames,
    track_lengths,
    true_matches,
)


def test_tracks_join_matches_and_leave_contradictions_out():
    """Frames of 3, 2, 2 features: a track of three frames, one of two, a contradiction."""
    pairs = np.array([[0, 1], [1, 2], [0, 2]])
    matches = [np.array([[0, 0], [1, 1]]), np.array([[0, 0]]), np.array([[0, 0]])]
    np.testing.assert_array_equal(np.sort(track_lengths([3, 2, 2], pairs, matches)), [2, 3])
    # Feature 2 of frame 0 joins the track that holds feature 0 of the same frame.
    matches[2] = np.array([[2, 0]])
    np.testing.assert_array_equal(track_lengths([3, 2, 2], pairs, matches), [2])
    assert len(track_lengths([3, 2], np.zeros((0, 2), int), [])) == 0


@pytest.mark.row("S27")
def test_matches_are_judged_by_true_geometry():
    """A wall 2 m away, the second camera 0.5 m to the right: points move 10 pixels to the left."""
    k = np.array([[40.0, 0, 32], [0, 40.0, 24], [0, 0, 1]])
    w2c = np.tile(np.eye(4), (2, 1, 1))
    w2c[1, 0, 3] = -0.5
    here = np.array([[30.5, 20.5], [40.5, 20.5], [50.5, 30.5]])
    there = here - [10, 0] + [[0, 0], [1.5, 0], [0, 4]]
    found = FeatureMatches([here, there], np.array([[0, 1]]), [np.stack([np.arange(3)] * 2, 1)])
    (true,) = true_matches(found, np.full((2, 48, 64), 2.0), w2c, k)
    np.testing.assert_array_equal(true, [True, True, False])
    (unknown,) = true_matches(found, np.zeros((2, 48, 64)), w2c, k)
    assert not unknown.any()
    assert found.inliers() == 3


def test_without_colmap_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pycolmap", None)
    with pytest.raises(InputError, match="evaluate extra"):
        match_frames(np.zeros((2, 32, 32, 3)), np.eye(3))


@pytest.fixture(scope="module")
def clip():
    pytest.importorskip("pycolmap", reason="pycolmap (the evaluate extra) is not installed")
    return SceneClips(range(1, 2), split="held_out", frames=4)[0]


@pytest.mark.row("S27")
def test_consistent_frames_have_more_inliers_and_longer_tracks(clip):
    """True frames against the same with a texture of its own in each, as in a clip that flickers,
    and against frames of noise."""
    k = clip["intrinsics"][0]
    rng = np.random.default_rng(0)
    noise = rng.normal(0, 0.3, clip["image"].shape)
    spoilt = np.clip(clip["image"] + noise, -1, 1)
    found = match_frames(clip["image"], k)
    worse = match_frames(spoilt, k)
    assert found.inliers() > 300
    assert found.inliers() > 2 * worse.inliers()
    assert found.track_lengths().mean() > worse.track_lengths().mean()
    true = np.concatenate(true_matches(found, clip["depth"], clip["w2c"], k))
    assert true.mean() > 0.8
    none = match_frames(rng.uniform(-1, 1, clip["image"].shape), k)
    assert none.inliers() < 0.02 * found.inliers()


def test_the_same_frames_give_the_same_matches_and_bad_input_is_named(clip):
    k = clip["intrinsics"][0]
    first, second = (match_frames(clip["image"][:2], k) for _ in range(2))
    np.testing.assert_array_equal(first.pairs, second.pairs)
    for a, b in zip(first.matches, second.matches, strict=True):
        np.testing.assert_array_equal(a, b)
    # Features lie in the pixels of the frames as given.
    assert (np.concatenate(first.keypoints) <= [160, 96]).all()
    with pytest.raises(InputError, match="two frames"):
        match_frames(clip["image"][:1], k)
    skewed = k + np.array([[0, 1, 0], [0, 0, 0], [0, 0, 0]])
    with pytest.raises(InputError, match="skew"):
        match_frames(clip["image"][:2], skewed)
