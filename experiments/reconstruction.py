"""What the entries make of a world, against its frames back-projected (row S27).

    python -m experiments.reconstruction --scenes 12

Per scene of the held-out split two clips are made, one from a single image and its depth, then one
that revisits; with both memories, and with neither. From what is then stored three clouds are
made: every pixel of the stored frames carried into the world by its depth; the middles of the fused
entries; and the surfaces that the entries make up (`memory/entry_cloud.py`), which is what
`surface.ply` holds. They are compared with the true surfaces that the stored views see, rendered at
twice the frames' resolution, so that no cloud has the truth's own points.

Writes a section into experiments/RESULTS.md, and a figure into experiments/plots.
"""

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
from tqdm import tqdm

from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.evaluation.alternatives import (
    ALTERNATIVES,
    NO_MEMORY,
    AlternativeRollout,
    alternative_rollout,
)
from worldstereo_jax.evaluation.attention_patterns import HARD
from worldstereo_jax.evaluation.comparison_sheet import comparison_sheet
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.reconstruction import (
    ReconstructionScores,
    points_in_free_space,
    reconstruction_scores,
    thin_points,
)
from worldstereo_jax.evaluation.report import Table, format_difference, write_section
from worldstereo_jax.files import atomic_write
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.geometry.points import depth_to_points
from worldstereo_jax.geometry.splat import pixel_radius, render_path, solid_image
from worldstereo_jax.interop.shipped import load_world
from worldstereo_jax.memory.entry_cloud import CERTAIN, surface_cloud
from worldstereo_jax.memory.entry_points import entries_to_points
from worldstereo_jax.sampling.compiled import compile_rollout
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    World,
    WorldMemory,
    WorldParams,
    init_memory,
)

RESULTS = Path(__file__).parent / "RESULTS.md"
TAUS = (0.05, 0.1, 0.2)  # metres
CUBE = 0.025  # metres: clouds and truth are thinned to one point per cube of this side
FRAMES, MIDDLES, SURFACES = "frames back-projected", "middles of the entries", "surfaces"
MEMORIES = {"with memory": HARD, "no memory": NO_MEMORY}
OURS = ("with memory", SURFACES)
DRAWN = 1  # scene
_COLOURS = 192


class Cloud(NamedTuple):
    """Points [n, 3], world units, and their colours [n, 3] in [-1, 1]."""

    points: np.ndarray
    colors: np.ndarray


class Found(NamedTuple):
    """Scores of one cloud, its share of points in free space, and how many points it has."""

    scores: ReconstructionScores
    floating: float
    points: int


Key = tuple[str, str]  # memory, kind of cloud


def two_clips(
    rollout: AlternativeRollout,
    params: WorldParams,
    start: WorldMemory,
    scene: Mapping[str, Any],
    name: str,
    key: jax.Array,
) -> WorldMemory:
    """The memory after both clips of a scene were made and written into it."""
    memory = start
    for number, prefix in enumerate(("", "revisit_")):
        cameras = Cameras(w2c=scene[prefix + "w2c"], intrinsics=scene[prefix + "intrinsics"])
        gathered = rollout.gather(params, memory, cameras)
        noise = jax.random.fold_in(key, number)
        clip = rollout.clip(ALTERNATIVES[name], params, gathered, cameras, noise)
        memory = rollout.rollout.remember(memory, clip)
    return memory


def stored_views(scene: Mapping[str, Any], config: RolloutConfig, *fields: str) -> tuple:
    """True fields of the views that both clips store."""
    chosen = np.asarray(keyframe_indices(config.frames, config.keyframes))
    return tuple(
        np.concatenate([scene[n][:1], scene[n][chosen], scene["revisit_" + n][chosen]])
        for n in fields
    )


def clouds_of(memory: WorldMemory) -> dict[str, Cloud]:
    """Every kind of cloud of what is stored."""
    views, count = memory.stereo, int(memory.stereo.count)
    lifted = _lift(views.depth[:count], views.w2c[:count], views.intrinsics[:count])
    known = np.asarray(views.depth[:count]) > 0
    middles = entries_to_points(memory.entries, least_confidence=CERTAIN)
    kept = np.asarray(middles.valid)
    surfaces = surface_cloud(memory.entries, spacing=CUBE)
    return {
        FRAMES: Cloud(np.asarray(lifted)[known], np.asarray(views.images[:count])[known]),
        MIDDLES: Cloud(np.asarray(middles.points)[kept], np.asarray(middles.colors)[kept]),
        SURFACES: Cloud(surfaces.positions, surfaces.colors),
    }


_lift = jax.jit(jax.vmap(depth_to_points))


def evaluate(
    world: World,
    params: WorldParams,
    rollout: AlternativeRollout,
    scene: Mapping[str, np.ndarray],
    fine: Mapping[str, np.ndarray],
    key: jax.Array,
) -> tuple[dict[Key, Found], dict[Key, Cloud]]:
    """Scores of all clouds of one scene, and the clouds."""
    config = world.rollout
    fields = ("image", "depth", "w2c", "intrinsics")
    on_device = {name: jnp.asarray(scene[name]) for name in scene if name != "seed"}
    start = init_memory(config, *(on_device[name][0] for name in fields))
    truth = stored_views(fine, config, "depth", "w2c", "intrinsics")
    surface = thin_points(np.asarray(_lift(*truth)), CUBE)
    found, clouds = {}, {}
    for label, name in MEMORIES.items():
        memory = two_clips(rollout, params, start, on_device, name, key)
        for way, cloud in clouds_of(memory).items():
            points = thin_points(cloud.points, CUBE)
            scores = reconstruction_scores(points, surface, tau=TAUS)
            found[label, way] = Found(scores, points_in_free_space(points, *truth), len(points))
            clouds[label, way] = cloud
    return found, clouds


def draw(
    path: Path, scene: Mapping[str, np.ndarray], clouds: Mapping[Key, Cloud], config: RolloutConfig
) -> None:
    """The clouds as discs, from cameras beside those that were on the paths."""
    (w2c, lens) = stored_views(scene, config, "w2c", "intrinsics")
    turned = _aside(w2c[[0, 2, 4, 8]], np.median(scene["depth"][0]))
    rows = {}
    for (label, way), cloud in clouds.items():
        if label != OURS[0]:
            continue
        render = render_path(
            jnp.asarray(cloud.points),
            jnp.asarray(cloud.colors),
            jnp.ones(len(cloud.points), bool),
            jnp.asarray(turned),
            jnp.asarray(lens[[0, 2, 4, 8]]),
            height=config.height,
            width=config.width,
            radius_ndc=pixel_radius(config.height, config.width, 1.0),
        )
        rows[way] = np.asarray(solid_image(render))
    sheet = Image.fromarray(comparison_sheet(rows, columns=4))
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        sheet.quantize(_COLOURS, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)


def _aside(w2c: np.ndarray, distance: float) -> np.ndarray:
    """Cameras carried a quarter of the scene's depth to the side and up, looking at its middle."""
    turn = np.eye(4, dtype=np.float32)
    angle = np.radians(14.0)
    turn[:3, :3] = [
        [np.cos(angle), 0.0, -np.sin(angle)],
        [0.0, 1.0, 0.0],
        [np.sin(angle), 0.0, np.cos(angle)],
    ]
    middle = np.array([0.0, 0.0, distance], np.float32)
    turn[:3, 3] = middle - turn[:3, :3] @ middle
    return (turn @ w2c).astype(np.float32)


def tables(results: Sequence[Mapping[Key, Found]]) -> list[Table]:
    """Means over scenes, and what the surfaces gain over every other cloud."""
    rows = []
    for label, way in results[0]:
        found = [result[label, way] for result in results]
        cells = [
            f"{np.mean([getattr(one.scores, field)[i] for one in found]):.3f}"
            for i in range(len(TAUS))
            for field in ("precision", "recall", "f1")
        ]
        cells += [
            f"{np.mean([one.scores.auc for one in found]):.3f}",
            f"{100 * np.nanmean([one.floating for one in found]):.1f} %",
            f"{np.mean([one.points for one in found]):,.0f}",
        ]
        rows.append((f"{label}, {way}", *cells))
    heads = [f"{word} {tau:g} m" for tau in TAUS for word in ("precision", "recall", "F1")]
    caption = (
        f"Mean over {len(results)} scenes, tau = {', '.join(f'{tau:g}' for tau in TAUS)} m, area "
        f"under F1 up to {max(TAUS):g} m, share of points in free space (floaters). Clouds and "
        "truth have one point per cube of 2.5 cm; the truth is all that the stored views see, at "
        "twice their resolution. Entries count from a confidence of "
        f"{CERTAIN:g}. Without memory the depth network's estimate takes the first frame's scale."
    )
    means = Table(("cloud", *heads, "area", "floaters", "points"), rows, caption)
    reads = {f"F1 {tau:g} m": lambda x, i=i: x.scores.f1[i] for i, tau in enumerate(TAUS)}
    reads |= {"area": lambda x: x.scores.auc, "floaters": lambda x: x.floating}
    pairs = []
    for other in results[0]:
        if other == OURS:
            continue
        ours, theirs = ([result[key] for result in results] for key in (OURS, other))
        cells = [
            format_difference(
                paired_difference(*(np.array([read(x) for x in side]) for side in (ours, theirs))),
                3,
            )
            for read in reads.values()
        ]
        pairs.append((", ".join(other), *cells))
    title = f"{', '.join(OURS)}, minus (paired by scene, 95 % intervals):"
    return [means, Table(("", *reads), pairs, title)]


def main() -> None:
    """Run, print the tables, write the section and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    world, params = load_world("tiny")
    sizes = world.rollout
    rollout = alternative_rollout(world, compile_rollout(world, params))

    def clips(scale: int) -> SceneClips:
        return SceneClips(
            range(options.scenes),
            split="held_out",
            frames=sizes.frames,
            height=scale * sizes.height,
            width=scale * sizes.width,
        )

    plain, fine = clips(1), clips(2)
    results = []
    for number in tqdm(range(options.scenes), unit="scene"):
        key = jax.random.fold_in(jax.random.key(options.seed), number)
        scene = plain[number]
        found, clouds = evaluate(world, params, rollout, scene, fine[number], key)
        results.append(found)
        if number == min(DRAWN, options.scenes - 1):
            plots = options.results.parent / "plots"
            draw(plots / "reconstruction.png", scene, clouds, sizes)
    parts: list[Table | str] = [
        *tables(results),
        "![the clouds from beside the paths](plots/reconstruction.png)",
    ]
    for part in parts:
        print(part if isinstance(part, str) else part.markdown(), end="\n\n")
    command = (
        f"python -m experiments.reconstruction --scenes {options.scenes} --seed {options.seed}"
    )
    write_section(options.results, "Reconstruction from what is stored", parts, command=command)


if __name__ == "__main__":
    main()
