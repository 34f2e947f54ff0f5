"""`worldstereo memory undo`, `prune`, `select`, `merge`, `compress`: one memory in, another out."""

import argparse
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.cli.arguments import check_new, count
from worldstereo_jax.cli.memory_input import (
    A_MEMORY,
    memory_folder,
    open_memory,
    with_room,
)
from worldstereo_jax.cli.outputs import memory_counts, save_world
from worldstereo_jax.cli.run_record import rollout_of_run
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entry_codec import bytes_per_entry, quantise_entries
from worldstereo_jax.memory.entry_folder import entry_fields
from worldstereo_jax.memory.folder import model_of_memory, save_memory
from worldstereo_jax.sampling.world import RolloutConfig, WorldMemory
from worldstereo_jax.sampling.world_edit import (
    forget_last_clip,
    merge_worlds,
    prune_world,
    replay_keyframes,
    select_world,
)


def add_edits(actions) -> None:
    """Add the commands that write a new memory to the subparsers of `worldstereo memory`."""
    undo = _command(
        actions, "undo", "as if the last clip had not been made, from the keyframes before it"
    )
    undo.set_defaults(edit=_undo)
    prune = _command(actions, "prune", "keep the most useful views and entries")
    prune.add_argument("--views", type=count, metavar="N", help="most keyframes to keep")
    prune.add_argument("--entries", type=count, metavar="N", help="most surface entries to keep")
    prune.set_defaults(edit=_prune)
    select = _command(actions, "select", "keep what some views saw, or what lies in a box")
    which = select.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--views",
        type=int,
        nargs="+",
        metavar="V",
        help="as if these keyframes alone had been seen, counted from 0",
    )
    which.add_argument(
        "--box",
        type=float,
        nargs=6,
        metavar=("X0", "Y0", "Z0", "X1", "Y1", "Z1"),
        help="two corners, in the units of the world",
    )
    select.set_defaults(edit=_select)
    merge = _command(actions, "merge", "join it with another memory of the same world frame")
    merge.add_argument("other", **{**A_MEMORY, "metavar": "OTHER", "help": "the other one"})
    merge.set_defaults(edit=_merge)
    compress = _command(
        actions, "compress", "the same with the features of surface entries in few bits"
    )
    compress.add_argument(
        "--bits", type=int, choices=(8, 4), default=8, help="of a feature's channel (default 8)"
    )
    compress.set_defaults(act=_compress)


def _command(actions, name: str, what: str) -> argparse.ArgumentParser:
    parser = actions.add_parser(name, help=what, description=what)
    parser.add_argument("folder", **A_MEMORY)
    parser.add_argument(
        "--out", type=Path, required=True, metavar="NEW", help="where to write the new memory"
    )
    parser.set_defaults(act=_edit)
    return parser


def _compress(options: argparse.Namespace) -> None:
    """Read, quantise, write; what a run reads from it is within half a step (row S31)."""
    check_new(options.out, "--out")
    _, model, memory = open_memory(options.folder)
    coded = quantise_entries(memory.entries, bits=(options.bits,) * len(memory.entries.features))
    save_memory(
        options.out, memory.points, memory.stereo, model=model, optional=entry_fields(coded)
    )
    before, after = bytes_per_entry(memory.entries), bytes_per_entry(coded)
    for name in before:
        print(f"bytes of an entry, {name}: {before[name]:,} -> {after[name]:,}")
    print(options.out)


def _edit(options: argparse.Namespace) -> None:
    """Read, change by `options.edit`, write; the old memory stays as it is."""
    check_new(options.out, "--out")
    folder, model, memory = open_memory(options.folder)
    edit: Callable[[argparse.Namespace, RolloutConfig, WorldMemory], WorldMemory] = options.edit
    found = edit(options, rollout_of_run(folder), memory)
    before, after = memory_counts(memory), memory_counts(found)
    if not any(after[name] for name in ("points", "keyframes", "entries")):
        raise InputError(f"nothing of {options.folder} would be left; {_extent(memory)}")
    save_world(options.out, found, model)
    for name in before:
        print(f"{name}: {before[name]:,} -> {after[name]:,}")
    print(options.out)


def _undo(_: argparse.Namespace, config: RolloutConfig, memory: WorldMemory) -> WorldMemory:
    return forget_last_clip(config, memory)


def _prune(options: argparse.Namespace, _: RolloutConfig, memory: WorldMemory) -> WorldMemory:
    if options.views is None and options.entries is None:
        raise InputError("prune needs a budget: --views N, --entries N or both")
    return prune_world(memory, views=options.views, entries=options.entries)


def _select(options: argparse.Namespace, config: RolloutConfig, memory: WorldMemory) -> WorldMemory:
    if options.box is not None:
        if not np.isfinite(options.box).all():
            raise InputError("--box: its corners must be finite numbers")
        corners = jnp.asarray(options.box, jnp.float32).reshape(2, 3)
        return select_world(memory, corners.min(0), corners.max(0))
    held = int(memory.stereo.count)
    wrong = [view for view in options.views if not 0 <= view < held]
    if wrong:
        raise InputError(f"--views {wrong[0]}: the memory holds views 0 to {held - 1}")
    keep = np.isin(np.arange(memory.stereo.capacity), options.views)
    return replay_keyframes(config, memory, keep)


def _merge(options: argparse.Namespace, config: RolloutConfig, memory: WorldMemory) -> WorldMemory:
    model = model_of_memory(memory_folder(options.folder))
    other = open_memory(options.other, model=model).memory
    views = int(memory.stereo.count) + int(other.stereo.count)
    roomy = RolloutConfig(
        bank_capacity=views,
        point_capacity=int(memory.points.count) + int(other.points.count) + 1,
        entry_capacity=int(memory.entries.count) + int(other.entries.count) + 1,
    )
    try:
        return merge_worlds(config, with_room(memory, roomy), other)
    except InputError as error:
        raise InputError(f"{options.folder} and {options.other}: {error}") from error


def _extent(memory: WorldMemory) -> str:
    """What a memory holds, in the terms of what can be asked of it."""
    views = np.asarray(memory.stereo.source)[np.asarray(memory.stereo.valid)]
    points = np.asarray(memory.points.positions)[np.asarray(memory.points.valid)]
    if len(points) == 0:
        return f"it holds {len(views)} views and no points"
    corners = [" ".join(f"{x:.3g}" for x in corner) for corner in (points.min(0), points.max(0))]
    return f"it holds {len(views)} views, and points from {corners[0]} to {corners[1]}"
