"""The TPU kernels through the real compilers, for chips that are not here."""

import fcntl
import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

# Topology -> cases of tpu_compile.py: every generation, every kind of mask, the largest sizes.
COMPILED = {
    "v4:4x4x4": ("bits_45240",),
    "v5e:2x4": ("bits_45240", "every_bit_45240", "geometry_798720", "soft_99840"),
    "v5p:2x2x2": ("geometry_798720",),
    "v6e:4x4": ("bits_798720",),
    "tpu7x:2x2x1": ("bits_45240", "geometry_798720"),
}
# Gigabytes that q, k, v, their gradients (heads of 64 are padded to 128) and the mask may take in
# all: nothing dense. A bit of every pair is a quarter, twice, as it lies for dq and for dk and dv.
MOST = {"bits_45240": 1.0, "every_bit_45240": 2.2}
ROOT = Path(__file__).resolve().parents[2]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("libtpu") is None,
        reason="libtpu, which compiles for TPUs anywhere, is not installed",
    ),
]


def compiled(topology: str, cases: tuple[str, ...]) -> list[dict]:
    """Run tpu_compile.py; one at a time on the machine, as libtpu wants it."""
    with open(Path(tempfile.gettempdir()) / "libtpu_tests.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        run = subprocess.run(
            [sys.executable, "-m", "tests.pallas_kernels.tpu_compile", topology, *cases],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    return [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]


@pytest.mark.parametrize("topology", COMPILED)
def test_compiles_forward_and_backward_inside_shard_map(topology):
    found = compiled(topology, COMPILED[topology])
    assert [each["case"] for each in found] == list(COMPILED[topology])
    for each in found:
        # Forward, dq, and dk with dv, and forward again for layers that are recomputed: nothing
        # fell back to plain XLA.
        assert each["kernels"] == 3 + (each["layers"] > 1), each
        assert each["temporary_bytes"] < 1e9 * MOST.get(each["case"], 12.0), each
