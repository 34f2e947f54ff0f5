"""Each masked measure sees errors of its own pixels, and the given first frame does not count."""

import numpy as np
import pytest

from worldstereo_jax.evaluation.clip_scores import (
    FLICKER,
    MASKED_PSNR,
    MASKED_SSIM,
    UNSEEN_PSNR,
    ClipTruth,
    clip_scores,
)


@pytest.fixture(scope="module")
def truth():
    """A wall before a camera that stands still; its left half was warped, its right never seen."""
    rng = np.random.default_rng(0)
    image = np.broadcast_to(rng.uniform(-0.5, 0.5, (1, 32, 48, 3)), (3, 32, 48, 3))
    left = np.broadcast_to(np.arange(48) < 24, (3, 32, 48))
    return ClipTruth(
        image=image.astype(np.float32),
        depth=np.full((3, 32, 48), 2.0, np.float32),
        w2c=np.tile(np.eye(4, dtype=np.float32), (3, 1, 1)),
        intrinsics=np.tile(
            np.array([[40.0, 0, 24], [0, 40.0, 16], [0, 0, 1]], np.float32), (3, 1, 1)
        ),
        warped=left,
        seen=left,
    )


def off_by(truth, amount, where):
    return np.asarray(truth.image + amount * where[..., None], np.float32)


def test_errors_are_seen_where_they_are(truth):
    decibel = 10 * np.log10(4 / 0.1**2)
    left = clip_scores(off_by(truth, 0.1, truth.warped), truth)
    assert left[MASKED_PSNR] == pytest.approx(decibel, abs=1e-3)
    assert left[UNSEEN_PSNR] == np.inf
    right = clip_scores(off_by(truth, 0.1, ~truth.seen), truth)
    assert right[UNSEEN_PSNR] == pytest.approx(decibel, abs=1e-3)
    assert right[MASKED_PSNR] == np.inf
    assert left[MASKED_SSIM] < right[MASKED_SSIM]
    assert left["PSNR dB"] == pytest.approx(decibel + 10 * np.log10(2), abs=1e-3)


@pytest.mark.row("S25")
def test_flicker_is_what_changes_between_frames(truth):
    assert clip_scores(off_by(truth, 0.1, truth.seen), truth)[FLICKER] < 1e-6
    alternating = truth.image + 0.1 * np.array([0, 1, 0])[:, None, None, None]
    found = clip_scores(np.asarray(alternating, np.float32), truth)
    assert found[FLICKER] == pytest.approx(0.1, abs=1e-5)


def test_the_first_frame_and_what_is_not_there_do_not_count(truth):
    spoilt = np.array(truth.image)
    spoilt[0] = 0
    nothing = truth._replace(seen=np.ones_like(truth.seen))
    found = clip_scores(spoilt, nothing)
    assert found["PSNR dB"] == np.inf
    assert np.isnan(found[UNSEEN_PSNR])
