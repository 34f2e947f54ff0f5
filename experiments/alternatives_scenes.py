"""One scene of `alternatives`: its clips, made in every way, and all that is measured of them."""

import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.evaluation.alternatives import ALTERNATIVES, AlternativeRollout
from worldstereo_jax.evaluation.attention_patterns import HARD
from worldstereo_jax.evaluation.clip_scores import FLICKER, ClipTruth, clip_scores
from worldstereo_jax.evaluation.lpips import LpipsWeights
from worldstereo_jax.evaluation.memory_gain import TO_FIRST, revisit_metrics
from worldstereo_jax.evaluation.memory_report import report_entries
from worldstereo_jax.evaluation.reprojection import reproject
from worldstereo_jax.evaluation.view_distance import BinnedError, binned_error, nearest_view
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.memory.entry_codec import quantise_entries
from worldstereo_jax.models.vae_tiny import decode_frames, encode_frames
from worldstereo_jax.sampling.conditions import Conditions
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    World,
    WorldMemory,
    WorldParams,
    init_memory,
)

REPROJECTION, AUTOENCODER, TRUTH = "pixel reprojection", "autoencoder", "truth"
ANGLES = (0.0, 2.0, 5.0, 10.0, 20.0, 40.0, 90.0)  # degrees
DISTANCES = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)  # metres
BY_ANGLE, BY_DISTANCE = "angle", "distance"
Figures = dict[tuple[str, str, str], float]


class SceneResult(NamedTuple):
    """All of one scene.

    figures: (clip, alternative, measure) -> value. bins: (kind of bin, alternative) -> sums.
    costs: alternative -> processor seconds of the model. stages: processor seconds of reading and
    writing the memories. held: sizes of the hard alternative's memory. videos: (clip,
    alternative). gathered: what the memories told the hard alternative of the revisit.
    """

    figures: Figures
    bins: dict[tuple[str, str], BinnedError]
    costs: dict[str, float]
    stages: dict[str, float]
    held: dict[str, float]
    videos: dict[tuple[str, str], np.ndarray]
    gathered: Conditions


def timed(function: Any, *args: Any) -> tuple[Any, float]:
    """The result, and the processor's seconds: the machine may be shared."""
    start = time.process_time()
    result = jax.block_until_ready(function(*args))
    return result, time.process_time() - start


def true_views(scene: dict, config: RolloutConfig) -> dict[str, tuple[jax.Array, ...]]:
    """True depth, pose and lens of the views stored before each clip."""
    chosen = jnp.asarray(keyframe_indices(config.frames, config.keyframes))
    fields = ("depth", "w2c", "intrinsics")
    return {
        "first": tuple(scene[name][:1] for name in fields),
        "revisit": tuple(jnp.concatenate([scene[n][:1], scene[n][chosen]]) for n in fields),
    }


def clip_truth(
    scene: dict, clip: str, stored: tuple[jax.Array, ...], warped_mask: jax.Array
) -> tuple[ClipTruth, dict[str, np.ndarray]]:
    """Truth of a clip, and each pixel's angle (degrees) and distance (m) to the nearest view."""
    prefix = "" if clip == "first" else "revisit_"
    image, depth, w2c, k = (scene[prefix + n] for n in ("image", "depth", "w2c", "intrinsics"))
    near = nearest_view(depth, w2c, k, *stored)
    values = {BY_ANGLE: np.degrees(near.angle), BY_DISTANCE: np.asarray(near.distance)}
    return ClipTruth(image, depth, w2c, k, warped_mask < 0.5, near.seen), values


def reprojected(memory: WorldMemory, cameras: Cameras) -> jax.Array:
    """The stored frames carried into the path by their depth, without a model."""
    views = memory.stereo
    stored = (views.images, views.depth, views.w2c, views.intrinsics, views.valid)
    return reproject("bilinear", *stored, cameras.w2c, cameras.intrinsics)


def evaluate_scene(
    world: World,
    params: WorldParams,
    rollout: AlternativeRollout,
    scene: dict,
    key: jax.Array,
    lpips_weights: LpipsWeights | None,
) -> SceneResult:
    """Make and measure all clips of one scene."""
    config = world.rollout
    paths = {
        "first": Cameras(w2c=scene["w2c"], intrinsics=scene["intrinsics"]),
        "revisit": Cameras(w2c=scene["revisit_w2c"], intrinsics=scene["revisit_intrinsics"]),
    }
    fields = ("image", "depth", "w2c", "intrinsics")
    start = init_memory(config, *(scene[name][0] for name in fields))
    stored, costs, stages, held = true_views(scene, config), {}, {}, {}
    videos: dict[tuple[str, str], Any] = {}
    truths: dict[str, tuple[ClipTruth, dict[str, np.ndarray]]] = {}
    first_gathered = rollout.gather(params, start, paths["first"])
    for name, alternative in ALTERNATIVES.items():
        memory = start
        for number, (clip_name, cameras) in enumerate(paths.items()):
            # All start from the same memory: it is read once.
            if clip_name == "revisit":
                gathered, stages["read the memories"] = timed(
                    rollout.gather, params, memory, cameras
                )
            else:
                gathered = first_gathered
            if name == HARD:
                hole = gathered[1].warped_mask
                truths[clip_name] = clip_truth(scene, clip_name, stored[clip_name], hole)
                videos[clip_name, REPROJECTION] = reprojected(memory, cameras)
                told_hard = gathered[0]
            noise = jax.random.fold_in(key, number)
            clip, costs[name] = timed(rollout.clip, alternative, params, gathered, cameras, noise)
            videos[clip_name, name] = clip.video
            if clip_name == "first" or name == HARD:
                memory, stages["write a clip into them"] = timed(
                    rollout.rollout.remember, memory, clip
                )
        if name == HARD:
            held = held_by(memory)
    for clip_name, (truth, _) in truths.items():
        videos[clip_name, TRUTH] = truth.image
    true = jnp.stack([truth.image for truth, _ in truths.values()])
    ceiling = decode_frames(world.vae, params.vae, encode_frames(world.vae, params.vae, true))
    for clip_name, video in zip(truths, ceiling.clip(-1, 1), strict=True):
        videos[clip_name, AUTOENCODER] = video
    figures, bins = measure(scene, videos, truths, lpips_weights)
    arrays = {where: np.asarray(video) for where, video in videos.items()}
    return SceneResult(figures, bins, costs, stages, held, arrays, told_hard)


def held_by(memory: WorldMemory) -> dict[str, float]:
    """Sizes of what is held, uncompressed unless said."""
    views, points = memory.stereo, memory.points
    fields = (views.images, views.depth, views.confidence, views.w2c, views.intrinsics)
    plain, coded = (report_entries(x) for x in (memory.entries, quantise_entries(memory.entries)))
    count = int(points.count)
    return {
        "keyframes": float(views.count),
        "bytes of keyframes": float(views.count) * sum(field[0].nbytes for field in fields),
        "entries": float(plain.entries),
        "bytes of entries": float(plain.entries * plain.bytes_per_entry),
        "bytes of entries, 8 bits": float(plain.entries * coded.bytes_per_entry),
        "points": float(count),
        "bytes of points": float(count * (points.positions[0].nbytes + points.colors[0].nbytes)),
    }


def measure(
    scene: dict,
    videos: dict[tuple[str, str], Any],
    truths: dict[str, tuple[ClipTruth, dict[str, np.ndarray]]],
    lpips_weights: LpipsWeights | None,
) -> tuple[Figures, dict[tuple[str, str], BinnedError]]:
    """Every measure of every clip; pixels of both clips' frames after the first go into bins."""
    figures: Figures = {}
    bins: dict[tuple[str, str], BinnedError] = {}
    for (clip_name, name), video in videos.items():
        truth, values = truths[clip_name]
        scores = clip_scores(video, truth, lpips_weights=lpips_weights)
        if clip_name == "revisit":
            # Without a model the frames to agree with are those that were stored.
            earlier = HARD if name == REPROJECTION else name
            scores |= revisit_metrics(scene, jnp.asarray(video), videos["first", earlier])
        if name == TRUTH:
            kept = (FLICKER, TO_FIRST)
            scores = {measure: scores[measure] for measure in kept if measure in scores}
        figures |= {(clip_name, name, measure): value for measure, value in scores.items()}
        for kind, edges in ((BY_ANGLE, ANGLES), (BY_DISTANCE, DISTANCES)):
            value = np.where(np.asarray(truth.seen), values[kind], np.inf)[1:]
            found = binned_error(video[1:], truth.image[1:], value, np.asarray(edges))
            before = bins.get((kind, name))
            bins[kind, name] = (
                found
                if before is None
                else BinnedError(before.total + found.total, before.pixels + found.pixels)
            )
    return figures, bins
