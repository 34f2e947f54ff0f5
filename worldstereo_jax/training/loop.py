"""The training loop: steps, progress bar, log, checkpoints, and a clean stop on SIGTERM.

On several hosts every one runs the same loop after `jax.distributed.initialize()`, with `out` on
storage that all of them see. The first one writes the log and shows the bar; all write their parts
of the checkpoints. A SIGTERM to any of them stops all at one and the same step.
"""

import contextlib
import json
import os
import signal
import threading
import time
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from tqdm import tqdm

from worldstereo_jax.files import atomic_write
from worldstereo_jax.training.batches import Batches
from worldstereo_jax.training.checkpoint import Checkpoints
from worldstereo_jax.training.sharding import TrainLayout
from worldstereo_jax.training.state import State

Step = Callable[[State, typing.Any], tuple[State, dict[str, jax.Array]]]
Evaluate = Callable[[State], dict[str, float]]


class Stopped(SystemExit):
    """Raised after a SIGTERM, once the state was saved; the process ends with code 143."""

    def __init__(self) -> None:
        super().__init__(143)


def train(
    state: State,
    step: Step[State],
    batches: Batches,
    *,
    steps: int,
    out: str | os.PathLike[str],
    resume: bool = False,
    save_every: int = 500,
    log_every: int = 20,
    evaluate: Evaluate[State] | None = None,
    evaluate_every: int = 500,
    layout: TrainLayout | None = None,
) -> State:
    """Train from `state` until `steps` steps were taken in all, and return the last state.

    `out` receives `checkpoints/` and `log.jsonl`, one JSON object per `log_every` steps with the
    means of the metrics since the last one, and the figures of `evaluate` where it ran. With
    `resume`, the newest checkpoint replaces `state` and the data position, and later log lines
    are cut away, so that a run that was killed ends bitwise equal to one that was not. SIGTERM
    saves after the step in flight and raises `Stopped`.

    With `layout`, `batches` give this host's rows of each batch (`TrainLayout.rows`), and `state`
    lies on the mesh.

    Raises InputError when `resume` finds no checkpoint, or one of another model.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    log = out / "log.jsonl"
    place = layout.batch if layout is not None else lambda batch: batch
    writes = jax.process_index() == 0
    with Checkpoints(out / "checkpoints") as checkpoints, _sigterm() as should_stop:
        if resume:
            state = checkpoints.restore(state, batches)
        done = int(state.step)
        if writes:
            _cut_log(log, done)
        pending: list[dict[str, jax.Array]] = []
        since = time.perf_counter()
        with tqdm(
            total=steps, initial=done, unit="step", smoothing=0.05, disable=not writes
        ) as bar:
            while done < steps:
                state, metrics = step(state, place(next(batches)))
                done += 1
                pending.append(metrics)
                bar.update()
                # Read once: a signal that comes during the save below waits for the next step.
                stopping = should_stop(done)
                last = done == steps or stopping
                judged = evaluate is not None and (done % evaluate_every == 0 or done == steps)
                if done % log_every == 0 or judged or last:
                    record = _means(pending)
                    record["seconds_per_step"] = (time.perf_counter() - since) / len(pending)
                    if evaluate is not None and judged:
                        record |= evaluate(state)
                    if writes:
                        _append(log, {"step": done} | record)
                    bar.set_postfix_str(f"loss {record['loss']:.4g}")
                    pending, since = [], time.perf_counter()
                if done % save_every == 0 or last:
                    checkpoints.save(state, batches)
                if stopping:
                    raise Stopped
    return state


@contextlib.contextmanager
def _sigterm() -> Iterator[Callable[[int], bool]]:
    """Yield a function of the steps taken: whether to stop behind them, for a SIGTERM.

    Between several hosts jax's own service catches the signal, and names a step that none of them
    has passed. Outside the main thread, signals are left alone.
    """
    if jax.process_count() > 1:
        yield multihost_utils.reached_preemption_sync_point
        return
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield lambda _: stop.is_set()
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: stop.set())
    try:
        yield lambda _: stop.is_set()
    finally:
        signal.signal(signal.SIGTERM, previous)


def read_log(path: str | os.PathLike[str]) -> list[dict[str, float | int]]:
    """Read a JSON-lines log; a last line cut short by a crash is dropped."""
    lines = Path(path).read_text().splitlines()
    records = []
    for index, line in enumerate(lines):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            if index != len(lines) - 1:
                raise
    return records


def _cut_log(path: Path, step: int) -> None:
    """Drop the records after `step`: the resumed run will write them again."""
    if not path.exists():
        return
    kept = [record for record in read_log(path) if record["step"] <= step]
    with atomic_write(path) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))


def _append(path: Path, record: dict[str, float | int]) -> None:
    with path.open("a") as file:
        file.write(json.dumps(record) + "\n")


def _means(metrics: list[dict[str, jax.Array]]) -> dict[str, float | int]:
    fetched = jax.device_get(metrics)
    return {name: float(np.mean([each[name] for each in fetched])) for name in fetched[0]}
