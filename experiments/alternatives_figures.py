"""The figures of `alternatives`: quality by angle, and the same frames made in every way."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image

from experiments.alternatives_scenes import ANGLES, BY_ANGLE, REPROJECTION, TRUTH, SceneResult
from experiments.alternatives_tables import SHOWN, pooled
from worldstereo_jax.evaluation.alternatives import GLOBAL_ONLY, NO_MEMORY
from worldstereo_jax.evaluation.attention_patterns import EVERY, HARD, PAIRS
from worldstereo_jax.evaluation.comparison_sheet import comparison_sheet
from worldstereo_jax.files import atomic_write

STRIP = (TRUTH, HARD, PAIRS, EVERY, REPROJECTION, GLOBAL_ONLY, NO_MEMORY)
_COLOURS = 192


def draw_angles(path: Path, results: Sequence[SceneResult]) -> None:
    """PSNR by the angle to the nearest stored view, a line per alternative."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (above, below) = plt.subplots(
        2, 1, figsize=(7.6, 4.6), height_ratios=(4, 1), sharex=True, layout="constrained"
    )
    place = np.arange(len(ANGLES) - 1)
    for name in SHOWN:
        style = ":" if name == SHOWN[-1] else "-"
        width = 2.4 if name == HARD else 1.4
        psnr = pooled(results, BY_ANGLE, name).psnr()
        above.plot(place, psnr, style, marker="o", markersize=4, linewidth=width, label=name)
    pixels = pooled(results, BY_ANGLE, HARD).pixels
    below.bar(place, 100 * pixels / pixels.sum(), color="0.75")
    above.set(ylabel="PSNR, dB", title="Quality by angle to the nearest stored view")
    above.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))
    above.grid(axis="y", alpha=0.3)
    below.set(ylabel="pixels, %", xlabel="degrees")
    labels = [f"{a:g}-{b:g}" for a, b in itertools.pairwise(ANGLES)]
    below.set_xticks(place, labels)
    for panel in (above, below):
        panel.spines[["top", "right"]].set_visible(False)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)


def draw_strip(path: Path, videos: Mapping[tuple[str, str], np.ndarray]) -> None:
    """Four frames of the clip that revisits, a row per alternative, in a small file."""
    rows = {name: videos["revisit", name] for name in STRIP}
    sheet = Image.fromarray(comparison_sheet(rows, columns=4))
    small = sheet.resize((sheet.width * 7 // 10, sheet.height * 7 // 10), Image.Resampling.LANCZOS)
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        small.quantize(_COLOURS, dither=Image.Dither.NONE).save(temporary, "PNG", optimize=True)
