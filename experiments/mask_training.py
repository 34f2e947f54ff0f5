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

Record (2026-11-27, one shared core of an AMD EPYC, 45 minutes with the clips), dB above no
references after 600 steps, with positions beside the target and on the surface: hard 3.5 and 5.0,
soft 3.4 and 5.3, frame pairs 2.2 and 3.9, every reference 2.2 and 4.5. A mask that leaves what
corresponds helps most where positions do not say what does: they are two ways of telling the same,
and together they tell it best. Without a mask a third of the attention to references finds the
same surface by itself; a tenth would by chance. One run each, from another start for the longer
ones.

Writes a section into experiments/RESULTS.md and a figure into experiments/plots.
"""

import argparse
import dataclasses
import functools
import json
import time
import typing
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from experiments.mask_clips import CopyClip, load_clips, seen_colours
from experiments.mask_model import (
    CONFIG,
    JOINT,
    LONGER,
    SCALE,
    TOKENS,
    VARIANTS,
    Variant,
    attention_on_surface,
    block_mask,
    predict,
)
from experiments.mask_tables import EVALUATE_EVERY, Found, draw_curves, longer_table, tables
from worldstereo_jax.array_types import Array, Float
from worldstereo_jax.evaluation.report import write_section
from worldstereo_jax.files import atomic_write
from worldstereo_jax.models.worldstereo import init_params
from worldstereo_jax.training.batches import SeededBatches
from worldstereo_jax.training.loop import read_log, train
from worldstereo_jax.training.state import TrainState, init_train_state, make_train_step

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "Trained under each mask"
WHAT = (
    "One small model (147,276 parameters, two layers) trained under each way of attending to "
    "references, from the same start, on the same clips in the same order. It has no warps, no "
    "entries and no control branch: of the view to make it is given a render of points with one "
    "colour a token, so that whatever is finer comes from three other views by attention alone. "
    "A picture is 12 x 16 colours and a token 2 x 2 of them; geometry is true; the model predicts "
    "in one step, without noise. *Beside the target* are the official rotary positions of "
    "references; *on the surface*, tokens that show the same place have the same position "
    "(`reference_positions` of the model's config). This shows what the masks do to learning at "
    "this size, not what the shipped weights or the 14B would become."
)
HELD_SCENES, HELD_CLIPS = 16, 8
BATCH, SCORED = 8, 16
LEARNING_RATE = 3e-3


def take(clips: CopyClip, index: typing.Any) -> CopyClip:
    """Some clips of a stack."""
    return jax.tree.map(lambda x: x[index], clips)


def recoloured(clips: CopyClip, turn: Float[Array, "b 3 3"]) -> CopyClip:
    """The same clips with their colours multiplied by a matrix each."""

    def turned(x: Array) -> Array:
        return jnp.einsum("b...c,bcd->b...d", x, turn)

    return dataclasses.replace(
        clips,
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
    variant: Variant, clips: CopyClip, held: CopyClip, out: Path, steps: int, seed: int
) -> Found:
    """Train and score one variant, or read what an earlier call found."""
    result = out / "result.json"
    if result.exists():
        return json.loads(result.read_text())
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, LEARNING_RATE, min(100, steps // 10), steps, 1e-5
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01)
    )
    init_key, train_key = jax.random.split(jax.random.key(seed))
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
        SeededBatches(draw, seed),
        steps=steps,
        out=out,
        save_every=steps,
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


def main() -> None:
    """Train what is not trained yet, and write the section and the figure."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of clips and runs")
    parser.add_argument("--scenes", type=int, default=150)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--long", type=int, default=1000, help="steps of the longer runs")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    held = load_clips(options.out / "held_out", range(HELD_SCENES), "held_out", HELD_CLIPS)
    clips = load_clips(options.out / "train", range(options.scenes), "train", HELD_CLIPS)

    def trained(variants: Sequence[Variant], steps: int, seed: int) -> dict[Variant, Found]:
        found = {}
        for variant in variants:
            folder = (
                options.out
                / f"steps_{steps}_seed_{seed}"
                / variant.name.replace(" ", "_").replace(",", "")
            )
            found[variant] = run(variant, clips, held, folder, steps, seed)
            print(steps, variant.name, found[variant]["curve"][-1], flush=True)
        return found

    results = trained(VARIANTS, options.steps, options.seed)
    longer = trained(LONGER, options.long, options.seed + 1)
    anchor = float(anchor_psnr(held).mean())
    draw_curves(options.results.parent / "plots" / "mask_training.png", (results, longer), anchor)
    parts = [*tables(results, anchor, HELD_CLIPS), longer_table(results, longer)]
    for part in parts:
        print(part if isinstance(part, str) else part.markdown(), end="\n\n")
    write_section(
        options.results,
        TITLE,
        [WHAT, *parts, "![learning curves under each mask](plots/mask_training.png)"],
        command=f"python -m experiments.mask_training --out runs/masks --scenes {options.scenes} "
        f"--steps {options.steps} --long {options.long} --seed {options.seed}",
    )


if __name__ == "__main__":
    main()
