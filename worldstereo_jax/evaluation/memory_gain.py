"""What a memory gains: the same clip with both memories, with one, and with none.

The variants share all parameters; both memories are dropped at random in training, so each is a
model that was trained for what it is given.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.evaluation.image_metrics import clip_psnr, gmsd, ms_ssim, psnr, ssim
from worldstereo_jax.evaluation.lpips import LpipsWeights, lpips
from worldstereo_jax.evaluation.revisit import revisited_pixels
from worldstereo_jax.sampling.conditions import Conditions

BOTH = "both memories"
# variant -> whether the global-geometric and the spatial-stereo memory are given to the model.
VARIANTS: Mapping[str, tuple[bool, bool]] = {
    BOTH: (True, True),
    "global memory only": (True, False),
    "no memory": (False, False),
}
TO_FIRST, TO_TRUTH = "PSNR dB to first clip", "PSNR dB to truth"
"""Of a clip that revisits: `revisit_metrics`."""
METRICS = {"PSNR dB": psnr, "SSIM": ssim, "MS-SSIM": ms_ssim, "GMSD": gmsd}
PERCEPTUAL = "LPIPS"
LOWER_IS_BETTER = frozenset({"GMSD", PERCEPTUAL})


def told_as(variant: str, conditions: Conditions) -> Conditions:
    """What the model is told in a variant: the conditions with its memories enabled."""
    by_points, by_views = (jnp.asarray(flag) for flag in VARIANTS[variant])
    return dataclasses.replace(conditions, global_enabled=by_points, stereo_enabled=by_views)


def frame_metrics(
    video: Float[Array, "f h w 3"],
    truth: Float[Array, "f h w 3"],
    *,
    lpips_weights: LpipsWeights | None = None,
) -> dict[str, float]:
    """Every measure over whole frames, mean over the frames after the first, which is given.

    LPIPS is among them when its weights are given (`load_lpips`).
    """
    found = dict(_frame_means(video[1:], truth[1:]))
    if lpips_weights is not None:
        found[PERCEPTUAL] = _lpips_mean(lpips_weights, video[1:], truth[1:])
    return {name: float(value) for name, value in found.items()}


@jax.jit
def _frame_means(video: Array, truth: Array) -> dict[str, Array]:
    return {name: jnp.mean(metric(video, truth)) for name, metric in METRICS.items()}


@jax.jit
def _lpips_mean(weights: LpipsWeights, video: Array, truth: Array) -> Array:
    return jnp.mean(lpips(weights, video, truth))


def revisit_metrics(
    scene: Mapping[str, Array],
    video: Float[Array, "f h w 3"],
    first_video: Float[Array, "f h w 3"],
) -> dict[str, float]:
    """PSNR of a revisiting clip over revisited pixels (see `revisited_pixels`).

    Args:
        scene: an item of `SceneClips`: both clips' ground truth.
        video: the revisiting clip.
        first_video: what the first clip showed.

    Returns:
        Against the ground truth, and against what the first clip showed at the same points; over
        all revisited pixels of the frames after the first.
    """
    seen = revisited_pixels(
        first_video,
        scene["depth"],
        scene["w2c"],
        scene["revisit_depth"],
        scene["revisit_w2c"],
        scene["intrinsics"][0],
    )
    return {
        TO_TRUTH: float(clip_psnr(video, scene["revisit_image"], seen.mask)),
        TO_FIRST: float(clip_psnr(video, seen.image, seen.mask)),
    }
