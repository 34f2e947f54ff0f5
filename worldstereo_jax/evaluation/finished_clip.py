"""A clip that is done, measured by what is left of it: its frames, its cameras, the memory (S25).

The measures are those of the other modules here. What a clip is compared with comes from the
memory: what was remembered before the clip, and the surfaces that are known after it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.compat import quick_compiler_options
from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.bank_agreement import ClipAgreement, clip_agreement
from worldstereo_jax.evaluation.camera_error import (
    rotation_error,
    trajectory_error,
    translation_error,
    worldscore_error,
)
from worldstereo_jax.evaluation.flicker import flicker
from worldstereo_jax.evaluation.image_metrics import clip_psnr
from worldstereo_jax.evaluation.revisit import revisited_pixels
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_warp import warp_entries
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory, keyframes_at

# Mean difference, of colours in [-1, 1], up to which a stored view is a frame of a video: the
# frame has gone through H.264.
_SAME_PICTURE = 0.05


class FinishedClip(NamedTuple):
    """A clip as a run leaves it.

    video [f, h, w, 3]: in [-1, 1]. w2c [f, 4, 4]: world to camera. intrinsics [f, 3, 3]: pixels of
    the video.
    """

    video: Float[Array | ndarray, "f h w 3"]
    w2c: Float[Array | ndarray, "f 4 4"]
    intrinsics: Float[Array | ndarray, "f 3 3"]


def stored_frames(stereo: SpatialStereoMemory, clip: FinishedClip) -> dict[int, int]:
    """The keyframes that are frames of a clip: slot of the bank -> number of the frame."""
    if stereo.images.shape[1:3] != clip.video.shape[1:3]:
        return {}
    video, images = np.asarray(clip.video), np.asarray(stereo.images)
    return {
        int(slot): i
        for i in range(len(video))
        for slot in np.flatnonzero(
            keyframes_at(stereo, jnp.asarray(clip.w2c[i]), jnp.asarray(clip.intrinsics[i]))
        )
        if np.abs(video[i] - images[slot]).mean() <= _SAME_PICTURE
    }


def number_of_clip(stereo: SpatialStereoMemory, clip: FinishedClip) -> int | None:
    """The number under which a memory holds a clip's frames; None when it holds none of them.

    Args:
        stereo: the bank of keyframes.
        clip: its first frame, which may be the view that it started from, does not count.
    """
    slots = [slot for slot, frame in stored_frames(stereo, clip).items() if frame > 0]
    return max((int(stereo.source[slot]) for slot in slots), default=None)


def bank_depth(clip: FinishedClip, bank: EntryBank) -> Float[Array, "f h w"]:
    """Camera z of the entries' surfaces in every frame of a clip, 0 where there is none."""
    height, width = clip.video.shape[1:3]
    return _depth_along(bank, jnp.asarray(clip.w2c), jnp.asarray(clip.intrinsics), height, width)


def agreement_with(clip: FinishedClip, before: EntryBank) -> tuple[dict[str, float], ClipAgreement]:
    """How a clip differs from the entries that were known before it (row S25), and where.

    Args:
        clip: finished.
        before: the entries without what the clip itself showed.
    """
    found = _agreement(
        jnp.asarray(clip.video), jnp.asarray(clip.w2c), jnp.asarray(clip.intrinsics), before
    )
    scores = {
        "difference from what was remembered (0..2)": float(found.mean()),
        "pixels that were remembered, %": 100 * float(found.compared.mean()),
    }
    return scores, found


def flicker_scores(clip: FinishedClip, depth: Float[Array, "f h w"]) -> dict[str, float]:
    """Change of colour from frame to frame at the surfaces of known depth (row S25), 0..2."""
    found = _flicker(*(jnp.asarray(x) for x in (clip.video, depth, clip.w2c, clip.intrinsics)))
    return {
        "flicker (0..2)": float(found.mean()),
        "pixels tracked, %": 100 * float(found.tracked.mean()),
    }


def revisit_scores(clip: FinishedClip, earlier: FinishedClip, bank: EntryBank) -> dict[str, float]:
    """PSNR to what an earlier clip showed at the same surface points, frame 0 left out.

    The surfaces are those that the entries show. Where they show none, as at many a depth edge,
    nothing is compared, so the figure is above that of the same clips under true depth.

    Args:
        clip: the later one.
        earlier: of the same world and image size.
        bank: entries that know the surfaces of both.

    Raises:
        InputError: when their sizes differ, or the lens is not one and the same.
    """
    if clip.video.shape[1:] != earlier.video.shape[1:]:
        raise InputError(
            f"clips of {clip.video.shape[1:3]} and of {earlier.video.shape[1:3]} pixels cannot be "
            "compared"
        )
    lens = np.asarray(clip.intrinsics[0])
    lenses = np.concatenate([np.asarray(clip.intrinsics), np.asarray(earlier.intrinsics)])
    if np.abs(lenses - lens[None]).max() > 1e-3 * lens[0, 0]:
        raise InputError("clips can be compared pixel by pixel only when none of them zooms")
    seen = revisited_pixels(
        jnp.asarray(earlier.video),
        bank_depth(earlier, bank),
        jnp.asarray(earlier.w2c),
        bank_depth(clip, bank),
        jnp.asarray(clip.w2c),
        jnp.asarray(lens),
    )
    return {
        "PSNR dB to the earlier clip": float(clip_psnr(clip.video, seen.image, seen.mask)),
        "pixels revisited, %": 100 * float(seen.mask[1:].mean()),
    }


def camera_scores(
    found: Float[Array | ndarray, "f 4 4"], asked: Float[Array | ndarray, "f 4 4"]
) -> dict[str, float]:
    """Errors of cameras that were estimated from frames against those that the clip was to follow.

    Args:
        found, asked: world to camera; the estimate's unit is any.
    """
    found, asked = jnp.asarray(found, jnp.float32), jnp.asarray(asked, jnp.float32)
    score = worldscore_error(found, asked)
    return {
        "RotErr, rad": float(rotation_error(found, asked)),
        "TransErr, each by its own scale": float(translation_error(found, asked, scale="own")),
        "rotation error, mean degrees": float(score.rotation_degrees),
        "translation error, mean, units of the scene": float(score.translation),
        "ATE, units of the scene": float(trajectory_error(found, asked)),
    }


# Each runs a few times in a command, on clips of one size.
_agreement = jax.jit(clip_agreement, compiler_options=quick_compiler_options())
_flicker = jax.jit(flicker)


def _depth(
    bank: EntryBank, w2c: Array, intrinsics: Array, height: int, width: int
) -> Float[Array, "f h w"]:
    def one(camera: tuple[Array, Array]) -> Array:
        return warp_entries(bank, *camera, height=height, width=width).depth

    return jax.lax.map(one, (w2c, intrinsics))


_depth_along = jax.jit(_depth, static_argnums=(3, 4), compiler_options=quick_compiler_options())
