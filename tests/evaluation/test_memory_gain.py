"""Variants differ in what they are given; measures count the right frames and pixels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.evaluation.memory_gain import (
    BOTH,
    VARIANTS,
    clip_with,
    frame_metrics,
    revisit_metrics,
)


@pytest.mark.slow
def test_variants_share_one_program_and_give_different_clips(world, params, memory, cameras):
    key = jax.random.key(0)
    clips = {name: clip_with(name, world, params, memory, cameras, key)[0] for name in VARIANTS}
    videos = [np.asarray(clip.video) for clip in clips.values()]
    assert np.abs(videos[0] - videos[1]).max() > 1e-3
    assert np.abs(videos[1] - videos[2]).max() > 1e-3
    again, _ = clip_with(BOTH, world, params, memory, cameras, key)
    np.testing.assert_array_equal(again.video, clips[BOTH].video)


def test_the_given_first_frame_does_not_count():
    truth = jax.random.uniform(jax.random.key(0), (3, 48, 64, 3), minval=-1.0)
    video = truth.at[0].set(0.0)
    metrics = frame_metrics(video, truth)
    assert metrics["PSNR dB"] == np.inf
    np.testing.assert_allclose(metrics["SSIM"], 1.0, atol=1e-5)


def test_revisit_measures_see_errors_on_revisited_pixels_only(scene):
    seen_before = revisit_metrics(scene, scene["revisit_image"], scene["image"])
    assert seen_before["PSNR dB to truth"] == np.inf
    # What the true first clip shows at the same points is the same texture, resampled.
    assert seen_before["PSNR dB to first clip"] > 20
    worse = revisit_metrics(scene, scene["revisit_image"] + 0.2, scene["image"])
    np.testing.assert_allclose(worse["PSNR dB to truth"], 10 * np.log10(4 / 0.04), atol=1e-3)
    assert worse["PSNR dB to first clip"] < seen_before["PSNR dB to first clip"]
    assert jnp.isfinite(worse["PSNR dB to first clip"])
