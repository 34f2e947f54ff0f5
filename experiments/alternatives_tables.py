"""The tables of `alternatives`."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np

from experiments.alternatives_scenes import (
    ANGLES,
    AUTOENCODER,
    BACK_PROJECTED,
    BY_ANGLE,
    BY_DISTANCE,
    DISTANCES,
    FUSED,
    REPROJECTION,
    TAUS,
    TO_FIRST,
    TO_TRUTH,
    TRUTH,
    SceneResult,
)
from worldstereo_jax.evaluation.alternatives import GLOBAL_ONLY, NO_MEMORY, WITHOUT_WARPS
from worldstereo_jax.evaluation.attention_patterns import HARD
from worldstereo_jax.evaluation.clip_scores import FLICKER, MASKED_PSNR, UNSEEN_PSNR
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.report import Table, format_difference
from worldstereo_jax.evaluation.view_distance import BinnedError

MAIN = ("PSNR dB", "SSIM", MASKED_PSNR, UNSEEN_PSNR, FLICKER, TO_TRUTH, TO_FIRST)


def scene_tables(results: Sequence[SceneResult]) -> list[Table | str]:
    """Whole frames, masked forms, differences, angles and distances, reconstruction."""
    hard_alone = f"{HARD}, no warps"
    return [
        mean_table(results, "first", "The clip from one image"),
        mean_table(results, "revisit", "The clip that revisits"),
        difference_table(results, HARD, None),
        difference_table(results, hard_alone, (*WITHOUT_WARPS, GLOBAL_ONLY)),
        bin_table(results, BY_ANGLE, ANGLES, "degrees between the rays to the pixel's camera and"),
        bin_table(results, BY_DISTANCE, DISTANCES, "metres between the pixel's camera and"),
        *cloud_tables(results),
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


def cloud_tables(results: Sequence[SceneResult]) -> list[Table]:
    """Reconstruction with and without the memory."""
    rows = []
    for name, way in results[0].clouds:
        scores = [result.clouds[name, way][0] for result in results]
        floats = [result.clouds[name, way][1] for result in results]
        cells = [
            f"{np.mean([getattr(score, field)[i] for score in scores]):.3f}"
            for i in range(len(TAUS))
            for field in ("precision", "recall", "f1")
        ]
        area = f"{np.mean([score.auc for score in scores]):.3f}"
        label = "with memory" if name == HARD else name
        rows.append((f"{label}, {way}", *cells, area, f"{100 * np.nanmean(floats):.1f} %"))
    heads = [f"{word} {tau:g} m" for tau in TAUS for word in ("precision", "recall", "F1")]
    caption = (
        f"Reconstruction from the stored frames of both clips, tau = "
        f"{', '.join(f'{tau:g}' for tau in TAUS)} m, area under F1 up to {max(TAUS):g} m, and the "
        "share of points in free space (floaters). Clouds and truth have one point per cube of "
        "2.5 cm. Without memory the depth network's estimate takes the first frame's scale."
    )
    cloud = Table(("cloud", *heads, "area", "floaters"), rows, caption)

    def column(key: tuple[str, str], read: Callable) -> np.ndarray:
        return np.array([read(result.clouds[key]) for result in results])

    pairs = []
    ours = (HARD, FUSED)
    for other in ((HARD, BACK_PROJECTED), (NO_MEMORY, FUSED), (NO_MEMORY, BACK_PROJECTED)):
        cells = []
        for read in (lambda x: x[0].f1[1], lambda x: x[0].auc, lambda x: x[1]):
            a, b = column(ours, read), column(other, read)
            cells.append(format_difference(paired_difference(a, b), 3))
        label = "with memory" if other[0] == HARD else other[0]
        pairs.append((f"{label}, {other[1]}", *cells))
    heads = ("", f"F1 {TAUS[1]:g} m", "area", "floaters")
    return [cloud, Table(heads, pairs, "With memory, fused entries, minus:")]


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
