"""Training on two hosts (processes with simulated devices) is training on one."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.models.small_model import SMALL, random_params
from worldstereo_jax.interop.official import official_from_params
from worldstereo_jax.interop.safetensors_io import write_safetensors
from worldstereo_jax.training.loop import read_log

SCRIPT = Path(__file__).with_name("hosts.py")
ROOT = Path(__file__).parents[2]


@contextlib.contextmanager
def hosts(out, steps, count, resume=False, **environment):
    """The processes of a run; what is left of them at the end is killed."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environ = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={8 // count}",
        **environment,
    }
    running = [
        subprocess.Popen(
            [sys.executable, SCRIPT, *map(str, (out, steps, int(resume), port, count, index))],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environ,
        )
        for index in range(count)
    ]  # fmt: skip
    try:
        yield running
    finally:
        for process in running:
            process.kill()


def ends(running):
    """Each process's exit code and what it said last."""
    found = [(*process.communicate(timeout=200), process.returncode) for process in running]
    return [(code, (out.splitlines() or [err[-2000:]])[-1]) for out, err, code in found]


def finished(out, steps, count, resume=False, **environment):
    with hosts(out, steps, count, resume, **environment) as running:
        said = ends(running)
    assert [code for code, _ in said] == [0] * count, said
    assert len({line for _, line in said}) == 1
    name, step, total, digest = said[0][1].split()
    assert (name, int(step)) == ("state", steps)
    return float(total), digest


@pytest.mark.slow
def test_two_hosts_train_as_one_and_a_stopped_run_resumes_bitwise(tmp_path):
    weights = tmp_path / "weights"
    tensors = official_from_params(random_params(SMALL), SMALL)
    write_safetensors(weights / "model.safetensors", tensors)
    total, digest = finished(tmp_path / "two", 40, 2, WEIGHTS=str(weights))
    alone, _ = finished(tmp_path / "one", 40, 1)
    # The order of sums across hosts is the network's.
    assert total == pytest.approx(alone, rel=1e-5)
    # Only the first host writes the log: every figure once.
    steps = [record["step"] for record in read_log(tmp_path / "two/log.jsonl")]
    assert steps == list(range(5, 41, 5))
    # One of two is told to stop; both do, behind the same step.
    cut = tmp_path / "cut"
    with hosts(cut, 10_000, 2, SECONDS_PER_STEP="0.05") as running:
        assert running[1].stdout is not None
        for line in running[1].stdout:
            if line == "batch 12\n":
                break
        running[1].send_signal(signal.SIGTERM)
        said = ends(running)
    assert [code for code, _ in said] == [143, 143], said
    stopped = {int(path.name) for path in (cut / "checkpoints").iterdir() if path.name.isdecimal()}
    assert 12 < max(stopped) < 40
    assert finished(cut, 40, 2, resume=True) == (total, digest)
