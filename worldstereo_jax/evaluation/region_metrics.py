"""What of a view is preserved, region by region (rows S21 to S24)."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from worldstereo_jax.array_types import Bool, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.image_metrics import WINDOW, masked_psnr, masked_ssim


class RegionScore(NamedTuple):
    """How well one region is shown: NaN where it has no pixel.

    psnr: dB, over its pixels. ssim: over windows centred in it. detail: energy of the gradients
    over that of the truth, 1 = as sharp, below 1 = blurred, above = noisy. pixels: how many.
    """

    psnr: float
    ssim: float
    detail: float
    pixels: int


def region_scores(
    image: Float[ndarray, "h w 3"],
    truth: Float[ndarray, "ht wt 3"],
    masks: Mapping[str, Bool[ndarray, "hm wm"]],
    *,
    known: Bool[ndarray, "h w"] | None = None,
) -> dict[str, RegionScore]:
    """Scores of every region: textures, edges, relief, gloss (rows S21, S22, S23, S24).

    Args:
        image, truth: in [-1, 1].
        masks: regions by name, for instance `RegionFrames.masks`; they may overlap.
        known: pixels that count, all when None: what no method can know may be left out.

    Raises:
        InputError: when sizes differ or the image is smaller than SSIM's window.
    """
    if image.shape != truth.shape:
        raise InputError(f"an image of {image.shape} has no truth of {truth.shape}")
    if min(image.shape[:2]) < WINDOW:
        raise InputError(f"regions are judged in images of at least {WINDOW} pixels each way")
    known = np.ones(image.shape[:2], bool) if known is None else known
    found = {}
    energy = [_gradient_energy(x) for x in (image, truth)]
    for name, mask in masks.items():
        if mask.shape != image.shape[:2]:
            raise InputError(f"region {name!r} is {mask.shape}, the image {image.shape[:2]}")
        here = mask & known
        if not here.any():
            found[name] = RegionScore(np.nan, np.nan, np.nan, 0)
            continue
        # A few added so that a flat region, which has no detail to lose, counts as kept.
        detail = (energy[0][here].mean() + 1e-5) / (energy[1][here].mean() + 1e-5)
        psnr, similarity = masked_psnr(image, truth, here), masked_ssim(image, truth, here)
        count = int(here.sum())
        found[name] = RegionScore(float(psnr), float(similarity), float(detail), count)
    return found


def _gradient_energy(image: Float[ndarray, "h w 3"]) -> Float[ndarray, "h w"]:
    light = image.mean(-1)
    down, right = np.gradient(light)
    return down**2 + right**2
