"""Variants differ in what they are given; measures count the right frames and pixels."""

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import save_file

from tests.evaluation.test_lpips import random_tensors
from worldstereo_jax.evaluation.lpips import load_lpips, lpips
from worldstereo_jax.evaluation.memory_gain import (
    LOWER_IS_BETTER,
    VARIANTS,
    frame_metrics,
    revisit_metrics,
    told_as,
)
from worldstereo_jax.sampling.conditions import example_conditions


def test_variants_are_told_what_their_names_say(world):
    told = [told_as(name, example_conditions(world)) for name in VARIANTS]
    flags = [(bool(c.global_enabled), bool(c.stereo_enabled)) for c in told]
    assert flags == [(True, True), (True, False), (False, False)]


def noise() -> np.ndarray:
    return np.random.default_rng(0).uniform(-1, 1, (3, 48, 64, 3)).astype(np.float32)


def test_the_given_first_frame_does_not_count():
    truth = noise()
    video = truth.copy()
    video[0] = 0.0
    metrics = frame_metrics(jnp.asarray(video), jnp.asarray(truth))
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


def test_lpips_is_measured_when_its_weights_are_given(tmp_path):
    truth = noise()
    video = np.clip(truth + 0.2, -1, 1)
    save_file(random_tensors(), tmp_path / "alex.safetensors")
    weights = load_lpips(tmp_path / "alex.safetensors")
    metrics = frame_metrics(jnp.asarray(video), jnp.asarray(truth), lpips_weights=weights)
    expected = float(np.mean(jax.jit(lpips)(weights, video[1:], truth[1:])))
    assert expected > 0
    np.testing.assert_allclose(metrics["LPIPS"], expected, rtol=1e-4)
    without = frame_metrics(jnp.asarray(video), jnp.asarray(truth))
    assert set(metrics) - set(without) == {"LPIPS"}
    assert "LPIPS" in LOWER_IS_BETTER
