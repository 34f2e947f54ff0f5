"""`python -m pallas_kernels.selftest [--seed N] [--quick]`: every backend against the reference.

Prints a table of backend, case, largest relative error and pass, or the reason why a backend
cannot run. The TPU kernels are interpreted where there is no TPU. Exit code 1 on any failure, or
when fewer than REQUIRED backends ran.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.api import available_implementations
from pallas_kernels.pallas_tpu import tpu_attention
from pallas_kernels.selftest_cases import CASES, QUICK, compare, make_problem

__all__ = ["REQUIRED", "main"]

REQUIRED = ("reference", "xla_chunked", "pallas_tpu")
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


def _interpreted_tpu(q, k, v, mask, *, return_lse: bool) -> Any:
    params = pltpu.InterpretParams()
    out, lse = tpu_attention(q, k, v, mask, q.shape[-1] ** -0.5, interpret=params)
    return (out, lse) if return_lse else out


# Backends that are interpreted where they cannot run.
INTERPRETED: dict[str, Callable[..., Any]] = {"pallas_tpu": _interpreted_tpu}


def _problems(seed: int, quick: bool):
    for kind in QUICK if quick else CASES:
        yield kind, make_problem(kind, seed=seed), TOLERANCE["float32"]
    if not quick:
        for head_dim in (64, 128):
            problem = make_problem("random", seed=seed, head_dim=head_dim, dtype=jnp.bfloat16)
            yield f"random bf16 d={head_dim}", problem, TOLERANCE["bfloat16"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the checks, print the table, return the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m pallas_kernels.selftest",
        description="Check every attention backend against the dense reference.",
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the random problems")
    parser.add_argument("--quick", action="store_true", help="fewer cases, float32 only")
    options = parser.parse_args(arguments)

    line = "{:<18} {:<20} {:>10}  {}"
    print(line.format("backend", "case", "max error", "result"))
    failed, ran = False, []
    for name, reason in available_implementations().items():
        attend = name
        if reason:
            attend = INTERPRETED.get(name)
            end = "" if attend is None else "; interpreted instead"
            print(line.format(name, "-", "-", f"cannot run: {reason}{end}"))
            if attend is None:
                continue
        ran.append(name)
        for case, problem, tolerance in _problems(options.seed, options.quick):
            error = max(compare(attend, problem).values())
            passed = error <= tolerance
            failed |= not passed
            print(line.format(name, case, f"{error:.1e}", "pass" if passed else "FAIL"), flush=True)
    missing = [name for name in REQUIRED if name not in ran]
    if missing:
        print(f"incomplete: {', '.join(missing)} did not run")
    return 1 if failed or missing else 0


if __name__ == "__main__":
    # On one core a computation that runs in the background would wait for the interpreter, which
    # waits for that core's only thread to hand it the operands.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    sys.exit(main())
