"""What positions of references on the surface gain the small model when it is trained further.

    python experiments/train_tiny.py --cache runs/clips --out runs/surface --steps 160 --batch 2 \
        --learning-rate 3e-4 --init worldstereo_jax/weights/tiny_denoiser.safetensors \
        --reference-positions surface
    python experiments/train_tiny.py --cache runs/clips --out runs/beside --steps 160 --batch 2 \
        --learning-rate 3e-4 --init worldstereo_jax/weights/tiny_denoiser.safetensors
    python -m experiments.position_gain --surface runs/surface --beside runs/beside --scenes 6

Per held-out scene two clips are made by each of the weights, as in `memory_gain.py`: one from a
single image, one that revisits. All are told the same by the same memory, which holds the shipped
weights' first clip. Beside what was trained further in either way stand the shipped weights, these
with the positions changed and nothing trained, and these without any view to attend to (but with
warps and entries), which bounds what positions can matter. Differences are paired by scene, with
95 % intervals.

Writes the tables into experiments/RESULTS.md.

Record of the weights measured there, 2026-11-27, on one core of an AMD EPYC shared with many jobs
(3.2 to 4.6 s a step), jax 0.10.2: 278 clips, of which the first 178 were prepared some hours
earlier, before a clip's own depth counted as less than a measurement.

    python experiments/build_clip_cache.py --out runs/clips5 --scenes 240 --first 5000 --seed 11
    python experiments/build_clip_cache.py --out runs/clips6 --scenes 110 --first 6000 --seed 12
    python experiments/train_tiny.py --cache runs/clips5 runs/clips6 --out runs/surface \
        --steps 160 --batch 2 --learning-rate 3e-4 --seed 5 --reference-positions surface \
        --init worldstereo_jax/weights/tiny_denoiser.safetensors

Both caches were stopped on the way, after 178 and 100 clips. The same number of steps with the
official positions was begun and not finished, for lack of time.
"""

import argparse
import dataclasses
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.evaluation.memory_gain import frame_metrics, revisit_metrics
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.report import Table, format_difference, write_section
from worldstereo_jax.interop.shipped import SHIPPED, denoiser_config, load_denoiser, load_world
from worldstereo_jax.interop.weights import SHIPPED_WEIGHTS
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.compiled import CompiledRollout, compile_rollout
from worldstereo_jax.sampling.conditions import Conditions, Guidance
from worldstereo_jax.sampling.world import Cameras, World, WorldParams, init_memory

TITLE = "Positions of references, trained further"
NOTE = (
    "Each of the weights is told the same by one memory; one training run, whose length and clips "
    "the docstring of `position_gain.py` records. The last difference bounds what any position of "
    "references can matter to the shipped weights: without views to attend to, but with warps "
    "and entries, which show the same, they make the same clips."
)
START, UNTRAINED = "as shipped", "as shipped, on the surface, untrained"
ALONE = "as shipped, without views to attend to"
BESIDE, SURFACE = "trained further, beside the clip", "trained further, on the surface"
PREFIXES = {"first": "", "revisit": "revisit_"}
"""The two clips of a scene, with the prefixes of their fields in an item of `SceneClips`."""
SHOWN = ("PSNR dB", ", SSIM", "PSNR dB to first clip")
"""Ends of the names of figures that the tables have."""
FILE = SHIPPED["tiny"]["denoiser"]


def opened(path: Path, positions: str | None = None) -> tuple[World, WorldParams]:
    """The shipped world with the transformer of a file, under other positions where given."""
    world, params = load_world("tiny")
    config = denoiser_config(path, world.denoiser.config)
    if positions is not None:
        config = config.replace(reference_positions=positions)
    params = dataclasses.replace(params, denoiser=load_denoiser(path, config))
    return dataclasses.replace(world, denoiser=WorldStereo(config)), params


def told(
    rollout: CompiledRollout, params: WorldParams, scene: Mapping[str, jax.Array], key: jax.Array
) -> tuple[list[tuple[Conditions, Guidance]], jax.Array]:
    """What the memories say of a scene's two clips, and the first clip that the second revisits."""
    names = ("image", "depth", "w2c", "intrinsics")
    memory = init_memory(rollout.config, *(scene[name][0] for name in names))
    first, second = (
        Cameras(scene[prefix + "w2c"], scene[prefix + "intrinsics"]) for prefix in PREFIXES.values()
    )
    gathered = rollout.gather(params, memory, first)
    clip = rollout.clip(params, gathered, first, jax.random.fold_in(key, 0))
    memory = rollout.remember(memory, clip)
    return [gathered, rollout.gather(params, memory, second)], clip.video


def without_views(conditions: Conditions) -> Conditions:
    """What is told without references; warps and entries stay."""
    nothing = jnp.zeros_like(conditions.reference_valid)
    return dataclasses.replace(conditions, reference_valid=nothing)


def measured(
    rollout: CompiledRollout,
    params: WorldParams,
    scene: Mapping[str, jax.Array],
    gathered: list[tuple[Conditions, Guidance]],
    first: jax.Array,
    key: jax.Array,
) -> dict[str, float]:
    """The figures of both clips by some weights, by "first, ..." and "revisit, ..."."""
    figures = {}
    for number, (clip_name, prefix) in enumerate(PREFIXES.items()):
        own_key = jax.random.fold_in(key, number)
        cameras = Cameras(scene[prefix + "w2c"], scene[prefix + "intrinsics"])
        video = rollout.clip(params, gathered[number], cameras, own_key).video
        found = frame_metrics(video, scene[prefix + "image"])
        if clip_name == "revisit":
            found |= revisit_metrics(scene, video, first)
        figures |= {f"{clip_name}, {metric}": value for metric, value in found.items()}
    return figures


def tables(results: Mapping[str, list[dict[str, float]]]) -> list[Table]:
    """Means of every arm, and what positions on the surface differ by from the others, paired."""
    metrics = [name for name in results[START][0] if name.endswith(SHOWN)]

    def column(arm: str, metric: str) -> np.ndarray:
        return np.array([figures[metric] for figures in results[arm]])

    means = [[arm, *(f"{column(arm, m).mean():.3f}" for m in metrics)] for arm in results]
    pairs = [
        (SURFACE, START), (SURFACE, BESIDE), (BESIDE, START), (UNTRAINED, START), (ALONE, START)
    ]  # fmt: skip
    differences = [
        [
            f"{one}, minus {other}",
            *(
                format_difference(paired_difference(column(one, m), column(other, m)), 3)
                for m in metrics
            ),
        ]
        for one, other in pairs
        if one in results and other in results
    ]
    count = len(results[START])
    return [
        Table(["weights", *metrics], means, f"Means over {count} scenes (frame 0 does not count):"),
        Table(["difference", *metrics], differences, "Paired differences with 95 % intervals:"),
    ]


def main() -> None:
    """Evaluate and write the tables."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--surface", type=Path, required=True, help="folder of train_tiny.py")
    parser.add_argument("--beside", type=Path, help="folder of train_tiny.py (default: left out)")
    parser.add_argument("--scenes", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "RESULTS.md")
    options = parser.parse_args()
    arms = {
        START: (SHIPPED_WEIGHTS / FILE, None),
        **({} if options.beside is None else {BESIDE: (options.beside / FILE, None)}),
        UNTRAINED: (SHIPPED_WEIGHTS / FILE, "surface"),
        SURFACE: (options.surface / FILE, None),
    }
    worlds = {arm: opened(*source) for arm, source in arms.items()}
    rollouts: dict[World, CompiledRollout] = {}
    for world, params in worlds.values():
        if world not in rollouts:
            rollouts[world] = compile_rollout(world, params)
    world, shipped = worlds[START]
    sizes = world.rollout
    source = SceneClips(
        range(options.scenes),
        split="held_out",
        frames=sizes.frames,
        height=sizes.height,
        width=sizes.width,
    )
    results: dict[str, list[dict[str, float]]] = {arm: [] for arm in (*arms, ALONE)}
    for number in tqdm(range(options.scenes), unit="scene"):
        scene = {k: jnp.asarray(v) for k, v in source[number].items() if k != "seed"}
        key = jax.random.fold_in(jax.random.key(options.seed), number)
        gathered, first = told(rollouts[world], shipped, scene, key)
        told_less = [(without_views(conditions), guidance) for conditions, guidance in gathered]
        figures = measured(rollouts[world], shipped, scene, told_less, first, key)
        results[ALONE].append(figures)
        for arm, (own, params) in worlds.items():
            figures = measured(rollouts[own], params, scene, gathered, first, key)
            results[arm].append(figures)
            tqdm.write(f"{number}, {arm}: " + str({k: round(v, 3) for k, v in figures.items()}))
    write_section(
        options.results,
        TITLE,
        [NOTE, *tables(results)],
        command=f"python -m experiments.position_gain --surface {options.surface}"
        + ("" if options.beside is None else f" --beside {options.beside}")
        + f" --scenes {options.scenes} --seed {options.seed}",
    )
    for part in tables(results):
        print(part.markdown(), end="\n\n")


if __name__ == "__main__":
    main()
