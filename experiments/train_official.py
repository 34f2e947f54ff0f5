"""Train an official model on prepared clips, from a published checkpoint to one of the same form.

    python experiments/build_official_cache.py --clips videos --model CKPT --base BASE \
        --depth-model DEPTH --out runs/clips
    python experiments/train_official.py --cache runs/clips --model CKPT --base BASE \
        --out runs/memory --stage memory --steps 6000 --batch 32 --mesh data=4,fsdp=16,model=1
    worldstereo generate photo.png --model runs/memory/worldstereo --base BASE ...

Stages as published: "camera" trains the control branch over the frozen video model, "keyframes"
all but the backbone's cross-attention and feed-forward parts, "memory" all but cross-attention.
What trains is kept in float32 and brought into `--dtype` once a step, what is frozen in `--dtype`
alone. Learning rate, shift of the noise levels, weight decay and how often text and views are
dropped are not published; the defaults are choices of this project, not tuned at full size.

Seeded and resumable (`--resume`; SIGTERM saves first). Writes the averaged weights under official
names into `--out`/worldstereo, which `worldstereo generate --model` and the official code read.
On several hosts start the same command on each with `--distributed`, `--out` on shared storage.

Record, 2026-11-27, at toy size alone (32 thousand random parameters in the official layout, clips
of 5 keyframes of 48 x 80 pixels), on one shared core of an AMD EPYC, jax 0.10.2:

    python experiments/build_official_cache.py --procedural 4 --model toy/model --base toy/base \
        --size 48x80 --views 2 --out toy/clips
    python experiments/train_official.py --cache toy/clips --model toy/model --base toy/base \
        --out toy/run --stage memory --steps 200 --batch 4 --learning-rate 3e-3 --warmup 10
    worldstereo generate photo.png --camera left --model toy/run/worldstereo --base toy/base ...

The loss fell from 2.30 (steps 1 to 20) to 0.70 (181 to 200); 0.04 s a step behind 80 s of
compiling; 4 clips were prepared in 45 s, nearly all of it compiling, too; the trained checkpoint
made a clip. That shows that the parts fit each other, not what training at full size gains.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import REMAT_POLICIES
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.official_export import export_official
from worldstereo_jax.interop.pretrained import from_pretrained, open_model
from worldstereo_jax.interop.weights import count_parameters
from worldstereo_jax.models.placement import one_device
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.training.clip_cache import ClipCache, cached_batches, read_index
from worldstereo_jax.training.curves import draw_curves
from worldstereo_jax.training.loop import train
from worldstereo_jax.training.official_fields import check_recipe, from_fields, read_null_text
from worldstereo_jax.training.official_objective import (
    DROP_REFERENCES,
    DROP_TEXT,
    SHIFT,
    STAGES,
    freeze_in,
    in_compute_type,
    official_loss,
    stage_parameters,
)
from worldstereo_jax.training.sharding import TrainLayout, parse_mesh
from worldstereo_jax.training.state import (
    averaged,
    freeze_rest,
    init_train_state,
    make_train_step,
    train_only,
)

EXPORT = "worldstereo"
"""Folder of the trained checkpoint within --out."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--cache", type=Path, nargs="+", required=True, help="prepared clips")
    add("--model", required=True, help="folder or hub id of the checkpoint to start from")
    add("--base", help="of its base model (default: the one it names)")
    add("--out", type=Path, required=True)
    add("--stage", choices=tuple(STAGES), required=True, help="what trains")
    add("--steps", type=int, required=True)
    add("--batch", type=int, default=8, help="clips of a step, over all devices")
    add("--learning-rate", type=float, default=1e-5)
    add("--warmup", type=int, default=100, help="steps until that rate is reached")
    add("--shift", type=float, default=SHIFT, help="flow shift of the noise levels")
    add("--drop-text", type=float, default=DROP_TEXT)
    add("--drop-references", type=float, default=DROP_REFERENCES)
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="to compute in")
    add("--export-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--remat", choices=REMAT_POLICIES, default="full", help="what layers keep")
    add("--mesh", help="such as data=2,fsdp=-1,model=4 (default: one device)")
    add("--distributed", action="store_true", help="one of several hosts")
    add("--seed", type=int, default=0)
    add("--save-every", type=int, default=500)
    add("--log-every", type=int, default=20)
    add("--resume", action="store_true")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except InputError as error:
        parser.error(str(error))


def run(options: argparse.Namespace) -> None:
    """Train as the options say."""
    if options.distributed:
        jax.distributed.initialize()
    opened = open_model(options.model, base=options.base)
    if opened.settings is None:
        raise InputError(f"{options.model}: is a plain video model; give a WorldStereo checkpoint")
    caches = [ClipCache(folder) for folder in options.cache]
    recipe = read_index(options.cache[0])["recipe"]
    for folder in options.cache:
        check_recipe(read_index(folder)["recipe"], opened.config, str(folder))
    null_text = read_null_text(options.cache[0])
    layout = None if options.mesh is None else TrainLayout(parse_mesh(options.mesh))

    loaded = from_pretrained(
        options.model,
        base=options.base,
        dtype="float32",
        compute_dtype=options.dtype,
        placement=one_device if layout is None else layout.place_parameter,
        remat=options.remat,
    )
    config, params = loaded.config, loaded.params
    del loaded
    model = WorldStereo(config) if layout is None else layout.model(config)
    chosen = stage_parameters(params, options.stage)
    params = freeze_in(config.dtype, params, chosen)
    optimizer = train_only(_optimizer(options), chosen)
    sizes = {name: recipe[name] for name in ("height", "width", "ray_x_offset")}

    def loss_fn(params: PyTree, batch: PyTree, key: jax.Array):
        held = in_compute_type(freeze_rest(params, chosen), config.dtype)
        return official_loss(
            model,
            held,
            from_fields(batch, **sizes),
            null_text,
            key,
            shift=options.shift,
            drop_text=options.drop_text,
            drop_references=options.drop_references,
        )

    if jax.process_index() == 0:
        trained = sum(
            np.prod(leaf.shape, dtype=np.int64)
            for leaf, keep in zip(jax.tree.leaves(params), jax.tree.leaves(chosen), strict=True)
            if keep
        )
        print(f"{trained:,} of {count_parameters(params):,} parameters train")
    key = jax.random.key(options.seed)
    if layout is None:
        state, places, rows = init_train_state(params, optimizer, key), None, None
    else:
        state, rows = layout.init_state(params, optimizer, key), layout.rows(options.batch)
        places = layout.state(state)
    # The state has its own by now, or these very buffers.
    del params
    state = train(
        state,
        make_train_step(loss_fn, optimizer, places=places),
        cached_batches(caches, options.batch, options.seed, rows=rows),
        steps=options.steps,
        out=options.out,
        resume=options.resume,
        save_every=options.save_every,
        log_every=options.log_every,
        layout=layout,
    )
    export_official(
        options.out / EXPORT,
        averaged(state, chosen),
        config,
        opened.values,
        dtype=jnp.dtype(options.export_dtype),
    )
    if jax.process_index() == 0:
        draw_curves(options.out / "log.jsonl", options.out / "curves.png")
        print(options.out / EXPORT)


def _optimizer(options: argparse.Namespace) -> optax.GradientTransformation:
    """AdamW behind a clipped gradient, at a constant rate once it is reached."""
    schedule = optax.join_schedules(
        [
            optax.linear_schedule(0.0, options.learning_rate, options.warmup),
            optax.constant_schedule(options.learning_rate),
        ],
        [options.warmup],
    )
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.01)
    )


if __name__ == "__main__":
    main()
