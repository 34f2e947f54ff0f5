"""Distil a trained memory model into one of few steps: distribution matching (DMD, DMD2).

    python experiments/build_official_cache.py --clips videos --model TEACHER --base BASE \
        --depth-model DEPTH --out runs/clips
    python experiments/distill_official.py --cache runs/clips --model TEACHER --base BASE \
        --out runs/few --steps 1000 --batch 32 --mesh fsdp=8,model=8
    worldstereo generate photo.png --camera left --model runs/few/worldstereo --base BASE ...

The teacher is a model of some 40 steps with guidance, such as the published `worldstereo-memory` or
what `train_official.py` made; the student comes out in the layout of `worldstereo-memory-dmd`: its
config.json lets `worldstereo generate` sample it in `--dmd-steps` steps without guidance. Of the
prepared clips the conditions and texts are read, the true latents not. What is learned stands in
`worldstereo_jax/training/distill.py`; as published, the control branch is frozen, the fake score is
updated 5 times for each update of the student, the gradient runs through the last step of a rollout
of random length, and there is no GAN term.

Learning rates, optimiser and the noise levels at which scores are compared are not published; the
defaults are choices of this project, not tuned at full size. Both networks learn at one rate, as in
DMD2, where the updates alone set their pace; momentum is off (b1 = 0), since both follow a target
that moves; levels are shifted as the teacher's training (3.0), for there its predictions are good.

Student and fake score are kept in float32 where they train, with two moments each and the student's
average; the teacher, and the control branch that all three share, in `--dtype` alone. Seeded and
resumable (`--resume`; SIGTERM saves first). On several hosts start the same command on each with
`--distributed`, `--out` on shared storage.

Record: see the docstring of `distill_toy.py`, which runs this command at toy size; it has not been
run at full size. What it keeps on each chip of a pod is in RESULTS.md, from `aot_distill_14b.py`.
"""

import argparse
import functools
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import REMAT_POLICIES
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.model_configs import DMDSettings
from worldstereo_jax.interop.official_export import export_official
from worldstereo_jax.interop.pretrained import OpenedModel, from_pretrained, open_model
from worldstereo_jax.interop.weights import count_parameters
from worldstereo_jax.models.placement import one_device
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.training.clip_cache import ClipCache, cached_batches, read_index
from worldstereo_jax.training.curves import draw_curves
from worldstereo_jax.training.distill_state import (
    FAKE_UPDATES,
    DistillState,
    Optimizers,
    init_distill_state,
    make_distill_step,
)
from worldstereo_jax.training.loop import train
from worldstereo_jax.training.official_distill import (
    GUIDANCE,
    distilled_parameters,
    official_networks,
    read_told,
)
from worldstereo_jax.training.official_fields import check_recipe, read_negative_text
from worldstereo_jax.training.official_objective import DROP_REFERENCES, SHIFT, in_compute_type
from worldstereo_jax.training.run_folder import open_folder, record_run
from worldstereo_jax.training.sharding import join_hosts, open_layout
from worldstereo_jax.training.state import join, split

FIXED = ("model", "guidance", "dmd_steps", "dmd_start", "gen_shift", "dtype")
"""Options that a resumed run may not change."""
EXPORT = "worldstereo"
"""Folder of the distilled checkpoint within --out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the distillation."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    few = DMDSettings()
    add("--cache", type=Path, nargs="+", required=True, help="prepared clips")
    add("--model", required=True, help="folder or hub id of the teacher")
    add("--base", help="of its base model (default: the one it names)")
    add("--out", type=Path, required=True)
    add("--steps", type=int, required=True, help="updates of the student")
    add("--batch", type=int, default=8, help="clips of an update, over all devices")
    add("--fake-updates", type=int, default=FAKE_UPDATES, help="for each of the student")
    add("--guidance", type=float, default=GUIDANCE, help="the teacher's; 1 for none")
    add("--dmd-steps", type=int, default=few.steps, help="steps that the student samples in")
    add("--dmd-start", type=float, default=few.start, help="timestep of the last, before the shift")
    add("--gen-shift", type=float, default=few.shift, help="flow shift of the student's steps")
    add("--shift", type=float, default=SHIFT, help="flow shift of the levels of comparison")
    add("--learning-rate", type=float, default=2e-6, help="of the student")
    add("--fake-learning-rate", type=float, help="of the fake score (default: the student's)")
    add("--warmup", type=int, default=20, help="student's updates until its rate is reached")
    add("--drop-references", type=float, default=DROP_REFERENCES)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="to compute in")
    add("--export-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--remat", choices=REMAT_POLICIES, default="full", help="what layers keep")
    add("--mesh", help="such as data=2,fsdp=-1,model=4 (default: one device)")
    add(
        "--distributed", nargs="*", metavar="HOST", help="one of several hosts; where jax does not "
        "find them out, then the first one's address:port, how many, and this one's number from 0",
    )  # fmt: skip
    add("--seed", type=int, default=0)
    add("--save-every", type=int, default=100)
    add("--profile", type=int, default=0, metavar="STEPS", help="record so many in OUT/profile")
    add("--log-every", type=int, default=10)
    add("--resume", action="store_true")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except InputError as error:
        parser.error(str(error))


def run(options: argparse.Namespace) -> None:
    """Distil as the options say."""
    if options.distributed is not None:
        join_hosts(options.distributed)
    layout = open_layout(options.mesh)
    open_folder(options.out, resume=options.resume)
    if options.fake_updates < 1:
        raise InputError(f"--fake-updates is {options.fake_updates}, expected at least 1")
    few = DMDSettings(options.dmd_steps, options.dmd_start, shift=options.gen_shift)
    schedule = few.schedule()
    opened = _open_teacher(options)
    caches = [ClipCache(folder) for folder in options.cache]
    recipe = read_index(options.cache[0])["recipe"]
    for folder in options.cache:
        check_recipe(read_index(folder)["recipe"], opened.config, str(folder))
    negative = read_negative_text(options.cache[0])
    # The clips of all updates of a step at once; each update takes whole shares of every device.
    clips = options.batch * (options.fake_updates + 1)
    rows = None
    if layout is not None:
        layout.rows(options.batch)
        rows = layout.rows(clips)

    record_run(options.out, vars(options), fixed=FIXED, resume=options.resume)
    loaded = from_pretrained(
        options.model,
        base=options.base,
        dtype="float32",
        compute_dtype=options.dtype,
        placement=one_device if layout is None else layout.place_parameter,
        remat=options.remat,
    )
    config = loaded.config
    chosen = distilled_parameters(loaded.params)
    trained = split(loaded.params, chosen)[0]
    teacher = in_compute_type(loaded.params, config.compute_dtype)
    total = count_parameters(loaded.params)
    del loaded
    model = WorldStereo(config) if layout is None else layout.model(config)
    if jax.process_index() == 0:
        print(f"{count_parameters(trained):,} of {total:,} parameters train")

    optimizers = _optimizers(options)
    key = jax.random.key(options.seed)

    def init(trained: PyTree, key: jax.Array) -> DistillState:
        return init_distill_state(trained, optimizers, key)

    if layout is None:
        # Bound to its device as what a step returns is: else the second step compiles again.
        state, places = jax.device_put(init(trained, key), jax.devices()[0]), None
    else:
        state = layout.init(init, trained, key)
        places = layout.kept(state, state.student)
    del trained
    step = make_distill_step(
        official_networks(model, schedule, negative, guidance=options.guidance),
        optimizers,
        functools.partial(
            read_told,
            drop_references=options.drop_references,
            **{name: recipe[name] for name in ("height", "width", "ray_x_offset")},
        ),
        fake_updates=options.fake_updates,
        shift=options.shift,
        places=places,
    )
    state = train(
        state,
        lambda state, batch: step(state, teacher, batch),
        cached_batches(caches, clips, options.seed, rows=rows),
        steps=options.steps,
        out=options.out,
        resume=options.resume,
        save_every=options.save_every,
        log_every=options.log_every,
        layout=layout,
        profile_steps=options.profile,
    )
    export_official(
        options.out / EXPORT,
        join(teacher, state.ema),
        config,
        {**opened.values, **few.to_official()},
        dtype=jnp.dtype(options.export_dtype),
    )
    if jax.process_index() == 0:
        draw_curves(options.out / "log.jsonl", options.out / "curves.png")
        print(options.out / EXPORT)


def _open_teacher(options: argparse.Namespace) -> OpenedModel:
    opened = open_model(options.model, base=options.base)
    if opened.settings is None:
        raise InputError(f"{options.model}: is a plain video model; give a WorldStereo checkpoint")
    if opened.settings.dmd is not None:
        raise InputError(f"{options.model}: is distilled already; give a model of many steps")
    return opened


def _optimizers(options: argparse.Namespace) -> Optimizers:
    """AdamW without momentum behind a clipped gradient, at a constant rate once it is reached."""

    def adamw(rate: float, warmup: int) -> optax.GradientTransformation:
        schedule = optax.join_schedules(
            [optax.linear_schedule(0.0, rate, warmup), optax.constant_schedule(rate)], [warmup]
        )
        return optax.chain(
            optax.clip_by_global_norm(1.0),
            optax.adamw(schedule, b1=0.0, b2=0.999, weight_decay=0.01),
        )

    rate = options.learning_rate
    fake_rate = rate if options.fake_learning_rate is None else options.fake_learning_rate
    return Optimizers(
        adamw(rate, options.warmup), adamw(fake_rate, options.warmup * options.fake_updates)
    )


if __name__ == "__main__":
    main()
