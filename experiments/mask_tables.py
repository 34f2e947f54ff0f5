"""Tables and learning curves of `mask_training`."""

import typing
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.mask_model import (
    BESIDE,
    JOINT,
    NO_REFERENCES,
    ON_SURFACE,
    TOKENS,
    Variant,
)
from worldstereo_jax.evaluation.attention_patterns import EVERY, HARD, PAIRS, SOFT
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.report import Table, format_difference
from worldstereo_jax.files import atomic_write

Found = dict[str, typing.Any]
"""What a run found: the fields of its result.json."""
EVALUATE_EVERY = 100
"""Steps from one score on held-out scenes to the next."""
COMPARED = (
    *(
        (Variant(HARD, at), other)
        for at in (BESIDE, ON_SURFACE)
        for other in (*(Variant(p, at) for p in (SOFT, PAIRS, EVERY)), Variant(NO_REFERENCES))
    ),
    *((Variant(p, ON_SURFACE), Variant(p, BESIDE)) for p in (HARD, SOFT, PAIRS, EVERY)),
)
"""Variants whose difference is tabled."""


def at_time(curve: list[dict[str, float]], seconds: float) -> float:
    """PSNR after so much processor time, between evaluations by straight lines."""
    times, values = (np.array([x[name] for x in curve]) for name in ("processor_s", "psnr"))
    return float(np.interp(seconds, times, values))


def tables(results: Mapping[Variant, Found], anchor: float, clips: int) -> tuple[Table, Table]:
    """What was reached, and paired differences.

    Args:
        results: of `VARIANTS`.
        anchor: PSNR of the coarse render.
        clips: held-out clips of a scene.
    """
    seconds = min(
        found["curve"][-1]["processor_s"]
        for variant, found in results.items()
        if variant.pattern != NO_REFERENCES
    )
    steps = next(iter(results.values()))["curve"][-1]["step"]
    scenes = len(next(iter(results.values()))["psnr"])
    rows = [("the coarse render", "0", f"{anchor:.2f}", "", "", "", "", "")]
    for variant, found in results.items():
        curve = {x["step"]: x for x in found["curve"]}
        half = curve[steps // 2 // EVALUATE_EVERY * EVALUATE_EVERY]["psnr"]
        per_step = 1000 * found["curve"][-1]["processor_s"] / (steps - EVALUATE_EVERY)
        attends = variant.pattern != NO_REFERENCES
        rows.append(
            (
                variant.name,
                f"{found['keys']:.1f}",
                f"{np.mean(found['psnr']):.2f}",
                f"{half:.2f}",
                f"{at_time(found['curve'], seconds):.2f}" if attends else "",
                f"{per_step:.0f}",
                f"{100 * found['on_references']:.0f} %" if attends else "",
                f"{100 * found['on_surface']:.0f} %" if attends else "",
            )
        )
    columns = (
        "trained under, positions of references",
        "keys",
        f"PSNR dB after {steps} steps",
        "after half",
        f"after {seconds:.0f} processor s",
        "processor ms a step",
        "attention on references",
        "of it on the same surface",
    )
    caption = (
        "*PSNR*: of the colours of target tokens that some reference shows, mean over "
        f"{scenes} held-out scenes of {clips} clips. *Keys*: reference tokens that a "
        f"target token may attend to, of {JOINT - TOKENS}. *Processor s*: of training alone, from "
        f"step {EVALUATE_EVERY} on (the steps before hold the compiler). *Same surface*: by the "
        "hard mask, mean over layers and heads; a hard mask leaves nothing else."
    )
    differences = [
        (one.name, other.name, difference(results[one], results[other])) for one, other in COMPARED
    ]
    return (
        Table(columns, rows, caption),
        Table(
            ("trained under", "minus", "PSNR dB"),
            differences,
            "Paired differences over held-out scenes, 95 % intervals; one training run each.",
        ),
    )


def difference(one: Found, other: Found) -> str:
    """One minus the other over scenes, in words."""
    return format_difference(paired_difference(*(np.array(x["psnr"]) for x in (one, other))))


def longer_table(results: Mapping[Variant, Found], longer: Mapping[Variant, Found]) -> Table:
    """What some variants reach in more steps, and how far correspondence stays ahead."""
    short, long = (next(iter(x.values()))["curve"][-1]["step"] for x in (results, longer))
    rows = [
        (
            variant.name,
            f"{np.mean(results[variant]['psnr']):.2f}",
            f"{np.mean(found['psnr']):.2f}",
            difference(longer[Variant(HARD, variant.positions)], found)
            if variant.pattern != HARD
            else "",
            f"{100 * found['on_surface']:.0f} %",
        )
        for variant, found in longer.items()
    ]
    return Table(
        (
            "trained under, positions of references",
            f"PSNR dB, {short} steps",
            f"{long} steps",
            f"{HARD}, minus this",
            "attention on the same surface",
        ),
        rows,
        "Longer runs from another start, with other batches and a learning rate that falls over "
        "their own length.",
    )


def draw_curves(
    path: Path, runs: tuple[Mapping[Variant, Found], Mapping[Variant, Found]], anchor: float
) -> None:
    """Learning curves by steps, one panel for each kind of positions; the longer runs dashed."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    colours = {HARD: "C0", SOFT: "C2", PAIRS: "C1", EVERY: "C3", NO_REFERENCES: "0.5"}
    for axis, at in zip(axes, (BESIDE, ON_SURFACE), strict=True):
        for results, style in zip(runs, ("-", "--"), strict=True):
            for variant, found in results.items():
                if variant.positions != at and variant.pattern != NO_REFERENCES:
                    continue
                steps, psnr = ([x[name] for x in found["curve"]] for name in ("step", "psnr"))
                label = variant.pattern if style == "-" else None
                axis.plot(steps, psnr, style, color=colours[variant.pattern], label=label)
        axis.axhline(anchor, color="k", linestyle=":", linewidth=1, label="the coarse render")
        axis.set_title(f"reference tokens {at}", fontsize=10)
        axis.set_xlabel("training steps")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR of seen tokens, held-out scenes, dB")
    axes[1].legend(fontsize=8, loc="lower right")
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
