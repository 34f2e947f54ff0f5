"""What the memory keeps of textures, edges, relief and gloss, region by region.

    python -m experiments.region_gain

Six views of a scene of `data/region_scenes.py` are stored, of which depth is known to half a
percent; four others between and beyond them are asked for. Without the memory: the nearest stored
frame as it is, and the coloured points of the global-geometric memory alone. With it: its entries
drawn, and its keyframes warped; and its entries with their mean colours alone, which do not go with
the view. Scores (rows S21 to S24) are means over scenes and views, over the pixels that both ways
of drawing the memory cover, with holes of the points counted as black. Between two of the asked
views, highlights wander: the change of colour at points of the surface is compared with the true
one. A further scene has a stained pane before a wall, every other of whose ten stored views tells
the wall's depth through the pane: with the memory's two depths on a ray, and with votes alone.

Expected: with the memory every region is closer to the truth (PSNR) than without; the keyframes
are about as sharp as the truth, the entries less so in the weave, whose threads are as fine as the
pixels; entries of the mirror are trusted least. The gloss moves with the view in the entries, and
not at all without their change by view, which costs still regions about 1 dB at most. Through the
pane both layers are closer than votes alone.
"""

import dataclasses
import functools
import itertools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.data.pane_scenes import make_pane_scene, render_pane
from worldstereo_jax.data.region_scenes import (
    REGIONS,
    RegionFrames,
    make_region_scene,
    render_regions,
)
from worldstereo_jax.evaluation.region_metrics import region_scores
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.evaluation.view_change import ChangeAgreement, change_agreement, view_change
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.memory.entries import EntryBank, EntryConfig, init_entries
from worldstereo_jax.memory.entry_appearance import first_appearance
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_update import DEFAULT_RULE, build_entries, rate_entries
from worldstereo_jax.memory.entry_warp import warp_entries
from worldstereo_jax.memory.global_geometric import (
    init_global_memory,
    render_global_memory,
    update_global_memory,
)
from worldstereo_jax.memory.warping import warp_views

RESULTS = Path(__file__).parent / "RESULTS.md"
HEIGHT, WIDTH, FOCAL = 120, 192, 112.0
EYES = ((-0.5, 0.0), (-0.3, 0.15), (-0.1, -0.1), (0.1, 0.1), (0.3, -0.15), (0.5, 0.0))
TARGETS = ((-0.4, 0.1), (0.0, 0.0), (0.25, 0.1), (0.65, -0.05))
SEEDS = range(4)
PANE_EYES = tuple((0.5 * np.cos(2.4 * i), 0.4 * np.sin(2.4 * i)) for i in range(10))


def cameras(eyes: tuple[tuple[float, float], ...]) -> tuple[np.ndarray, np.ndarray]:
    """World to camera [f, 4, 4] of cameras that look straight at the wall, and intrinsics."""
    w2c = np.tile(np.eye(4, dtype=np.float32), (len(eyes), 1, 1))
    w2c[:, :2, 3] = -np.asarray(eyes)
    k = np.array([[FOCAL, 0, WIDTH / 2], [0, FOCAL, HEIGHT / 2], [0, 0, 1]], np.float32)
    return w2c, np.tile(k, (len(eyes), 1, 1))


@jax.jit
def fuse(image: jax.Array, depth: jax.Array, w2c: jax.Array, intrinsics: jax.Array) -> EntryBank:
    """The bank of all frames."""
    frames = jax.vmap(lambda i, d, w, k, v: make_entry_frame(i, d, w, k, view=v))(
        image, depth, w2c, intrinsics, jnp.arange(len(image))
    )
    return build_entries(init_entries(EntryConfig(2 * HEIGHT * WIDTH, pyramid_widths())), frames)


def confidences(bank: EntryBank, frames: RegionFrames, index: int) -> dict[str, float]:
    """Mean confidence of the entries that project into each region of a stored view."""
    w2c, k = cameras(EYES)
    pixel, _ = project(bank.position, jnp.asarray(w2c[index]), jnp.asarray(k[index]))
    x, y = np.floor(np.asarray(pixel)).astype(int).T
    held = np.asarray(bank.valid) & (x >= 0) & (y >= 0) & (x < WIDTH) & (y < HEIGHT)
    held &= np.asarray(bank.observations) > 2
    region = frames.region[index][np.clip(y, 0, HEIGHT - 1), np.clip(x, 0, WIDTH - 1)]
    confidence = np.asarray(bank.confidence)
    return {n: float(confidence[held & (region == i)].mean()) for i, n in enumerate(REGIONS)}


def mean_colours(bank: EntryBank) -> EntryBank:
    """The bank without what its colours do from view to view."""
    return dataclasses.replace(bank, appearance=first_appearance(bank.direction))


def highlights(
    shown: list[dict[str, np.ndarray]], wanted: RegionFrames, w2c: np.ndarray, k: np.ndarray
) -> list[dict[str, ChangeAgreement]]:
    """Of each pair of target views how the gloss changes between them, by method (row S24)."""
    found = []
    for a, b in itertools.combinations(range(len(TARGETS)), 2):
        pair = [a, b]
        geometry = wanted.depth[pair], w2c[pair], k[pair]
        true, tracked = view_change(wanted.image[pair], *geometry)
        where = tracked & (wanted.region[a] == REGIONS.index("gloss"))
        found.append(
            {
                name: change_agreement(
                    view_change(np.stack([shown[a][name], shown[b][name]]), *geometry)[0],
                    true,
                    where,
                )
                for name in shown[a]
            }
        )
    return found


def one_pane(seed: int) -> list[dict[str, float]]:
    """Per target view the PSNR through the pane, by method."""
    size = {"height": HEIGHT, "width": WIDTH}
    scene = make_pane_scene(seed)
    (w2c, k), (target_w2c, target_k) = cameras(PANE_EYES), cameras(TARGETS)
    stored = render_pane(scene, w2c, k, **size)
    wanted = render_pane(scene, target_w2c, target_k, **size)
    noise = np.random.default_rng(seed).normal(0, 0.003, stored.depth.shape)
    depth = jnp.asarray(stored.alternating() * (1 + noise), jnp.float32)
    image, poses, lenses = (jnp.asarray(x) for x in (stored.image, w2c, k))
    bank = fuse(image, depth, poses, lenses)
    votes = rate_entries(
        dataclasses.replace(bank, denied=jnp.zeros_like(bank.denied)), DEFAULT_RULE
    )
    rows = []
    for i in range(len(TARGETS)):
        camera = jnp.asarray(target_w2c[i]), jnp.asarray(target_k[i])
        certain = jnp.ones(depth.shape), poses, lenses, jnp.ones((len(image),), bool)
        nearest = np.argmin(np.linalg.norm(np.subtract(PANE_EYES, TARGETS[i]), axis=1))
        shown = {
            "nearest frame": stored.image[nearest],
            "keyframes": np.asarray(jax.jit(warp_views)(image, depth, *certain, *camera).features),
            "entries, votes alone": np.asarray(warp_entries(votes, *camera, **size).features),
            "entries, two depths": np.asarray(warp_entries(bank, *camera, **size).features),
        }
        through = wanted.through[i]
        rows.append(
            {
                name: float(10 * np.log10(4 / np.square(x - wanted.image[i])[through].mean()))
                for name, x in shown.items()
            }
        )
    return rows


def one_scene(
    seed: int,
) -> tuple[list[dict], dict[str, float], list[dict[str, ChangeAgreement]]]:
    """Per target view the scores by method and region; confidences; highlights per pair."""
    scene = make_region_scene(seed)
    (w2c, k), (target_w2c, target_k) = cameras(EYES), cameras(TARGETS)
    size = {"height": HEIGHT, "width": WIDTH}
    stored = render_regions(scene, w2c, k, **size)
    wanted = render_regions(scene, target_w2c, target_k, **size)
    noise = np.random.default_rng(seed).normal(0, 0.005, stored.depth.shape)
    depth = jnp.asarray(stored.depth * (1 + noise), jnp.float32)
    image, poses, lenses = (jnp.asarray(x) for x in (stored.image, w2c, k))
    bank = fuse(image, depth, poses, lenses)
    points = init_global_memory(4 * HEIGHT * WIDTH)
    insert = jax.jit(update_global_memory)
    for i in range(len(EYES)):
        points = insert(points, image[i], depth[i], poses[i], lenses[i])
    splat = jax.jit(functools.partial(render_global_memory, **size))
    splats = splat(points, jnp.asarray(target_w2c), jnp.asarray(target_k))
    warp = jax.jit(warp_views)
    rows, pictures = [], []
    for i in range(len(TARGETS)):
        camera = jnp.asarray(target_w2c[i]), jnp.asarray(target_k[i])
        drawn = warp_entries(bank, *camera, **size)
        certain = jnp.ones(depth.shape), poses, lenses, jnp.ones((len(EYES),), bool)
        warped = warp(image, depth, *certain, *camera)
        nearest = np.argmin(np.linalg.norm(np.subtract(EYES, TARGETS[i]), axis=1))
        shown = {
            "nearest frame": stored.image[nearest],
            "points": np.asarray(splats.image[i]),
            "entries, mean colours": np.asarray(
                warp_entries(mean_colours(bank), *camera, **size).features
            ),
            "entries": np.asarray(drawn.features),
            "keyframes": np.asarray(warped.features),
        }
        pictures.append(shown)
        known = np.asarray((drawn.mask < 0.5) & (warped.mask < 0.5))
        rows.append(
            {
                name: region_scores(x, wanted.image[i], wanted.masks(i), known=known)
                for name, x in shown.items()
            }
        )
    moved = highlights(pictures, wanted, target_w2c, target_k)
    return rows, confidences(bank, stored, 2), moved


def main() -> None:
    """All scenes, and the section of the results."""
    found = [one_scene(seed) for seed in SEEDS]
    views = [row for rows, _, _ in found for row in rows]
    methods = list(views[0])
    regions = list(views[0][methods[0]])
    tables: list[Table | str] = []
    for field, form in (("psnr", "{:.1f}"), ("ssim", "{:.3f}"), ("detail", "{:.2f}")):
        rows = []
        for region in regions:
            values = [
                np.nanmean([getattr(view[method][region], field) for view in views])
                for method in methods
            ]
            rows.append((region, *(form.format(value) for value in values)))
        tables.append(Table((f"region, {field}", *methods), rows))
    trust = [
        (name, f"{np.mean([confidence[name] for _, confidence, _ in found]):.2f}")
        for name in REGIONS
    ]
    tables.append(Table(("region", "mean confidence of its entries"), trust, ""))
    pairs = [pair for _, _, moved in found for pair in moved]
    gloss = [
        (
            method,
            f"{np.mean([pair[method].correlation for pair in pairs]):.2f}",
            f"{np.mean([pair[method].slope for pair in pairs]):.2f}",
        )
        for method in methods
    ]
    tables.append(Table(("change of the gloss", "correlation with the truth", "slope"), gloss))
    panes = [row for seed in SEEDS for row in one_pane(seed)]
    through = [(name, f"{np.mean([row[name] for row in panes]):.1f}") for name in panes[0]]
    tables.append(Table(("through the pane", "PSNR, dB"), through))
    write_section(
        RESULTS,
        "Regions with and without memory",
        tables,
        command="python -m experiments.region_gain",
    )
    for table in tables[1:]:
        print(table)


if __name__ == "__main__":
    main()
