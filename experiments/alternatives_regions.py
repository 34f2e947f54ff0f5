"""Textures, edges, relief and gloss in generated clips, with and without the memory (S21 to S24).

Six views of a scene of `data/region_scenes.py`, of which depth is known to half a percent, are
stored; a clip that starts at the first of them moves past all panels, between and beyond the views.
"""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments.alternatives_scenes import REPROJECTION, reprojected
from worldstereo_jax.data.region_scenes import RegionFrames, make_region_scene, render_regions
from worldstereo_jax.evaluation.alternatives import (
    ALTERNATIVES,
    GLOBAL_ONLY,
    NO_MEMORY,
    AlternativeRollout,
)
from worldstereo_jax.evaluation.attention_patterns import EVERY, HARD
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.region_metrics import region_scores
from worldstereo_jax.evaluation.report import Table, format_difference
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    World,
    WorldParams,
    empty_memory,
    remember_frames,
)

EYES = ((-0.5, 0.0), (-0.3, 0.15), (-0.1, -0.1), (0.1, 0.1), (0.3, -0.15), (0.5, 0.0))
END, SWAY = 0.65, 0.08  # metres: how far right the clip goes, and how far up and down
FIELD = 112 / 192  # focal length as a share of the width
SHOWN = (HARD, EVERY, GLOBAL_ONLY, NO_MEMORY)
FIELDS = {"psnr": "{:.1f}", "ssim": "{:.3f}", "detail": "{:.2f}"}
Scores = dict[tuple[str, str, str], float]


def cameras(eyes: np.ndarray, config: RolloutConfig) -> Cameras:
    """Cameras at eyes [f, 2] (x, y) in metres that look straight at the wall."""
    w2c = np.tile(np.eye(4, dtype=np.float32), (len(eyes), 1, 1))
    w2c[:, :2, 3] = -eyes
    focal = FIELD * config.width
    k = np.array([[focal, 0, config.width / 2], [0, focal, config.height / 2], [0, 0, 1]])
    return Cameras(jnp.asarray(w2c), jnp.asarray(np.tile(k, (len(eyes), 1, 1)), jnp.float32))


def path(config: RolloutConfig) -> Cameras:
    """From the first stored view to beyond the last one."""
    along = np.linspace(0, 1, config.frames)
    x = EYES[0][0] + along * (END - EYES[0][0])
    return cameras(np.stack([x, SWAY * np.sin(2 * np.pi * along)], -1), config)


def render(seed: int, where: Cameras, config: RolloutConfig) -> RegionFrames:
    """The scene's truth from cameras."""
    size = {"height": config.height, "width": config.width}
    poses = (np.asarray(where.w2c), np.asarray(where.intrinsics))
    return render_regions(make_region_scene(seed), *poses, **size)


def scene_scores(
    world: World, params: WorldParams, rollout: AlternativeRollout, seed: int, key: jax.Array
) -> Scores:
    """(alternative, region, field) -> mean over the frames after the first."""
    config = world.rollout
    views, target = cameras(np.asarray(EYES), config), path(config)
    stored, truth = render(seed, views, config), render(seed, target, config)
    noise = np.random.default_rng(seed).normal(0, 0.005, stored.depth.shape)
    depth = jnp.asarray(stored.depth * (1 + noise), jnp.float32)
    image = jnp.asarray(stored.image)
    memory = remember_frames(config, empty_memory(config), image, depth, views, 0)
    gathered = rollout.gather(params, memory, target)
    videos: dict[str, jax.Array] = {REPROJECTION: reprojected(memory, target)}
    for name in SHOWN:
        clip = rollout.clip(ALTERNATIVES[name], params, gathered, target, key)
        videos[name] = clip.video
    found: Scores = {}
    for name, video in videos.items():
        frames = [
            region_scores(np.asarray(video[i]), truth.image[i], truth.masks(i))
            for i in range(1, config.frames)
        ]
        for region in frames[0]:
            for field in FIELDS:
                each = [getattr(frame[region], field) for frame in frames]
                each = [value for value in each if np.isfinite(value)]
                found[name, region, field] = float(np.mean(each)) if each else np.nan
    return found


def region_tables(
    world: World, params: WorldParams, rollout: AlternativeRollout, seeds: range, seed: int
) -> list[Table | str]:
    """A table for each score, and differences in PSNR with and without the memory."""
    scores = [
        scene_scores(world, params, rollout, i, jax.random.fold_in(jax.random.key(seed), i))
        for i in seeds
    ]
    names = (HARD, EVERY, REPROJECTION, GLOBAL_ONLY, NO_MEMORY)
    regions = list(dict.fromkeys(key[1] for key in scores[0]))
    tables: list[Table | str] = [
        f"Regions of generated clips (rows S21 to S24), {len(scores)} scenes of panels: six views "
        "stored, a clip past all of them; detail is the energy of gradients over that of the truth."
    ]
    for field, form in FIELDS.items():
        rows = [
            (region, *(form.format(_mean(scores, name, region, field)) for name in names))
            for region in regions
        ]
        tables.append(Table((f"region, {field}", *names), rows))
    pairs = []
    for region in regions:
        cells = []
        for name in names[1:]:
            ours, theirs = (
                np.array([score[x, region, "psnr"] for score in scores]) for x in (HARD, name)
            )
            both = np.isfinite(ours) & np.isfinite(theirs)
            cells.append(format_difference(paired_difference(ours[both], theirs[both])))
        pairs.append((region, *cells))
    caption = f"Paired differences in PSNR, dB, 95 % intervals: {HARD}, minus"
    tables.append(Table(("region", *names[1:]), pairs, caption))
    return tables


def _mean(scores: Sequence[Mapping], name: str, region: str, field: str) -> float:
    return float(np.nanmean([score[name, region, field] for score in scores]))
