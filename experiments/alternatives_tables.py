"""The tables of `alternatives`."""

import itertools
from collections.abc import Sequence

import numpy as np

from experiments.alternatives_scenes import (
    ANGLES,
    AUTOENCODER,
    BY_ANGLE,
    BY_DISTANCE,
    DISTANCES,
    REPROJECTION,
    TRUTH,
    SceneResult,
)
from worldstereo_jax.evaluation.alternatives import GLOBAL_ONLY, NO_MEMORY, WITHOUT_WARPS
from worldstereo_jax.evaluation.attention_patterns import HARD
from worldstereo_jax.evaluation.clip_scores import FLICKER, MASKED_PSNR, UNSEEN_PSNR
from worldstereo_jax.evaluation.memory_gain import TO_FIRST, TO_TRUTH
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.report import Table, format_difference
from worldstereo_jax.evaluation.view_distance import BinnedError

MAIN = ("PSNR dB", "SSIM", MASKED_PSNR, UNSEEN_PSNR, FLICKER, TO_TRUTH, TO_FIRST)


def scene_tables(results: Sequence[SceneResult]) -> list[Table | str]:
    """Whole frames, masked forms, differences, angles and distances."""
    hard_alone = f"{HARD}, no warps"
    return [
        mean_table(results, "first", "The clip from one image"),
        mean_table(results, "revisit", "The clip that revisits"),
        difference_table(results, HARD, None),
        difference_table(results, hard_alone, (*WITHOUT_WARPS, GLOBAL_ONLY)),
        bin_table(results, BY_ANGLE, ANGLES, "degrees between the rays to the pixel's camera and"),
        bin_table(results, BY_DISTANCE, DISTANCES, "metres between the pixel's camera and"),
    ]


def values(results: Sequence[SceneResult], clip: str, name: str, measure: str) -> np.ndarray:
    """One value per scene, NaN where a scene has none."""
    return np.array([result.figures.get((clip, name, measure), np.nan) for result in results])


def mean_table(results: Sequence[SceneResult], clip: str, title: str) -> Table:
    """Means over scenes, of scenes that have the pixels in question."""
    keys = [key for key in results[0].figures if key[0] == clip]
    measures = list(dict.fromkeys(key[2] for key in keys))
    names = list(dict.fromkeys(key[1] for key in keys))

    def cell(name: str, measure: str) -> str:
        found = values(results, clip, name, measure)
        found = found[np.isfinite(found)]
        return f"{found.mean():.3f}" if len(found) else ""

    rows = [(name, *(cell(name, measure) for measure in measures)) for name in names]
    caption = (
        f"{title}, mean over {len(results)} scenes; frame 0, which is given, does not count. "
        "*Warped*: pixels on which the memory's warp falls. *Never seen*: those whose surface no "
        "stored view sees, by true geometry. *Flicker*: mean change of colour at tracked surface "
        "points (0 .. 2). *To first clip*: over revisited pixels, against what the alternative's "
        "own first clip showed there."
    )
    return Table(("alternative", *measures), rows, caption)


def difference_table(
    results: Sequence[SceneResult], ours: str, names: Sequence[str] | None
) -> Table:
    """Ours minus the others on the revisiting clip, paired by scene."""
    others = names or [
        key[1] for key in results[0].figures if key[0] == "revisit" and key[2] == "SSIM"
    ]
    rows = []
    for name in others:
        if name == ours:
            continue
        cells = []
        for measure in MAIN:
            a, b = (values(results, "revisit", x, measure) for x in (ours, name))
            both = np.isfinite(a) & np.isfinite(b)
            cells.append(
                format_difference(paired_difference(a[both], b[both]), 3) if both.sum() > 1 else ""
            )
        rows.append((name, *cells))
    caption = f"Paired differences on the clip that revisits, 95 % intervals: {ours}, minus"
    return Table(("", *MAIN), rows, caption)


def pooled(results: Sequence[SceneResult], kind: str, name: str) -> BinnedError:
    """The bins of all scenes together."""
    found = [result.bins[kind, name] for result in results]
    return BinnedError(
        np.sum([x.total for x in found], axis=0), np.sum([x.pixels for x in found], axis=0)
    )


def bin_table(
    results: Sequence[SceneResult], kind: str, edges: Sequence[float], words: str
) -> Table:
    """PSNR by bin, pixels of both clips of all scenes together."""
    names = [name for which, name in results[0].bins if which == kind and name != TRUTH]
    pixels = pooled(results, kind, HARD).pixels
    bins = [f"{a:g} .. {b:g}" for a, b in itertools.pairwise(edges)]
    rows: list[tuple[str, ...]] = [("pixels", *(f"{n:,}" for n in pixels))]
    for name in names:
        psnr = pooled(results, kind, name).psnr()
        rows.append((name, *("" if np.isnan(x) else f"{x:.2f}" for x in psnr)))
    caption = (
        f"PSNR, dB, by {words} the nearest stored view that sees the surface; both clips, all "
        "scenes together."
    )
    return Table((kind, *bins), rows, caption)


def cost_tables(results: Sequence[SceneResult]) -> list[Table | str]:
    """Processor seconds of every step, and bytes of the memories, means over scenes."""
    # The first scene compiles.
    warm = results[1:] or results
    names = list(results[0].costs)
    seconds = [f"{np.mean([result.costs[name] for result in warm]):.2f}" for name in names]
    stages = [
        (name, f"{np.mean([result.stages[name] for result in warm]):.2f}")
        for name in results[0].stages
    ]
    held = [
        (name, f"{np.mean([result.held[name] for result in results]):,.0f}")
        for name in results[0].held
    ]
    return [
        Table(
            ("a clip of 9 frames", "processor s"),
            [*zip(names, seconds, strict=True), *stages],
            "Denoising, decoding and depth by alternative; reading and writing the memories.",
        ),
        Table(("held after both clips", "mean"), held, "What the memory of the first row holds."),
    ]


SHOWN = (HARD, GLOBAL_ONLY, NO_MEMORY, REPROJECTION, AUTOENCODER)
"""Alternatives that figures draw."""
