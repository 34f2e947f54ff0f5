import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.training.loop import Stopped, read_log, train

sys.path.insert(0, str(Path(__file__).parent))
import toy


def _equal(a, b):
    left, right = (jax.tree.leaves(x.replace(key=jax.random.key_data(x.key))) for x in (a, b))
    assert len(left) == len(right)
    for x, y in zip(left, right, strict=True):
        np.testing.assert_array_equal(x, y)


def _run(out, steps, *, resume=False, batches=None, **kwargs):
    return train(
        toy.new_state(),
        toy.new_step(),
        batches or toy.new_batches(),
        steps=steps,
        out=out,
        resume=resume,
        save_every=5,
        log_every=4,
        **kwargs,
    )


def _figures(out):
    return [
        {name: value for name, value in record.items() if "seconds" not in name}
        for record in read_log(out / "log.jsonl")
    ]


class _Killed(Exception):
    pass


class _Dies:
    """Batches that kill the run at a position, as a power cut would."""

    def __init__(self, inner, at):
        self.inner, self.at = inner, at
        self.get_state, self.set_state = inner.get_state, inner.set_state

    def __next__(self):
        if self.inner.get_state()["position"] == self.at:
            raise _Killed
        return next(self.inner)


def test_killed_and_resumed_run_is_bitwise_equal(tmp_path):
    whole = _run(tmp_path / "whole", 20)
    with pytest.raises(_Killed):
        # Dies at step 13: saved at 10, logged at 12, so both must go back.
        _run(tmp_path / "cut", 20, batches=_Dies(toy.new_batches(), 13))
    assert read_log(tmp_path / "cut/log.jsonl")[-1]["step"] == 12
    resumed = _run(tmp_path / "cut", 20, resume=True)
    _equal(whole, resumed)
    assert int(resumed.step) == 20
    # After the checkpoint, every logged window that both runs share is the same.
    logged = {record["step"]: record for record in _figures(tmp_path / "cut")}
    for record in _figures(tmp_path / "whole"):
        if record["step"] >= 16 or record["step"] <= 8:
            assert logged[record["step"]] == record


def test_the_loop_learns_and_averages(tmp_path):
    state = _run(tmp_path, 300)
    losses = [record["loss"] for record in read_log(tmp_path / "log.jsonl")]
    assert losses[-1] < 0.1 * losses[0]
    assert state.ema is not None
    np.testing.assert_allclose(state.ema["w"], state.params["w"], atol=0.2)
    assert not np.array_equal(state.ema["w"], state.params["w"])


def test_evaluation_runs_on_its_steps_and_at_the_end(tmp_path):
    seen = []

    def evaluate(state):
        seen.append(int(state.step))
        return {"figure": float(state.step)}

    _run(tmp_path, 11, evaluate=evaluate, evaluate_every=3)
    assert seen == [3, 6, 9, 11]
    assert [r["figure"] for r in read_log(tmp_path / "log.jsonl") if "figure" in r] == seen


def test_resume_without_checkpoint_or_with_another_seed_is_refused(tmp_path):
    with pytest.raises(InputError, match="no checkpoint"):
        _run(tmp_path / "nothing", 5, resume=True)
    _run(tmp_path / "run", 5)
    with pytest.raises(InputError, match="seed"):
        _run(tmp_path / "run", 5, resume=True, batches=toy.new_batches(seed=1))


def test_sigterm_saves_the_step_in_flight(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    class Terminates(_Dies):
        def __next__(self):
            if self.inner.get_state()["position"] == self.at:
                os.kill(os.getpid(), signal.SIGTERM)
            return next(self.inner)

    with pytest.raises(Stopped) as stopped:
        _run(tmp_path, 20, batches=Terminates(toy.new_batches(), 7))
    assert stopped.value.code == 143
    assert signal.getsignal(signal.SIGTERM) is before
    resumed = _run(tmp_path, 20, resume=True)
    _equal(resumed, _run(tmp_path / "whole", 20))
    assert read_log(tmp_path / "log.jsonl")[1]["step"] == 8


def test_sigterm_while_figures_are_fetched_is_not_lost(tmp_path):
    # Evaluation comes after the step: the signal must still lead to a save, one step later.
    def evaluate(state):
        if int(state.step) == 6:
            os.kill(os.getpid(), signal.SIGTERM)
        return {}

    with pytest.raises(Stopped):
        _run(tmp_path, 20, evaluate=evaluate, evaluate_every=3)
    assert (tmp_path / "checkpoints/7").is_dir()


class _Broken(_Dies):
    """Batches of NaN at some positions."""

    def __next__(self):
        batch = next(self.inner)
        return batch * np.nan if self.inner.get_state()["position"] in self.at else batch


def test_a_broken_batch_costs_one_update_and_many_end_the_run(tmp_path):
    once = _run(tmp_path / "once", 8, batches=_Broken(toy.new_batches(), {7}))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((once.params, once.opt_state)))
    assert int(once.step) == 8
    first, second = read_log(tmp_path / "once/log.jsonl")
    assert (first["skipped"], second["skipped"]) == (0, 1)
    # The mean is over the other three.
    assert np.isfinite(second["loss"])
    always = _Broken(toy.new_batches(), range(7, 1000))
    with pytest.raises(InputError, match="steps 7 to 26 had no finite loss and gradient"):
        _run(tmp_path / "always", 100, batches=always)
    # The records and checkpoints in between hold no NaN.
    records = read_log(tmp_path / "always/log.jsonl")
    assert [record["step"] for record in records if "loss" in record] == [4, 8]
    resumed = _run(tmp_path / "always", 26, resume=True)
    assert np.isfinite(np.asarray(resumed.params["w"])).all()


def test_the_host_runs_one_step_ahead_and_no_more(tmp_path, monkeypatch):
    fetched, ahead, get = [], [], jax.device_get

    def fetch(metrics):
        fetched.append(float(metrics["loss"]))
        return get(metrics)

    def step(state, batch):
        ahead.append(int(state.step) - len(fetched))
        return state.replace(step=state.step + 1), {"loss": jnp.asarray(1.0)}

    monkeypatch.setattr(jax, "device_get", fetch)
    train(toy.new_state(), step, toy.new_batches(), steps=6, out=tmp_path, log_every=6)
    assert (len(fetched), max(ahead)) == (6, 1)


def test_a_new_run_does_not_begin_in_the_folder_of_another(tmp_path):
    _run(tmp_path, 10)
    log = (tmp_path / "log.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds a run of 10 steps; go on with it by --resume"):
        _run(tmp_path, 5)
    assert (tmp_path / "log.jsonl").read_bytes() == log
    assert int(_run(tmp_path, 10, resume=True).step) == 10


def test_the_profiler_records_some_steps(tmp_path):
    _run(tmp_path, 6, profile_steps=2)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_sigterm_from_outside_ends_with_143(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1]); import toy, time\n"
        "from worldstereo_jax.training.loop import train\n"
        "class Slow:\n"
        "    def __init__(s): s.inner = toy.new_batches(); s.get_state = s.inner.get_state\n"
        "    def __next__(s): time.sleep(0.05); return next(s.inner)\n"
        "train(toy.new_state(), toy.new_step(), Slow(), steps=9999, out=sys.argv[2], log_every=1)\n"
    )
    root = Path(__file__).parents[2]
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(Path(__file__).parent), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": str(root), "JAX_PLATFORMS": "cpu"},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not (tmp_path / "log.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.terminate()
    assert process.wait(60) == 143
    resumed = _run(tmp_path, int(read_log(tmp_path / "log.jsonl")[-1]["step"]), resume=True)
    assert int(resumed.step) >= 1


def test_log_reader_drops_only_a_broken_last_line(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')
    assert [r["step"] for r in read_log(path)] == [1, 2]
    path.write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"delimiter|Unterminated|control"):
        read_log(path)
