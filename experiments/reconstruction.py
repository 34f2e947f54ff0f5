"""What the entries make of a world, against its frames back-projected (row S27).

    python -m experiments.reconstruction --scenes 12

Per scene of the held-out split two clips are made, one from a single image and its depth, then one
that revisits; with both memories, and with neither. From what is then stored three clouds are
made: every pixel of the stored frames carried into the world by its depth; the middles of the fused
entries; and the surfaces that the entries make up (`memory/entry_cloud.py`), which is what
`surface.ply` holds. They are compared with the true surfaces that the stored views see, rendered at
twice the frames' resolution, so that no cloud has the truth's own points; with the depth of the
stored views themselves, which a cloud may contradict; and, drawn as discs, with the true frames of
both paths that were not stored.

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
from worldstereo_jax.evaluation.image_metrics import masked_psnr, masked_ssim
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.reconstruction import (
    points_in_free_space,
    reconstruction_scores,
    thin_points,
)
from worldstereo_jax.evaluation.report import Table, format_difference, write_section
from worldstereo_jax.files import atomic_write
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.geometry.points import depth_to_points
from worldstereo_jax.geometry.splat import Render, pixel_radius, render_path, solid_image
from worldstereo_jax.interop.shipped import load_world
from worldstereo_jax.memory.entry_cloud import CERTAIN, GIVEN, surface_cloud
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
FLOATERS, CONTRADICTIONS = "floaters %", "contradictions %"
RIGHT, HOLES = "right depth %", "holes %"
NEAR = 0.05  # share of depth within which it is right
MEMORIES = {"with memory": HARD, "no memory": NO_MEMORY}
OURS = ("with memory", SURFACES)
DRAWN = 1  # scene
_COLOURS = 192
_BLOCK = 1 << 16


class Cloud(NamedTuple):
    """Points [n, 3], world units, and their colours [n, 3] in [-1, 1]."""

    points: np.ndarray
    colors: np.ndarray


Key = tuple[str, str]  # memory, kind of cloud
Figures = dict[str, float]  # by measure


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


def other_views(scene: Mapping[str, Any], config: RolloutConfig, *fields: str) -> tuple:
    """True fields of the frames of both paths that are not stored."""
    stored = np.asarray(keyframe_indices(config.frames, config.keyframes))
    rest = np.setdiff1d(np.arange(1, config.frames), stored)
    return tuple(np.concatenate([scene[n][rest], scene["revisit_" + n][rest]]) for n in fields)


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
) -> tuple[dict[Key, Figures], dict[Key, Cloud]]:
    """Figures of all clouds of one scene, and the clouds."""
    config = world.rollout
    fields = ("image", "depth", "w2c", "intrinsics")
    on_device = {name: jnp.asarray(scene[name]) for name in scene if name != "seed"}
    start = init_memory(config, *(on_device[name][0] for name in fields))
    truth = stored_views(fine, config, "depth", "w2c", "intrinsics")
    surface = thin_points(np.asarray(_lift(*truth)), CUBE)
    figures, clouds = {}, {}
    for label, name in MEMORIES.items():
        memory = two_clips(rollout, params, start, on_device, name, key)
        views, count = memory.stereo, int(memory.stereo.count)
        told = views.depth[:count], views.w2c[:count], views.intrinsics[:count]
        found = clouds_of(memory)
        drawn = drawn_figures(found, scene, config)
        for way, cloud in found.items():
            points = thin_points(cloud.points, CUBE)
            scores = reconstruction_scores(points, surface, tau=TAUS)
            shares = {
                f"{word} {tau:g} m": float(getattr(scores, word.lower())[i])
                for i, tau in enumerate(TAUS)
                for word in ("precision", "recall", "F1")
            }
            figures[label, way] = {
                **shares,
                "area": scores.auc,
                FLOATERS: 100 * points_in_free_space(points, *truth),
                CONTRADICTIONS: 100 * points_in_free_space(points, *told),
                **drawn[way],
                "points": len(points),
            }
            clouds[label, way] = cloud
    return figures, clouds


def drawn_figures(
    clouds: Mapping[str, Cloud], scene: Mapping[str, np.ndarray], config: RolloutConfig
) -> dict[str, Figures]:
    """Depth, holes, and errors over pixels that all clouds cover, in frames not stored."""
    fields = ("image", "depth", "w2c", "intrinsics")
    image, depth, w2c, lens = other_views(scene, config, *fields)
    renders = {way: drawn(cloud, w2c, lens, config) for way, cloud in clouds.items()}
    shared = np.all([render.mask < 0.5 for render in renders.values()], axis=0)
    figures = {}
    for way, render in renders.items():
        solid = solid_image(render)
        figures[way] = {
            RIGHT: 100 * float(np.mean(np.abs(np.asarray(render.depth) - depth) <= NEAR * depth)),
            HOLES: 100 * float(jnp.mean(render.mask)),
            "PSNR dB": float(jnp.nanmean(masked_psnr(solid, image, shared))),
            "SSIM": float(jnp.nanmean(masked_ssim(solid, image, shared))),
        }
    return figures


def drawn(cloud: Cloud, w2c: np.ndarray, lens: np.ndarray, config: RolloutConfig) -> Render:
    """A cloud as discs with a radius of one pixel."""
    count = len(cloud.points)
    # Padded, so that few programs are compiled.
    room = -count % _BLOCK
    points, colors = (jnp.asarray(np.pad(x, ((0, room), (0, 0)))) for x in cloud)
    return render_path(
        points,
        colors,
        jnp.arange(count + room) < count,
        jnp.asarray(w2c),
        jnp.asarray(lens),
        height=config.height,
        width=config.width,
        radius_ndc=pixel_radius(config.height, config.width, 1.0),
    )


def draw(
    path: Path, scene: Mapping[str, np.ndarray], clouds: Mapping[Key, Cloud], config: RolloutConfig
) -> None:
    """The clouds as discs, from cameras beside those that were on the paths."""
    (w2c, lens) = stored_views(scene, config, "w2c", "intrinsics")
    turned = _aside(w2c[[0, 2, 4, 8]], np.median(scene["depth"][0]))
    rows = {}
    for (label, way), cloud in clouds.items():
        if label == OURS[0]:
            render = drawn(cloud, turned, lens[[0, 2, 4, 8]], config)
            rows[way] = np.asarray(solid_image(render))
    sheet = Image.fromarray(comparison_sheet(rows, columns=4))
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        sheet.quantize(_COLOURS, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)


def _aside(w2c: np.ndarray, distance: float) -> np.ndarray:
    """Cameras turned by 14 degrees around the vertical through what lies `distance` before them."""
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


def tables(results: Sequence[Mapping[Key, Figures]]) -> list[Table]:
    """Means over scenes, and what the surfaces gain over every other cloud."""
    measures = list(results[0][OURS])
    rows = []
    for key in results[0]:
        means = [np.nanmean([result[key][measure] for result in results]) for measure in measures]
        cells = [_cell(measure, float(mean)) for measure, mean in zip(measures, means, strict=True)]
        rows.append((", ".join(key), *cells))
    caption = (
        f"Mean over {len(results)} scenes. Area: under F1 up to {max(TAUS):g} m. {FLOATERS}: share "
        f"of points in front of a true surface of some stored view. {CONTRADICTIONS}: in front of "
        "the surface that a stored view was given itself. Clouds and truth have one point per cube "
        "of 2.5 cm; the truth is all that the stored views see, at twice their resolution. Entries "
        f"count from a confidence of {CERTAIN:g}, in the surfaces those of the given image from "
        f"{GIVEN:g}. {RIGHT} (within {100 * NEAR:g} % of the truth), {HOLES}, PSNR and SSIM: the "
        "clouds as discs of one pixel in the paths' frames that were not stored, the latter two "
        "over pixels that all clouds of the same memory cover. Without memory the depth network's "
        "estimate takes the first frame's scale."
    )
    means = Table(("cloud", *measures), rows, caption)
    compared = [name for name in measures if name.split()[0] not in ("precision", "recall")]
    compared.remove("points")
    pairs = []
    for other in results[0]:
        if other == OURS:
            continue
        cells = []
        for measure in compared:
            sides = (
                np.array([result[key][measure] for result in results]) for key in (OURS, other)
            )
            cells.append(format_difference(paired_difference(*sides), 3))
        pairs.append((", ".join(other), *cells))
    title = f"{', '.join(OURS)}, minus (paired by scene, 95 % intervals):"
    return [means, Table(("", *compared), pairs, title)]


def _cell(measure: str, mean: float) -> str:
    """As many digits as are worth reading."""
    if measure == "points":
        return f"{mean:,.0f}"
    return f"{mean:.1f}" if measure.endswith("%") else f"{mean:.3f}"


def main() -> None:
    """Run, print the tables, write the section and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--scenes", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    if options.scenes < 2:
        parser.error("intervals need at least two scenes")
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
