"""What a model trained under each mask learns to copy: same start, data, seeds and steps.

    python -m experiments.mask_training --out runs/masks

The tables of `experiments.alternatives` swap the mask under weights that were trained with one.
Here a small model is trained under each: every reference (2.0), frame pairs (1.0), correspondence
hard and soft, and no references; the four with references once with the official positions of
their tokens and once with the places of the surfaces they show (`References.place`). Nothing but
attention to references tells of anything finer than a token: see `mask_clips` and `mask_model`.

Colours are turned about grey at random in training, so that what surfaces look like cannot be
learned by heart. What counts is the PSNR of held-out scenes' target tokens that some reference
shows. Runs that are complete in --out are not run again.

Writes a section into experiments/RESULTS.md and a figure into experiments/plots.
"""

import argparse
import functools
import json
import time
import typing
from collections.abc import Mapping
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.mask_clips import CopyClip, load_clips, seen_colours
from experiments.mask_model import (
    BESIDE,
    CONFIG,
    JOINT,
    NO_REFERENCES,
    ON_SURFACE,
    SCALE,
    TOKENS,
    Variant,
    attention_on_surface,
    block_mask,
    predict,
)
from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.evaluation.attention_patterns import EVERY, HARD, PAIRS, SOFT
from worldstereo_jax.evaluation.paired import paired_difference
from worldstereo_jax.evaluation.report import Table, format_difference, write_section
from worldstereo_jax.files import atomic_write
from worldstereo_jax.models.worldstereo import init_params
from worldstereo_jax.training.batches import SeededBatches
from worldstereo_jax.training.loop import read_log, train
from worldstereo_jax.training.state import TrainState, init_train_state, make_train_step

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "Trained under each mask"
VARIANTS = (
    *(Variant(pattern, at) for pattern in (HARD, EVERY) for at in (ON_SURFACE, BESIDE)),
    Variant(NO_REFERENCES),
    *(Variant(pattern, at) for pattern in (PAIRS, SOFT) for at in (ON_SURFACE, BESIDE)),
)
HELD_SCENES, HELD_CLIPS = 16, 8
BATCH, SCORED = 8, 16
EVALUATE_EVERY = 100


def take(clips: CopyClip, index: typing.Any) -> CopyClip:
    """Some clips of a stack."""
    return jax.tree.map(lambda x: x[index], clips)


def recoloured(clips: CopyClip, turn: Float[Array, "b 3 3"]) -> CopyClip:
    """The same clips with their colours multiplied by a matrix each."""

    def turned(x: Array) -> Array:
        return jnp.einsum("b...c,bcd->b...d", x, turn)

    return clips.replace(
        target=turned(clips.target),
        anchor=turned(clips.anchor),
        references=turned(clips.references),
    )


def copy_loss(variant: Variant, params: typing.Any, clips: CopyClip) -> Float[Array, ""]:
    """Mean square of what the model lacks of the truth, in units of colours' variance."""
    made, _ = predict(variant, params, clips)
    return SCALE**2 * jnp.mean(jnp.square(made - clips.target))


def square_errors(
    made: Float[Array, "b h w 3"], clips: CopyClip
) -> tuple[Float[Array, "b"], Float[Array, "b"]]:
    """Sums over the seen colours of a clip: of the mean square over channels, and of 1."""
    seen = seen_colours(clips)
    error = jnp.square(jnp.clip(made, -1, 1) - clips.target).mean(-1)
    return (error * seen).sum((1, 2)), seen.sum((1, 2))


def decibels(error: typing.Any, count: typing.Any) -> np.ndarray:
    """PSNR in dB of colours in [-1, 1], one value per scene: its clips together."""
    error, count = (np.asarray(x).reshape(-1, HELD_CLIPS).sum(1) for x in (error, count))
    return 10 * np.log10(4.0 * count / error)


class Judge:
    """Scores a variant on held-out clips, and how much processor time its training took so far."""

    def __init__(self, variant: Variant, held: CopyClip) -> None:
        self._errors = jax.jit(
            lambda params, clips: square_errors(predict(variant, params, clips)[0], clips)
        )
        self._held = held
        self._started: float | None = None

    def scenes(self, params: typing.Any) -> np.ndarray:
        """PSNR of every scene."""
        parts = [
            self._errors(params, take(self._held, slice(i, i + SCORED)))
            for i in range(0, len(self._held.target), SCORED)
        ]
        return decibels(*(np.concatenate(x) for x in zip(*parts, strict=True)))

    def __call__(self, state: TrainState) -> dict[str, float]:
        """For the training loop; time between calls counts, from the end of the first one on."""
        jax.block_until_ready(state)
        now = time.process_time()
        spent = 0.0 if self._started is None else now - self._started
        figures = {"psnr": float(self.scenes(state.params).mean()), "processor_s": spent}
        self._started = time.process_time() - spent
        return figures


def run(
    variant: Variant, clips: CopyClip, held: CopyClip, out: Path, options: argparse.Namespace
) -> dict[str, typing.Any]:
    """Train and score one variant, or read what an earlier call found."""
    result = out / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, min(100, options.steps // 10), options.steps, 1e-5
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01)
    )
    init_key, train_key = jax.random.split(jax.random.key(options.seed))
    state = init_train_state(init_params(CONFIG, init_key), optimizer, train_key, with_ema=False)

    def draw(rng: np.random.Generator) -> tuple[CopyClip, np.ndarray]:
        turns = np.linalg.qr(rng.normal(size=(BATCH, 3, 3)))[0].astype(np.float32)
        return take(clips, rng.integers(len(clips.target), size=BATCH)), turns

    def loss(params: typing.Any, batch: typing.Any, _: Array) -> tuple[Array, dict[str, Array]]:
        return copy_loss(variant, params, recoloured(*batch)), {}

    judge = Judge(variant, held)
    state = train(
        state,
        make_train_step(loss, optimizer),
        SeededBatches(draw, options.seed),
        steps=options.steps,
        out=out,
        save_every=options.steps,
        log_every=EVALUATE_EVERY,
        evaluate=judge,
        evaluate_every=EVALUATE_EVERY,
    )
    few = take(held, slice(0, None, HELD_CLIPS))
    shares = jax.jit(functools.partial(attention_on_surface, variant))(state.params, few)
    found = {
        "psnr": judge.scenes(state.params).tolist(),
        "keys": allowed_keys(variant, few),
        "on_references": float(shares[0]),
        "on_surface": float(shares[1]),
        "curve": [x for x in read_log(out / "log.jsonl") if "psnr" in x],
    }
    with atomic_write(result) as temporary:
        temporary.write_text(json.dumps(found))
    return found


def allowed_keys(variant: Variant, clips: CopyClip) -> float:
    """Reference tokens that a target token may attend to, mean."""
    mask = block_mask(variant, clips)
    if mask is None:
        return 0.0
    allowed = jax.jit(lambda mask: mask.dense_pairs().allowed)(mask)
    own = JOINT - TOKENS
    return float(allowed[..., own:, :own].sum(-1).mean())


def anchor_psnr(held: CopyClip) -> np.ndarray:
    """PSNR of the coarse render alone."""
    return decibels(*jax.jit(square_errors)(held.anchor, held))


def at_time(curve: list[dict[str, float]], seconds: float) -> float:
    """PSNR after so much processor time, between evaluations by straight lines."""
    return float(np.interp(seconds, *([x[n] for x in curve] for n in ("processor_s", "psnr"))))


def tables(
    results: Mapping[Variant, Mapping[str, typing.Any]], anchor: np.ndarray
) -> list[Table | str]:
    """What was reached, and paired differences."""
    seconds = min(
        found["curve"][-1]["processor_s"]
        for variant, found in results.items()
        if variant.pattern != NO_REFERENCES
    )
    steps = next(iter(results.values()))["curve"][-1]["step"]
    rows = [("the coarse render", "0", f"{anchor.mean():.2f}", "", "", "", "", "")]
    for variant, found in results.items():
        curve = {x["step"]: x for x in found["curve"]}
        quarter = curve[steps // 4 // EVALUATE_EVERY * EVALUATE_EVERY]["psnr"]
        per_step = 1000 * found["curve"][-1]["processor_s"] / (steps - EVALUATE_EVERY)
        attends = variant.pattern != NO_REFERENCES
        rows.append(
            (
                variant.name,
                f"{found['keys']:.1f}",
                f"{np.mean(found['psnr']):.2f}",
                f"{quarter:.2f}",
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
        "after a quarter",
        f"after {seconds:.0f} processor s",
        "processor ms a step",
        "attention on references",
        "of it on the same surface",
    )
    caption = (
        "*PSNR*: of the colours of target tokens that some reference shows, mean over "
        f"{len(anchor)} held-out scenes of {HELD_CLIPS} clips. *Keys*: reference tokens that a "
        f"target token may attend to, of {JOINT - TOKENS}. *Processor s*: of training alone, from "
        f"step {EVALUATE_EVERY} on (the steps before hold the compiler). *Same surface*: by the "
        "hard mask, mean over layers and heads; a hard mask leaves nothing else."
    )
    differences = []
    for at in (ON_SURFACE, BESIDE):
        ours = Variant(HARD, at)
        for variant, found in results.items():
            if variant != ours and variant.positions in (at, Variant(NO_REFERENCES).positions):
                if variant.positions == at or variant.pattern == NO_REFERENCES:
                    pair = paired_difference(
                        np.array(results[ours]["psnr"]), np.array(found["psnr"])
                    )
                    differences.append((ours.name, variant.name, format_difference(pair)))
    pair = paired_difference(
        *(np.array(results[Variant(HARD, at)]["psnr"]) for at in (ON_SURFACE, BESIDE))
    )
    differences.append(
        (Variant(HARD, ON_SURFACE).name, Variant(HARD, BESIDE).name, format_difference(pair))
    )
    return [
        Table(columns, rows, caption),
        Table(
            ("trained under", "minus", "PSNR dB"),
            differences,
            "Paired differences over held-out scenes, 95 % intervals; one training run each.",
        ),
    ]


def draw(results: Mapping[Variant, Mapping[str, typing.Any]], anchor: float, path: Path) -> None:
    """Learning curves by steps, one panel for each kind of positions."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 2, sharey=True)
    colours = {HARD: "C0", SOFT: "C2", PAIRS: "C1", EVERY: "C3", NO_REFERENCES: "0.5"}
    for axis, at in zip(axes, (BESIDE, ON_SURFACE), strict=True):
        for variant, found in results.items():
            if variant.positions == at or variant.pattern == NO_REFERENCES:
                curve = found["curve"]
                axis.plot(
                    [x["step"] for x in curve],
                    [x["psnr"] for x in curve],
                    label=variant.pattern,
                    color=colours[variant.pattern],
                )
        axis.axhline(anchor, color="k", linestyle=":", linewidth=1, label="the coarse render")
        axis.set_title(f"reference tokens {at}", fontsize=10)
        axis.set_xlabel("training steps")
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("PSNR of seen tokens, held-out scenes, dB")
    axes[1].legend(fontsize=8)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")


def main() -> None:
    """Train what is not trained yet, and write the section and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of clips and runs")
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--learning-rate", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    held = load_clips(options.out / "held_out", range(HELD_SCENES), "held_out", HELD_CLIPS)
    clips = load_clips(options.out / "train", range(options.scenes), "train", HELD_CLIPS)
    results = {}
    for variant in VARIANTS:
        folder = options.out / variant.name.replace(" ", "_").replace(",", "")
        results[variant] = run(variant, clips, held, folder, options)
        print(variant.name, results[variant]["curve"][-1], flush=True)
    anchor = anchor_psnr(held)
    parts: list[Table | str] = [*tables(results, anchor)]
    draw(results, float(anchor.mean()), options.results.parent / "plots" / "mask_training.png")
    for part in parts:
        print(part if isinstance(part, str) else part.markdown(), end="\n\n")
    write_section(
        options.results,
        TITLE,
        [*parts, "![learning curves under each mask](plots/mask_training.png)"],
        command=f"python -m experiments.mask_training --out runs/masks --scenes {options.scenes} "
        f"--steps {options.steps} --seed {options.seed}",
    )


if __name__ == "__main__":
    main()
