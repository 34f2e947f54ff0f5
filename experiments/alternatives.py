"""The memory compared with its alternatives: same weights, scenes, noise.

    python -m experiments.alternatives

Per scene of the held-out split and per alternative two clips are made, one from a single image and
its depth, then one that revisits, through a memory of the alternative's own. The alternatives are
calls of one model (`evaluation/alternatives.py`): correspondence attention (hard, soft), frame
pairs (1.0), every reference (2.0), no references; each again without warped features, so that
references are all that is told of the views; the global memory alone; no memory. Beside them pixel
reprojection (bilinear, of the frames that the first alternative stored), the autoencoder's ceiling,
and the truth itself where a measure is not 0 or perfect for it.

The weights were trained with the hard correspondence pattern, with both memories, one, or none, and
never with references but without warps: the other patterns, and the block without warps, run
outside of what was trained. This shows what swapping the mask does to these weights, not what a
model trained for the other mask would do; that is `mask_training`.

Record (2026-11-26, five scenes): the memory's gain comes from its warps. Which references are
attended to, or none, moves PSNR by 0.02 dB at most, with warps and without; the attention to
references of these weights does next to nothing. Against pixel reprojection the memory gains in
every region but the mirror (-2.0 dB) and the card (-1.1, within the noise of three scenes).

Writes sections into experiments/RESULTS.md, and two figures into experiments/plots. With pycolmap
(the evaluate extra) also what an independent matcher finds in the frames.
"""

import argparse
import importlib.util
import math
import time
from pathlib import Path

import jax
import jax.numpy as jnp
from tqdm import tqdm

from experiments.alternatives_cost import attention_table
from experiments.alternatives_figures import draw_angles, draw_strip
from experiments.alternatives_matches import match_scene, match_tables
from experiments.alternatives_regions import region_tables
from experiments.alternatives_scenes import evaluate_scene
from experiments.alternatives_tables import cost_tables, scene_tables
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.evaluation.alternatives import alternative_rollout
from worldstereo_jax.evaluation.lpips import load_lpips
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.interop.shipped import load_world
from worldstereo_jax.sampling.compiled import compile_rollout

RESULTS = Path(__file__).parent / "RESULTS.md"
STRIP_SCENE = 1
PROVISO = (
    "The weights were trained with the hard correspondence pattern, and with both memories, one or "
    "none. Other patterns, and references without warps, are calls of the same weights outside of "
    "what they were trained for: the tables show what swapping the mask does to them, not what a "
    "model trained under the other mask would do. Without warps the clip is anchored on the point "
    "render, and references are all that the model is told of the stored views."
)


def main() -> None:
    """Run, and write the sections and the figures."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=8)
    parser.add_argument("--region-scenes", type=int, default=5)
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="begin no further scene after this long"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weights", type=Path, help="folder of other weights than the shipped")
    parser.add_argument("--lpips", type=Path, help="weights of LPIPS, which adds its column")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if min(options.scenes, options.region_scenes) < 2:
        parser.error("intervals need at least two scenes of either kind")
    lpips_weights = None if options.lpips is None else load_lpips(options.lpips)
    world, params = load_world("tiny", **({"weights": options.weights} if options.weights else {}))
    sizes = world.rollout
    rollout = alternative_rollout(world, compile_rollout(world, params))
    source = SceneClips(
        range(options.scenes),
        split="held_out",
        frames=sizes.frames,
        height=sizes.height,
        width=sizes.width,
    )
    has_matcher = importlib.util.find_spec("pycolmap") is not None
    results, matches = [], []
    start = time.monotonic()
    for number in tqdm(range(options.scenes), unit="scene"):
        # Intervals need two scenes.
        if number >= 2 and time.monotonic() - start > 60 * options.minutes:
            break
        scene = {k: jnp.asarray(v) for k, v in source[number].items() if k != "seed"}
        key = jax.random.fold_in(jax.random.key(options.seed), number)
        result = evaluate_scene(world, params, rollout, scene, key, lpips_weights)
        if has_matcher:
            matches.append(match_scene(scene, result.videos))
        results.append(result)
    plots = options.results.parent / "plots"
    draw_angles(plots / "quality_by_angle.png", results)
    draw_strip(plots / "alternatives.png", results[min(STRIP_SCENE, len(results) - 1)].videos)
    sections: dict[str, list[Table | str]] = {
        "Compared with the alternatives": [
            PROVISO,
            *scene_tables(results),
            attention_table(world.denoiser.config, [result.gathered for result in results]),
            *cost_tables(results),
            "![quality by angle](plots/quality_by_angle.png)",
            "![the same frames made in every way](plots/alternatives.png)",
        ],
        "Regions of generated clips": region_tables(
            world, params, rollout, range(options.region_scenes), options.seed
        ),
    }
    if has_matcher:
        sections["What an independent matcher finds"] = list(match_tables(matches))
    else:
        print("pycolmap (the evaluate extra) is not installed: its section stays as it is")
    command = (
        f"python -m experiments.alternatives --scenes {len(results)} "
        f"--region-scenes {options.region_scenes} --seed {options.seed}"
    )
    for title, parts in sections.items():
        for part in parts:
            print(part if isinstance(part, str) else part.markdown(), end="\n\n")
        write_section(options.results, title, parts, command=command)


if __name__ == "__main__":
    main()
