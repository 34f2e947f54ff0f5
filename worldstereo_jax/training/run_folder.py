"""The folder of a run: what must be true of it before anything costly begins.

A run that finds out at its first checkpoint that it cannot be saved, or writes over another one,
has cost a pod's hours by then.
"""

import json
import os
import typing
from collections.abc import Collection, Mapping
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write

CHECKPOINTS, LOG, RUN = "checkpoints", "log.jsonl", "run.json"


def open_folder(out: str | os.PathLike[str], *, resume: bool) -> Path:
    """The folder of a run, made if need be; on several hosts all call this.

    Args:
        out: of the run.
        resume: whether the run goes on there. A new run does not begin where one has been saved:
            its log would be cut away, and its steps not saved beside later ones.

    Raises:
        InputError: for an address of a bucket, a folder that cannot be written to, one that hosts
            do not share, one that holds a run, or none to go on from.
    """
    if "://" in os.fspath(out):
        raise InputError(f"{out}: expected a folder; mount the bucket, by gcsfuse or the like")
    out = Path(out)
    problem = _problem(out, resume=resume)
    # The same end on every host: else the others would wait for this one.
    if _any_host(problem is not None):
        raise InputError(problem or f"{out}: cannot be used by another host, which says why")
    _check_shared(out)
    return out


def record_run(
    out: Path, arguments: Mapping[str, typing.Any], *, fixed: Collection[str], resume: bool
) -> None:
    """Write what a run was started with into `run.json`; a resumed run must agree with it.

    On several hosts the first one writes.

    Args:
        out: of `open_folder`.
        arguments: of the command, by name; written as JSON, paths and the like as text.
        fixed: names of those that a resumed run may not change, since the checkpoint was made
            under them and does not say so itself.
        resume: whether the run goes on in that folder.

    Raises:
        InputError: naming the argument that differs, or for a damaged file.
    """
    said = json.loads(json.dumps(dict(arguments), default=str))
    path = out / RUN
    if resume and path.exists():
        try:
            before = json.loads(path.read_text())["arguments"]
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged; remove it to go on without a check") from error
        for name in fixed:
            if before.get(name) != said[name]:
                raise InputError(
                    f"--{name.replace('_', '-')} is {said[name]!r}, but the run in {out} has "
                    f"{before.get(name)!r}: resume it with the same"
                )
    if jax.process_index() > 0:
        return
    record = {"arguments": said, "jax": jax.__version__, "devices": jax.device_count()}
    record["device"] = jax.devices()[0].device_kind
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1))


def _problem(out: Path, *, resume: bool) -> str | None:
    """Why this host cannot use the folder."""
    probe = out / f".probe-{os.getpid()}-{jax.process_index()}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        return f"{out}: cannot be written to ({error.strerror})"
    saved = out / CHECKPOINTS
    steps = [int(x.name) for x in saved.glob("*") if x.name.isdecimal()]
    if steps and not resume:
        return (
            f"{out}: holds a run of {max(steps)} steps; go on with it by --resume, or choose "
            "another folder"
        )
    if resume and not steps:
        return f"{saved}: no checkpoint to resume from"
    return None


def _any_host(here: bool) -> bool:
    """Whether it is so on any host."""
    if jax.process_count() == 1:
        return here
    return bool(multihost_utils.process_allgather(np.asarray(here)).any())


def _check_shared(out: Path) -> None:
    """Whether all hosts see one folder: a mark that the first makes there."""
    if jax.process_count() == 1:
        return
    own = np.frombuffer(os.urandom(4), np.uint32)
    number = int(multihost_utils.broadcast_one_to_all(own)[0])
    mark = out / f".shared-{number}"
    if jax.process_index() == 0:
        mark.touch()
    multihost_utils.sync_global_devices("mark in the run's folder")
    # A listing, since file systems over a network remember what was not there.
    alone = mark.name not in os.listdir(out)
    failed = _any_host(alone)
    if jax.process_index() == 0:
        mark.unlink()
    if failed:
        raise InputError(
            f"{out}: is another folder on other hosts; choose one on storage that all see"
        )
