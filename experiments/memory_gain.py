"""What the memories gain, on held-out procedural scenes with ground truth.

    python experiments/memory_gain.py --scenes 20

Per scene two clips are made: one from a single image and its depth, then one that revisits. Columns
of the table:

- both memories: the shipped model, both clips through one memory;
- global memory only, no memory: the same parameters with one or both memories removed (both are
  dropped at random in training);
- reprojection by nearest pixel, bilinear look-up or splatted discs: no model; pixels of the same
  stored frames carried over by the same depth, holes filled from the nearest pixel;
- best reprojection: the best of the three chosen per scene and figure, with the truth in hand;
- autoencoder: the true frames through the VAE, the ceiling of any latent model.

On the revisiting clip, PSNR over revisited pixels (those whose surface point the first clip had in
sight) is measured against ground truth and against what the first clip showed there. Differences
are paired by scene, with 95 % intervals.

Writes the table into experiments/RESULTS.md and contact sheets into --out.
"""

import argparse
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from worldstereo_jax.data.images import write_uint8_image
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.evaluation.comparison_sheet import comparison_sheet
from worldstereo_jax.evaluation.lpips import LpipsWeights, load_lpips
from worldstereo_jax.evaluation.memory_gain import (
    BOTH,
    LOWER_IS_BETTER,
    VARIANTS,
    frame_metrics,
    revisit_metrics,
    told_as,
)
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.report import Table, format_difference, write_section
from worldstereo_jax.evaluation.reprojection import REPROJECTIONS, reproject
from worldstereo_jax.interop.shipped import load_world
from worldstereo_jax.models.vae_tiny import decode_frames, encode_frames
from worldstereo_jax.sampling.compiled import CompiledRollout, compile_rollout
from worldstereo_jax.sampling.world import Cameras, World, WorldMemory, WorldParams, init_memory

BEST = "best reprojection"


def reprojections(memory: WorldMemory, cameras: Cameras) -> dict[str, jax.Array]:
    """The stored frames carried into the path's cameras, by name of the method."""
    stereo = memory.stereo
    return {
        name: reproject(
            name,
            stereo.images,
            stereo.depth,
            stereo.w2c,
            stereo.intrinsics,
            stereo.valid,
            cameras.w2c,
            cameras.intrinsics,
        )
        for name in REPROJECTIONS
    }


def best_of(scores: list[dict[str, float]]) -> dict[str, float]:
    """The best of several methods' figures, each for itself."""
    return {
        name: (min if name in LOWER_IS_BETTER else max)(score[name] for score in scores)
        for name in scores[0]
    }


def evaluate_scene(
    world: World,
    params: WorldParams,
    rollout: CompiledRollout,
    scene: dict,
    key: jax.Array,
    lpips_weights: LpipsWeights | None,
):
    """All figures of one scene: {(clip, variant, metric): value}, and pictures by name."""
    measure = functools.partial(frame_metrics, lpips_weights=lpips_weights)
    paths = {
        "first": Cameras(w2c=scene["w2c"], intrinsics=scene["intrinsics"]),
        "revisit": Cameras(w2c=scene["revisit_w2c"], intrinsics=scene["revisit_intrinsics"]),
    }
    truths = {"first": scene["image"], "revisit": scene["revisit_image"]}
    start = init_memory(
        world.rollout,
        scene["image"][0],
        scene["depth"][0],
        scene["w2c"][0],
        scene["intrinsics"][0],
    )
    figures: dict[tuple[str, str, str], float] = {}
    pictures = {f"{clip} truth": truth for clip, truth in truths.items()}

    for variant in VARIANTS:
        memory, first_video = start, scene["image"]
        for number, (clip_name, cameras) in enumerate(paths.items()):
            if variant == BOTH:
                videos = reprojections(memory, cameras)
                scores = []
                for name, video in videos.items():
                    score = measure(video, truths[clip_name])
                    if clip_name == "revisit":
                        score |= revisit_metrics(scene, video, first_video)
                    scores.append(score)
                    for metric, value in score.items():
                        figures[clip_name, f"reprojection, {name}", metric] = value
                for metric, value in best_of(scores).items():
                    figures[clip_name, BEST, metric] = value
                pictures[f"{clip_name} reprojection"] = videos["bilinear"]
            conditions, guidance = rollout.gather(params, memory, cameras)
            gathered = told_as(variant, conditions), guidance
            clip = rollout.clip(params, gathered, cameras, jax.random.fold_in(key, number))
            memory = rollout.remember(memory, clip)
            pictures[f"{clip_name} {variant}"] = clip.video
            for metric, value in measure(clip.video, truths[clip_name]).items():
                figures[clip_name, variant, metric] = value
            if clip_name == "revisit":
                for metric, value in revisit_metrics(scene, clip.video, first_video).items():
                    figures[clip_name, variant, metric] = value
            first_video = clip.video

    videos = jnp.stack(list(truths.values()))
    ceiling = decode_frames(world.vae, params.vae, encode_frames(world.vae, params.vae, videos))
    for clip_name, video in zip(truths, ceiling.clip(-1, 1), strict=True):
        for metric, value in measure(video, truths[clip_name]).items():
            figures[clip_name, "autoencoder", metric] = value
    return figures, pictures


def tables(results: list[dict[tuple[str, str, str], float]]) -> list[Table]:
    """Means per variant, and paired differences of the full model to each other variant."""
    keys = list(results[0])
    parts = []
    for clip in dict.fromkeys(key[0] for key in keys):
        metrics = list(dict.fromkeys(key[2] for key in keys if key[0] == clip))
        variants = list(dict.fromkeys(key[1] for key in keys if key[0] == clip))
        column = {key: np.array([result.get(key, np.nan) for result in results]) for key in keys}

        def cell(variant: str, metric: str, clip: str = clip, column: dict = column) -> str:
            values = column.get((clip, variant, metric))
            return "" if values is None else f"{values.mean():.3f}"

        def difference(variant: str, metric: str, clip: str = clip, column: dict = column) -> str:
            values = column.get((clip, variant, metric))
            if values is None:
                return ""
            return format_difference(paired_difference(column[clip, BOTH, metric], values), 3)

        parts.append(
            Table(
                ["variant", *metrics],
                [[v, *(cell(v, m) for m in metrics)] for v in variants],
                f"The {clip} clip, mean over {len(results)} scenes (frame 0, which is given, "
                "does not count):",
            )
        )
        others = [v for v in variants if v != BOTH]
        parts.append(
            Table(
                ["both memories minus", *metrics],
                [[v, *(difference(v, m) for m in metrics)] for v in others],
                "Paired differences with 95 % intervals:",
            )
        )
    return parts


def main() -> None:
    """Evaluate and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="folder of other weights than the shipped")
    parser.add_argument("--lpips", type=Path, help="weights of LPIPS, which adds its column")
    parser.add_argument("--out", type=Path, default=Path("runs/memory_gain"))
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "RESULTS.md")
    options = parser.parse_args()
    lpips_weights = None if options.lpips is None else load_lpips(options.lpips)
    world, params = load_world("tiny", **({"weights": options.weights} if options.weights else {}))
    sizes, rollout = world.rollout, compile_rollout(world, params)
    source = SceneClips(
        range(options.scenes),
        split="held_out",
        frames=sizes.frames,
        height=sizes.height,
        width=sizes.width,
    )
    results = []
    for number in tqdm(range(options.scenes), unit="scene"):
        scene = {k: jnp.asarray(v) for k, v in source[number].items() if k != "seed"}
        key = jax.random.fold_in(jax.random.key(options.seed), number)
        figures, pictures = evaluate_scene(world, params, rollout, scene, key, lpips_weights)
        results.append(figures)
        for clip in ("first", "revisit"):
            videos = {
                name.removeprefix(f"{clip} "): np.asarray(video)
                for name, video in pictures.items()
                if name.startswith(f"{clip} ")
            }
            sheet = comparison_sheet(videos)
            write_uint8_image(options.out / f"scene_{number:02d}_{clip}.png", sheet)
    write_section(
        options.results,
        "What the memories gain",
        tables(results),
        command=f"python experiments/memory_gain.py --scenes {options.scenes} "
        f"--seed {options.seed}" + ("" if options.lpips is None else " --lpips WEIGHTS"),
    )
    for part in tables(results):
        print(part.markdown(), end="\n\n")


if __name__ == "__main__":
    main()
