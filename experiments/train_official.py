"""Train an official model on prepared clips, from a published checkpoint to one of the same form.

    python experiments/build_official_cache.py --clips videos --model CKPT --base BASE \
        --depth-model DEPTH --out runs/clips
    python experiments/train_official.py --cache runs/clips --model CKPT --base BASE \
        --out runs/memory --stage memory --steps 6000 --batch 32 --accumulate 4 \
        --mesh fsdp=8,model=8
    worldstereo generate photo.png --model runs/memory/worldstereo --base BASE ...

Stages as published: "camera" trains the control branch over the frozen video model, "keyframes"
all but the backbone's cross-attention and feed-forward parts, "memory" all but cross-attention.
"stereo" is this project's own: what reads warped views and surface entries of the spatial-stereo
memory (`worldstereo_jax/interop/memory_slots.py`) trains over the frozen rest. A checkpoint without
such modules, as every published one, is given them, zero where they end, so that training starts
from the model itself; `--attach warped entries` gives them to it in the other stages, too, where
they train with the rest. The clips must hold what they read:

    python experiments/build_official_cache.py --clips videos --model CKPT --base BASE \
        --depth-model DEPTH --out runs/clips --stereo
    python experiments/train_official.py --cache runs/clips --model CKPT --base BASE \
        --out runs/stereo --stage stereo --steps 3000 --batch 32 --accumulate 4 \
        --mesh fsdp=8,model=8

In the stages keyframes and memory `--reference-positions surface` gives references' tokens rotary
positions where the surface is that they show (`reference_positions` of the config), instead of the
official ones beside the clip: tokens of the same place then have the same position, and the
attention's maps have to be trained for it. It stands in the trained checkpoint's config.json. In a
small model trained from scratch that was worth 1.5 to 2.3 dB (`mask_training.py`); what it gains an
official model that knows the other positions has not been measured. The clips must hold these
places, too:

    python experiments/build_official_cache.py --clips videos --model CKPT --base BASE \
        --depth-model DEPTH --out runs/clips --reference-positions surface
    python experiments/train_official.py --cache runs/clips --model CKPT --base BASE \
        --out runs/surface --stage memory --reference-positions surface --steps 6000 --batch 32 \
        --accumulate 4 --mesh fsdp=8,model=8

What trains is kept in float32 and brought into `--dtype` once a step; what is frozen is kept in
`--dtype` alone, has no average, and is no part of the checkpoints: `--resume` reads it from the
same `--model`. Learning rate, shift of the noise levels, weight decay and how often text and views
are dropped are not published; the defaults are choices of this project, not tuned at full size.

Or instead of a stage, `--lora RANK`: adapters of the attention's linear maps (`--lora-modules query
key value out ffn` for the feed-forward parts, too) train beside the model, which is kept in
`--dtype`, or with `--weights int8` in 8 bits, so that it fits a small machine:

    python experiments/train_official.py --cache runs/clips --model CKPT --base BASE \
        --out runs/lora --lora 16 --steps 2000 --batch 4 --mesh fsdp=-1
    worldstereo generate photo.png --model CKPT --base BASE \
        --lora runs/lora/pytorch_lora_weights.safetensors ...

Seeded and resumable (`--resume`; SIGTERM saves first), also on another mesh or number of hosts;
`run.json` keeps the options. `--held-out CACHE` logs, every `--evaluate-every` steps, the averaged
model's loss on clips that do not train, with the memories and without them. Writes the averaged
weights: of a stage under official names into `--out`/worldstereo, which `worldstereo generate
--model` and the official code read; adapters into a file that diffusers and PEFT read, too, and
`--from-lora` goes on from.
On several hosts start the same command on each with `--distributed`, `--out` on shared storage.
`JAX_COMPILATION_CACHE_DIR` names a folder in which a resumed run finds its compiled step again.

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

There, with other clips of the same making, adapters in the place of a stage:

    python experiments/train_official.py --cache toy/clips --model toy/model --base toy/base \
        --out toy/lora --lora 4 --steps 200 --batch 4 --learning-rate 1e-2 --warmup 10

The loss fell from 3.22 to 1.75; a checkpoint takes 0.3 MB, nearly all of it orbax's own, the file
of adapters 7 kB. `worldstereo generate` made another clip with it than without, and with
`--lora-scale 0` the same to the bit.

And with clips prepared with `--stereo`, the modules of the stage stereo over that frozen model:

    python experiments/train_official.py --cache toy/clips --model toy/model --base toy/base \
        --out toy/stereo --stage stereo --steps 200 --batch 4 --learning-rate 3e-3 --warmup 10

The loss fell from 3.14 (steps 1 to 20) to 1.95 (181 to 200); 0.08 s a step.
"""

import argparse
import functools
import re
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import optax

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.config import REFERENCE_POSITIONS, REMAT_POLICIES, ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.lora_files import FILE, read_adapters, write_adapters
from worldstereo_jax.interop.memory_slots import (
    attach_memory,
    read_widths,
    slot_tensors,
    slot_widths,
)
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.interop.official_export import export_official
from worldstereo_jax.interop.pretrained import OpenedModel, from_pretrained, open_model
from worldstereo_jax.interop.weights import count_parameters
from worldstereo_jax.models.placement import one_device
from worldstereo_jax.models.quantised import KINDS, quantised_model
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.training.batches import part_of
from worldstereo_jax.training.clip_cache import ClipCache, cached_batches, read_index
from worldstereo_jax.training.curves import draw_curves
from worldstereo_jax.training.held_out import HeldOutClips, held_out_losses, make_evaluation
from worldstereo_jax.training.loop import train
from worldstereo_jax.training.lora import ATTENTION, LoraConfig, init_adapters, scaled
from worldstereo_jax.training.official_fields import check_recipe, from_fields, read_null_text
from worldstereo_jax.training.official_objective import (
    DROP_REFERENCES,
    DROP_TEXT,
    SHIFT,
    STAGES,
    in_compute_type,
    official_loss,
    stage_parameters,
)
from worldstereo_jax.training.run_folder import open_folder, record_run
from worldstereo_jax.training.sharding import TrainLayout, join_hosts, open_layout
from worldstereo_jax.training.state import (
    TrainState,
    averaged,
    init_train_state,
    join,
    make_train_step,
    split,
)

FIXED = (
    "model", "stage", "attach", "reference_positions", "lora", "lora_alpha", "lora_modules",
    "weights", "dtype",
)  # fmt: skip
"""Options that a resumed run may not change: checkpoints hold what trains, and not what that is."""
SIZES = ("height", "width", "ray_x_offset")
"""Of clips, as their recipe names them."""
POSITIONED = ("keyframes", "memory")
"""Stages in which the attention to references trains, so that it may learn other positions."""
ATTACHED = {"warped": "warped_width", "entries": "entry_width"}
"""What can be attached to a checkpoint, with the name of its width in the config."""
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
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--stage", choices=tuple(STAGES), help="the parameters that train")
    what.add_argument("--lora", type=int, metavar="RANK", help="train adapters of that rank")
    add(
        "--attach", nargs="+", choices=tuple(ATTACHED), metavar="SLOT",
        help="warped, entries or both: give the checkpoint modules that read them (default: in "
        "the stage stereo those that it lacks and the clips are prepared for)",
    )  # fmt: skip
    add(
        "--reference-positions", choices=REFERENCE_POSITIONS, help="rotary positions of "
        "references, for the stages that train attention to them (default: the checkpoint's)",
    )  # fmt: skip
    add("--lora-alpha", type=float, help="they are scaled by it / RANK (default: RANK)")
    add("--lora-modules", nargs="+", default=ATTENTION, help="whose linear layers have them")
    add("--from-lora", type=Path, metavar="FILE", help="adapters to go on from")
    add("--weights", choices=tuple(KINDS), help="beside adapters, keep matrices in 8 bits")
    add("--steps", type=int, required=True)
    add("--batch", type=int, default=8, help="clips of a step, over all devices")
    add("--accumulate", type=int, default=1, help="parts of a batch that are taken one by one")
    add("--held-out", type=Path, nargs="+", metavar="CACHE", help="clips to judge the average by")
    add("--evaluate-every", type=int, default=500, help="steps between two such judgements")
    add("--learning-rate", type=float, help="default: 1e-5, of adapters 1e-4")
    add("--warmup", type=int, default=100, help="steps until that rate is reached")
    add("--shift", type=float, default=SHIFT, help="flow shift of the noise levels")
    add("--drop-text", type=float, default=DROP_TEXT)
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
    add("--save-every", type=int, default=500)
    add("--profile", type=int, default=0, metavar="STEPS", help="record so many in OUT/profile")
    add("--log-every", type=int, default=20)
    add("--resume", action="store_true")
    options = parser.parse_args(arguments)
    try:
        run(options)
    except InputError as error:
        parser.error(str(error))


class Parts(typing.NamedTuple):
    """A model taken apart for training.

    Attributes:
        model: the transformer.
        trained: what the state holds, float32.
        frozen: the rest of its parameters, in the form in which it computes with them.
        applied: what trains, as it is put beside the rest.
        write: writes what was trained below a folder, and returns where; on several hosts all
            call it.
    """

    model: WorldStereo
    trained: PyTree
    frozen: PyTree
    applied: Callable[[PyTree], PyTree]
    write: Callable[[Path, PyTree], Path]


def run(options: argparse.Namespace) -> None:
    """Train as the options say."""
    if options.distributed is not None:
        join_hosts(options.distributed)
    layout = open_layout(options.mesh)
    open_folder(options.out, resume=options.resume)
    opened = open_model(options.model, base=options.base)
    if opened.settings is None:
        raise InputError(f"{options.model}: is a plain video model; give a WorldStereo checkpoint")
    positions = chosen_positions(options)
    recipe = read_index(options.cache[0])["recipe"]
    widths = attached_widths(options, opened.config, recipe)
    config = opened.config.replace(**widths, **positions)
    caches = opened_caches(options.cache, config, recipe)
    null_text = read_null_text(options.cache[0])
    rows = batch_rows(options, layout)
    held_out = None
    if options.held_out is not None:
        others = opened_caches(options.held_out, config, recipe)
        held_out = HeldOutClips(others, options.batch, rows=rows)
    record_run(options.out, vars(options), fixed=FIXED, resume=options.resume)
    sizes = {name: recipe[name] for name in SIZES}
    init_key, key = jax.random.split(jax.random.key(options.seed))
    if options.lora is None:
        parts = stage_parts(options, opened, layout, widths, init_key)
    else:
        parts = adapter_parts(options, opened, layout, init_key)
    model, frozen, applied, write = parts.model, parts.frozen, parts.applied, parts.write

    def whole(trained: PyTree, frozen: PyTree) -> PyTree:
        return join(in_compute_type(applied(trained), model.config.dtype), frozen)

    def loss_fn(trained: PyTree, given: tuple[PyTree, PyTree], key: jax.Array):
        frozen, fields = given
        return official_loss(
            model,
            whole(trained, frozen),
            from_fields(fields, **sizes),
            null_text,
            key,
            shift=options.shift,
            drop_text=options.drop_text,
            drop_references=options.drop_references,
        )

    def losses(given: tuple[PyTree, PyTree], fields: PyTree, key: jax.Array):
        clip = from_fields(fields, **sizes)
        return held_out_losses(model, whole(*given), clip, null_text, key, shift=options.shift)

    evaluate = None
    if held_out is not None:
        place = (lambda batch: batch) if layout is None else layout.batch
        judge = make_evaluation(losses, held_out, jax.random.key(0), place=place)
        evaluate = functools.partial(judged_average, judge=judge, frozen=frozen)

    optimizer = _optimizer(options)
    if jax.process_index() == 0:
        count = count_parameters(parts.trained)
        print(f"{count:,} of {count + count_parameters(frozen):,} parameters train")
        added = slot_tensors(model.config)
        if added:
            kinds = sorted({re.sub(r"\.\d+\.", ".*.", name) for name in added})
            print(f"{len(added)} tensors are in no official checkpoint: {', '.join(kinds)}")
    if layout is None:
        # Bound to its device as what a step returns is: else the second step compiles again.
        state = jax.device_put(init_train_state(parts.trained, optimizer, key), jax.devices()[0])
        places = None
    else:
        state = layout.init_state(parts.trained, optimizer, key)
        places = layout.state(state)
    # The state has its own by now, or these very buffers.
    del parts
    step = make_train_step(
        loss_fn,
        optimizer,
        places=places,
        parts=options.accumulate,
        part=lambda given, number, parts: (given[0], part_of(given[1], number, parts)),
    )
    state = train(
        state,
        lambda state, fields: step(state, (frozen, fields)),
        cached_batches(caches, options.batch, options.seed, rows=rows),
        steps=options.steps,
        out=options.out,
        resume=options.resume,
        save_every=options.save_every,
        log_every=options.log_every,
        evaluate=evaluate,
        evaluate_every=options.evaluate_every,
        layout=layout,
        profile_steps=options.profile,
    )
    written = write(options.out, averaged(state))
    if jax.process_index() == 0:
        draw_curves(options.out / "log.jsonl", options.out / "curves.png")
        print(written)


def judged_average(
    state: TrainState, judge: Callable[[PyTree], dict[str, float]], frozen: PyTree
) -> dict[str, float]:
    """What the averaged parameters make, beside the frozen ones, of held-out clips."""
    return judge((averaged(state), frozen))


def opened_caches(
    folders: Sequence[Path], config: ModelConfig, recipe: Mapping[str, typing.Any]
) -> list[ClipCache]:
    """Caches of clips for a model, all of the sizes of one recipe; InputError for others."""
    for folder in folders:
        given = read_index(folder)["recipe"]
        check_recipe(given, config, str(folder))
        for name in SIZES:
            if given[name] != recipe[name]:
                raise InputError(f"{folder}: {name} is {given[name]}, expected {recipe[name]}")
    return [ClipCache(folder) for folder in folders]


def batch_rows(options: argparse.Namespace, layout: TrainLayout | None) -> tuple[int, ...] | None:
    """Which clips of a batch this host reads; None for all.

    Raises:
        InputError: where devices or parts do not divide the batch.
    """
    if options.accumulate < 1 or options.batch % options.accumulate:
        raise InputError(
            f"--accumulate is {options.accumulate}, expected a divisor of --batch {options.batch}"
        )
    if layout is None:
        if jax.device_count() > 1:
            print(f"one of {jax.device_count()} devices is used; --mesh fsdp=-1 is on all of them")
        return None
    # Each part takes whole shares of every device.
    layout.rows(options.batch // options.accumulate)
    return layout.rows(options.batch)


def attached_widths(
    options: argparse.Namespace, config: ModelConfig, recipe: Mapping[str, typing.Any]
) -> dict[str, int]:
    """The widths of the modules that the checkpoint is to be given, by their names in its config.

    Raises:
        InputError: where the clips do not hold what the modules would read.
    """
    if options.attach is not None:
        if options.lora is not None:
            raise InputError("--attach is for --stage")
        names = [ATTACHED[slot] for slot in options.attach]
    else:
        own = slot_widths(config)
        lacking = [name for name in ATTACHED.values() if name in recipe and name not in own]
        names = lacking if options.stage == "stereo" else []
        if options.stage == "stereo" and not own and not lacking:
            raise InputError(
                f"{options.cache[0]}: its clips hold neither warped views nor entries; build their "
                "cache again with --stereo"
            )
    widths = read_widths()
    return {name: recipe.get(name, widths[name]) for name in names}


def chosen_positions(options: argparse.Namespace) -> dict[str, typing.Any]:
    """The rotary positions of references as a field of the config; empty for the checkpoint's.

    Raises:
        InputError: where the attention that would have to learn them does not train, or where what
            is written cannot say them.
    """
    positions = options.reference_positions
    if positions is None:
        return {}
    if options.lora is not None:
        raise InputError("--reference-positions is for --stage: a file of adapters names none")
    if options.stage not in POSITIONED:
        raise InputError(
            f"--reference-positions: the stage {options.stage} does not train attention to "
            f"references, expected {' or '.join(POSITIONED)}"
        )
    return {"reference_positions": positions}


def stage_parts(
    options: argparse.Namespace,
    opened: OpenedModel,
    layout: TrainLayout | None,
    widths: Mapping[str, int],
    key: jax.Array,
) -> Parts:
    """The model's own parameters, those that train in a stage and the rest.

    `widths`: of the modules that the checkpoint is given first, with the random key `key`.
    """
    for name in ("weights", "from_lora"):
        if getattr(options, name) is not None:
            raise InputError(f"--{name.replace('_', '-')} is for --lora")
    loaded = from_pretrained(
        options.model,
        base=options.base,
        dtype="float32",
        compute_dtype=options.dtype,
        placement=one_device if layout is None else layout.place_parameter,
        remat=options.remat,
        **chosen_positions(options),
    )
    config, params = loaded.config, loaded.params
    if widths:
        place = one_device if layout is None else layout.place_parameter
        config, params = attach_memory(config, params, key, **widths, placement=place)
    trained, rest = split(params, stage_parameters(params, options.stage))
    # A step brings it into that type anyway, and no small update has to survive in it.
    frozen = in_compute_type(rest, config.dtype)

    def write(folder: Path, trained: PyTree) -> Path:
        kind, folder = jnp.dtype(options.export_dtype), folder / EXPORT
        export_official(folder, join(trained, frozen), config, opened.values, dtype=kind)
        return folder

    model = WorldStereo(config) if layout is None else layout.model(config)
    return Parts(model, trained, frozen, lambda trained: trained, write)


def adapter_parts(
    options: argparse.Namespace, opened: OpenedModel, layout: TrainLayout | None, key: jax.Array
) -> Parts:
    """Adapters of the model's layers, and all of its own parameters."""
    alpha = float(options.lora) if options.lora_alpha is None else options.lora_alpha
    lora = LoraConfig(options.lora, alpha, tuple(options.lora_modules))
    adapters = init_adapters(parameter_shapes(opened.config), lora, key)
    if options.from_lora is not None:
        adapters = read_adapters(options.from_lora, adapters, lora, opened.config)
    loaded = from_pretrained(
        options.model,
        base=options.base,
        dtype=options.dtype,
        weights=options.weights,
        placement=one_device if layout is None else layout.place_parameter,
        remat=options.remat,
    )
    config = loaded.config

    def write(folder: Path, adapters: PyTree) -> Path:
        path = folder / FILE
        whole = adapters if layout is None else layout.gather(adapters)
        if jax.process_index() == 0:
            write_adapters(path, whole, lora, config, dtype=options.export_dtype)
        return path

    model = WorldStereo(config) if layout is None else layout.model(config)
    if options.weights is not None:
        model = quantised_model(config, options.weights, model.sharding, model.stream_sharding)
    return Parts(model, adapters, loaded.params, functools.partial(scaled, config=lora), write)


def _optimizer(options: argparse.Namespace) -> optax.GradientTransformation:
    """AdamW behind a clipped gradient, at a constant rate once it is reached."""
    rate = options.learning_rate
    if rate is None:
        rate = 1e-5 if options.lora is None else 1e-4
    warmup = optax.linear_schedule(0.0, rate, options.warmup)
    schedule = optax.join_schedules([warmup, optax.constant_schedule(rate)], [options.warmup])
    return optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=0.01)
    )


if __name__ == "__main__":
    main()
