"""A pytest plugin that disables one mechanism before any test is collected.

    ROW_MUTATION=<name> python -m pytest -p experiments.row_mutations.plugin tests/...

Loaded by the command of this package, one process per mutation. The attribute is replaced where it
is defined and in every module of the packages that had already taken it by `from ... import ...`;
what is imported later finds the replacement. How every test ended is printed, so that a test that
failed because of what it asserts is told from one that could not run at all.
"""

import importlib
import os
import sys
from typing import Any

import pytest

VARIABLE = "ROW_MUTATION"
VERDICT = "verdict:"
_PACKAGES = ("worldstereo_jax", "pallas_kernels")


def find_attribute(mechanism: str) -> tuple[Any, str]:
    """The object that holds a mechanism "package.module:name" or "...:Class.name", and its name."""
    module, _, path = mechanism.partition(":")
    holder: Any = importlib.import_module(module)
    *outer, name = path.split(".")
    for part in outer:
        holder = getattr(holder, part)
    getattr(holder, name)  # raises when there is nothing of that name
    return holder, name


def replace_everywhere(mechanism: str, replacement: Any) -> None:
    """Put `replacement` for a mechanism, also where modules imported it by name."""
    holder, name = find_attribute(mechanism)
    original = getattr(holder, name)
    setattr(holder, name, replacement)
    # Numbers and strings are compared by identity too, and small ones are shared: only callables
    # are looked for elsewhere.
    if not callable(original):
        return
    for module in [m for n, m in sys.modules.items() if n.partition(".")[0] in _PACKAGES]:
        for key, value in list(vars(module).items()):
            if value is original:
                setattr(module, key, replacement)


def pytest_sessionstart() -> None:
    """Apply the mutation, after the settings of conftest and before collection."""
    wanted = os.environ.get(VARIABLE, "")
    if not wanted:
        return
    from experiments.row_mutations.table import mutations_by_name

    mutation = mutations_by_name()[wanted]
    holder, name = find_attribute(mutation.mechanism)
    replace_everywhere(mutation.mechanism, mutation.disable(getattr(holder, name)))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """Print how each test ended: "passed", "noticed" by an assertion, or "broken"."""
    outcome = yield
    report = outcome.get_result()
    if report.when == "call" or report.failed:
        verdict = "passed"
        if call.excinfo is not None:
            asserted = call.excinfo.errisinstance((AssertionError, pytest.fail.Exception))
            skipped = call.excinfo.errisinstance(pytest.skip.Exception)
            verdict = "skipped" if skipped else "noticed" if asserted else "broken"
            if report.when != "call":
                verdict = "broken"
        print(f"\n{VERDICT} {verdict} {item.nodeid}", file=sys.__stdout__, flush=True)
