"""All measures of one clip against the truth: whole frames, masked forms, flicker."""

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.evaluation.flicker import flicker
from worldstereo_jax.evaluation.image_metrics import clip_psnr, masked_ssim
from worldstereo_jax.evaluation.lpips import LpipsWeights
from worldstereo_jax.evaluation.memory_gain import frame_metrics

MASKED_PSNR, MASKED_SSIM = "PSNR dB, warped", "SSIM, warped"
UNSEEN_PSNR, FLICKER = "PSNR dB, never seen", "flicker"


class ClipTruth(NamedTuple):
    """What one clip should show, and which of its pixels are judged apart.

    image [f, h, w, 3] in [-1, 1]; depth [f, h, w]: true camera z; w2c, intrinsics: the cameras.
    warped [f, h, w]: pixels on which the memory's warp falls. seen [f, h, w]: pixels whose surface
    some stored view sees.
    """

    image: Float[Array | ndarray, "f h w 3"]
    depth: Float[Array | ndarray, "f h w"]
    w2c: Float[Array | ndarray, "f 4 4"]
    intrinsics: Float[Array | ndarray, "f 3 3"]
    warped: Bool[Array | ndarray, "f h w"]
    seen: Bool[Array | ndarray, "f h w"]


def clip_scores(
    video: Float[Array | ndarray, "f h w 3"],
    truth: ClipTruth,
    *,
    lpips_weights: LpipsWeights | None = None,
) -> dict[str, float]:
    """`frame_metrics` and, over the frames after the first, which is given:

    PSNR and SSIM over the pixels that the memory's warp covers; PSNR over those that no stored
    view sees; NaN where a clip has none of them. Flicker (row S25) is over all frames.
    """
    found = frame_metrics(jnp.asarray(video), jnp.asarray(truth.image), lpips_weights=lpips_weights)
    rest = _masked_scores(jnp.asarray(video), ClipTruth(*map(jnp.asarray, truth)))
    return found | {name: float(value) for name, value in rest.items()}


@jax.jit
def _masked_scores(video: Array, truth: ClipTruth) -> Mapping[str, Array]:
    image, warped = jnp.asarray(truth.image), jnp.asarray(truth.warped)
    unseen = ~jnp.asarray(truth.seen) & (jnp.asarray(truth.depth) > 0)
    similarity = masked_ssim(video[1:], image[1:], warped[1:])
    has = jnp.isfinite(similarity)
    return {
        MASKED_PSNR: clip_psnr(video, image, warped),
        MASKED_SSIM: jnp.sum(jnp.where(has, similarity, 0)) / has.sum(),
        UNSEEN_PSNR: clip_psnr(video, image, unseen),
        FLICKER: flicker(video, truth.depth, truth.w2c, truth.intrinsics).mean(),
    }
