"""Run the mutations: the tests as they are, then once for every disabled mechanism.

Each runs in a process of its own (see `plugin`). A mechanism counts as noticed when a test fails
for what it asserts, not when it cannot run. Writes RESULTS.md; ends with an error when a mechanism
goes unnoticed or a test fails by itself.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from experiments import memory_rows
from experiments.row_mutations.mutation import Mutation
from experiments.row_mutations.plugin import VARIABLE, VERDICT
from experiments.row_mutations.table import MUTATIONS
from worldstereo_jax.evaluation.report import Table, write_section

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "experiments" / "RESULTS.md"
TITLE = "Rows of the memory with their mechanism disabled"
NONE = "**none**"
_LONGEST = 600  # seconds of one mutation


def run_tests(tests: tuple[str, ...], *, mutation: str, compiled: str) -> dict[str, list[str]]:
    """Verdict -> test nodes, of the tests run with a mechanism disabled (or none: "")."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "experiments.row_mutations.plugin"]
    command += ["-p", "no:cacheprovider", "-p", "no:xdist", *(f"tests/{test}" for test in tests)]
    environment = os.environ | {
        VARIABLE: mutation,
        "JAX_COMPILATION_CACHE_DIR": compiled,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
    }
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=_LONGEST
    )
    found: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        if line.startswith(VERDICT):
            _, verdict, node = line.split(" ", 2)
            found.setdefault(verdict, []).append(node.removeprefix("tests/"))
    if not found:
        found["broken"] = [done.stdout[-2000:] + done.stderr[-2000:]]
    return found


def judge(mutation: Mutation, compiled: str) -> tuple[str, ...]:
    """Row of the table: what was disabled, and which of the row's own tests noticed."""
    start = time.perf_counter()
    found = run_tests(mutation.tests, mutation=mutation.name, compiled=compiled)
    seconds = time.perf_counter() - start
    marked = memory_rows.tests()[mutation.row]
    failed = [node for node in found.get("noticed", []) if node.partition("[")[0] in marked]
    noticed = ", ".join(f"`{node}`" for node in failed)
    if not noticed:
        print(found)
    return f"S{mutation.row}", described(mutation), noticed or NONE, f"{seconds:.0f}"


def described(mutation: Mutation) -> str:
    """The mutation in the table."""
    return f"{mutation.what} (`{mutation.short}`)"


def main() -> None:
    """Run the mutations one after another."""
    parser = argparse.ArgumentParser(prog="python -m experiments.row_mutations")
    parser.add_argument("rows", nargs="*", metavar="S7", help="rows to run; all by default")
    parser.add_argument(
        "--tests-passed",
        action="store_true",
        help="the tests have just passed as they are, and need not be run without a mutation",
    )
    parser.add_argument(
        "--resume", action="store_true", help="only what RESULTS.md lacks or has as unnoticed"
    )
    options = parser.parse_args()
    rows = {int(row.removeprefix("S")) for row in options.rows}
    chosen = [mutation for mutation in MUTATIONS if not rows or mutation.row in rows]
    if options.resume:
        done = {tuple(row[:2]) for row in stored_rows(RESULTS.read_text()) if row[2] != NONE}
        chosen = [m for m in chosen if (f"S{m.row}", described(m)) not in done]
    with tempfile.TemporaryDirectory(prefix="compiled-") as compiled:
        if not options.tests_passed:
            check_tests(chosen, compiled)
        found = {}
        for mutation in chosen:
            found[mutation.name] = judge(mutation, compiled)
            print(" | ".join(found[mutation.name]), flush=True)
            record(found)  # now, so that what was found is kept when the rest is interrupted
    unnoticed = [name for name, row in found.items() if row[2] == NONE]
    if unnoticed:
        sys.exit(f"{len(unnoticed)} mechanisms went unnoticed: {', '.join(unnoticed)}")


def check_tests(chosen: list[Mutation], compiled: str) -> None:
    """Run the tests of the mutations with everything enabled; exit when one fails."""
    named = tuple(dict.fromkeys(test for mutation in chosen for test in mutation.tests))
    start = time.perf_counter()
    found = run_tests(named, mutation="", compiled=compiled)
    seconds = time.perf_counter() - start
    failing = [node for verdict in ("noticed", "broken") for node in found.get(verdict, [])]
    if failing:
        sys.exit(f"these fail by themselves: {', '.join(failing)}")
    print(f"{len(named)} tests pass with everything enabled, {seconds:.0f} s", flush=True)


def record(found: dict[str, tuple[str, ...]]) -> None:
    """Write what was found into RESULTS.md, beside what stands there of other rows."""
    before = {tuple(row[:2]): row for row in stored_rows(RESULTS.read_text())}
    table = []
    for mutation in MUTATIONS:
        row = found.get(mutation.name) or before.get((f"S{mutation.row}", described(mutation)))
        if row is not None:
            table.append(row)
    noticed = sum(row[2] != NONE for row in table)
    caption = (
        f"{noticed} of {len(table)} disabled mechanisms were noticed by an assertion of a test "
        "that passes with everything enabled. Rows can be run again on their own."
    )
    columns = ("row", "mechanism disabled", "tests that noticed", "seconds")
    write_section(
        RESULTS,
        TITLE,
        [Table(columns, table, caption)],
        command="python -m experiments.row_mutations",
    )


def stored_rows(text: str) -> list[tuple[str, ...]]:
    """The rows of the table that RESULTS.md holds."""
    _, _, section = text.partition(f"## {TITLE}\n")
    lines = section.partition("\n## ")[0].splitlines()
    return [tuple(line.strip("| ").split(" | ")) for line in lines if line.startswith("| S")]


if __name__ == "__main__":
    main()
