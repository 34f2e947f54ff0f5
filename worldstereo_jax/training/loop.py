"""The training loop: steps, progress bar, log, checkpoints, and a clean stop on SIGTERM.

On several hosts every one runs the same loop after `jax.distributed.initialize()`, with `out` on
storage that all of them see. The first one writes the log and shows the bar; all write their parts
of the checkpoints. A SIGTERM to any of them stops all at one and the same step.

The host runs one step ahead of the devices, no more: so they never wait for it, batches do not pile
up on them, and a run that is told to stop has one step to finish, not twenty.
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

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write, refusal
from worldstereo_jax.training.batches import Batches
from worldstereo_jax.training.checkpoint import Checkpoints
from worldstereo_jax.training.run_folder import CHECKPOINTS, LOG, open_folder
from worldstereo_jax.training.sharding import TrainLayout
from worldstereo_jax.training.state import State

Step = Callable[[State, typing.Any], tuple[State, dict[str, jax.Array]]]
Evaluate = Callable[[State], dict[str, float]]
MOST_SKIPPED = 20
"""Steps in succession without a finite loss and gradient, behind which a run is given up."""
PROFILE = "profile"
"""Folder within a run's, of what the profiler recorded."""


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
    profile_steps: int = 0,
) -> State:
    """Train from `state` until `steps` steps were taken in all, and return the last state.

    `out` receives `checkpoints/` and `log.jsonl`, one JSON object per `log_every` steps with the
    means of the metrics since the last one, and the figures of `evaluate` where it ran. Means are
    over the steps that changed the state; `skipped` counts the others (`state.make_train_step`).
    `seconds_per_step` leaves out compiling (`compile_seconds`, of the first record), evaluating and
    saving; `data_seconds_per_step` is what of it passed in waiting for a batch. With `resume`, the
    newest checkpoint replaces `state`, which gives up its buffers, and the data position, and later
    log lines are cut away, so that a run that was killed ends bitwise equal to one that was not.
    SIGTERM saves after the step in flight and raises `Stopped`.

    With `layout`, `batches` give this host's rows of each batch (`TrainLayout.rows`), and `state`
    lies on the mesh. The profiler records `profile_steps` steps, from the third on that this
    process takes, for TensorBoard or XProf in `out`/profile.

    Raises InputError when `out` cannot be used (`run_folder.open_folder`), when `resume` finds a
    checkpoint of another model, when a disk is full, and when `MOST_SKIPPED` steps in succession
    had no finite loss and gradient.
    """
    out = open_folder(out, resume=resume)
    log = out / LOG
    place = layout.batch if layout is not None else lambda batch: batch
    writes = jax.process_index() == 0
    with Checkpoints(out / CHECKPOINTS) as checkpoints, _sigterm() as should_stop:
        if resume:
            state = checkpoints.restore(state, batches)
        done = int(state.step)
        if writes:
            _cut_log(log, done)
        window, begun = _Window(done), done
        with (
            tqdm(total=steps, initial=done, unit="step", smoothing=0.05, disable=not writes) as bar,
            _Profiler(out / PROFILE, begun + 2, profile_steps) as profiler,
        ):
            while done < steps:
                if profiler.acts(done):
                    # Else the steps recorded would not be these.
                    window.settle()
                    with window.apart():
                        profiler.act()
                with jax.profiler.StepTraceAnnotation("train", step_num=done):
                    with window.waiting():
                        batch = place(next(batches))
                    with window.compiling(first=done == begun):
                        state, metrics = step(state, batch)
                done += 1
                # Waits for the step before this one.
                window.add(metrics)
                bar.update()
                # Read once: a signal that comes during the save below waits for the next step.
                stopping = should_stop(done)
                last = done == steps or stopping
                judged = evaluate is not None and (done % evaluate_every == 0 or done == steps)
                if done % log_every == 0 or judged or last:
                    record = window.close()
                    if evaluate is not None and judged:
                        record |= evaluate(state)
                    if writes:
                        _append(log, {"step": done} | record)
                    if "loss" in record:
                        bar.set_postfix_str(f"loss {record['loss']:.4g}")
                    window.open()
                if done % save_every == 0 or last:
                    with window.apart():
                        checkpoints.save(state, batches)
                if stopping:
                    raise Stopped
    return state


class _Window:
    """The steps between two records of the log: their metrics, and where their time went.

    Raises InputError when too many steps in succession were not finite.
    """

    def __init__(self, done: int) -> None:
        self._fetched: list[dict[str, typing.Any]] = []
        self._running: dict[str, jax.Array] | None = None
        self._done, self._skipped = done, 0
        self._compiled: float | None = None
        self.open()

    def open(self) -> None:
        """Begin behind a record."""
        self._fetched, self._waited = [], 0.0
        self._since = time.perf_counter()

    def add(self, metrics: dict[str, jax.Array]) -> None:
        """Take a step's metrics, and wait for those of the step before it."""
        self.settle()
        self._running = metrics

    def close(self) -> dict[str, float]:
        """The record of the steps since `open`."""
        self.settle()
        seconds = time.perf_counter() - self._since
        kept = [each for each in self._fetched if _is_finite(each)]
        names = kept[0] if kept else {}
        record = {name: float(np.mean([each[name] for each in kept])) for name in names}
        record["skipped"] = float(len(self._fetched) - len(kept))
        record["seconds_per_step"] = seconds / len(self._fetched)
        record["data_seconds_per_step"] = self._waited / len(self._fetched)
        if self._compiled is not None:
            record["compile_seconds"], self._compiled = self._compiled, None
        return record

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Around the fetching of a batch."""
        start = time.perf_counter()
        yield
        self._waited += time.perf_counter() - start

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Around what is no part of a step's time."""
        start = time.perf_counter()
        yield
        self._since += time.perf_counter() - start

    @contextlib.contextmanager
    def compiling(self, *, first: bool) -> Iterator[None]:
        """Around the call of a step, which of the first one compiles it and then only starts it."""
        if not first:
            yield
            return
        start = time.perf_counter()
        with self.apart():
            yield
        self._compiled = time.perf_counter() - start

    def settle(self) -> None:
        """Wait for the step that runs, if one does."""
        if self._running is None:
            return
        found = jax.device_get(self._running)
        self._fetched.append(found)
        self._running = None
        self._done += 1
        self._skipped = 0 if _is_finite(found) else self._skipped + 1
        if self._skipped == MOST_SKIPPED:
            raise InputError(
                f"steps {self._done - MOST_SKIPPED + 1} to {self._done} had no finite loss and "
                "gradient, and the run was given up: look at the clips, or lower the learning rate"
            )


def _is_finite(metrics: dict[str, typing.Any]) -> bool:
    return not metrics.get("skipped", 0.0) and bool(np.isfinite(metrics["loss"]))


class _Profiler:
    """Records steps from `first` on, `count` of them; also when the run ends among them."""

    def __init__(self, folder: Path, first: int, count: int) -> None:
        self._folder = folder
        self._ends = {first, first + count} if count > 0 else set()
        self._running = False

    def __enter__(self) -> "_Profiler":
        return self

    def __exit__(self, *_: object) -> None:
        if self._running:
            self.act()

    def acts(self, done: int) -> bool:
        """Whether to begin or to end behind so many steps."""
        return done in self._ends

    def act(self) -> None:
        """Begin, or end."""
        if self._running:
            jax.profiler.stop_trace()
        else:
            jax.profiler.start_trace(str(self._folder))
        self._running = not self._running


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
    try:
        with path.open("a") as file:
            file.write(json.dumps(record) + "\n")
    except OSError as error:
        if refusal(error) is None:
            raise
        raise InputError(f"{path}: cannot be written to ({refusal(error)})") from error
