"""The table of disabled mechanisms names what there is: rows, mechanisms, tests."""

import re

import pytest

from experiments import memory_rows
from experiments.row_mutations import __main__ as command
from experiments.row_mutations.plugin import find_attribute, replace_everywhere
from experiments.row_mutations.table import MUTATIONS, mutations_by_name
from worldstereo_jax.memory import entry_edit, entry_views


def test_every_row_has_a_mutation_and_every_mutation_its_own_name():
    assert {mutation.row for mutation in MUTATIONS} == set(range(1, len(memory_rows.TITLES) + 1))
    assert list(mutations_by_name().values()) == list(MUTATIONS)


def test_every_mechanism_exists_and_is_changed():
    for mutation in MUTATIONS:
        holder, name = find_attribute(mutation.mechanism)
        original = getattr(holder, name)
        replacement = mutation.disable(original)
        assert replacement != original, mutation.name
        assert callable(replacement) == callable(original), mutation.name


def test_every_test_exists_and_is_marked_with_the_row():
    marked = memory_rows.tests()
    for mutation in MUTATIONS:
        assert mutation.tests, mutation.name
        for test in mutation.tests:
            node = re.sub(r"\[.*", "", test)
            there = [name for name in marked[mutation.row] if (name + "::").startswith(node + "::")]
            assert there, f"{mutation.name}: no test of S{mutation.row} is called {node}"


def test_a_replacement_reaches_those_who_imported_by_name():
    original = entry_views.has_view
    assert entry_edit.has_view is original
    try:
        replace_everywhere("worldstereo_jax.memory.entry_views:has_view", lambda bits, view: bits)
        assert entry_edit.has_view is entry_views.has_view is not original
    finally:
        replace_everywhere("worldstereo_jax.memory.entry_views:has_view", original)
    assert entry_edit.has_view is original
    with pytest.raises(AttributeError):
        find_attribute("worldstereo_jax.memory.entry_views:nothing")


def test_rows_run_again_replace_their_own_in_the_record(tmp_path, monkeypatch):
    results = tmp_path / "RESULTS.md"
    results.write_text("# Results\n\n## Another\n\nCommand: `x`.\n\n| S1 | not ours |\n")
    monkeypatch.setattr(command, "RESULTS", results)
    first, second = MUTATIONS[0], MUTATIONS[-1]

    def row(mutation, test):
        return f"S{mutation.row}", command.described(mutation), test, "3"

    command.record({m.name: row(m, command.NONE) for m in (second, first)})
    command.record({first.name: row(first, "`a`, `b`")})
    found = command.stored_rows(results.read_text())
    assert found == [row(first, "`a`, `b`"), row(second, command.NONE)]
    assert "1 of 2 disabled mechanisms" in results.read_text()
    assert "| S1 | not ours |" in results.read_text()
