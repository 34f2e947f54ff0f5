"""Every row of the memory's specification has a mechanism and a test, and the table says so."""

import re

from experiments import memory_rows


def test_every_row_has_a_mechanism_and_a_test():
    rows = set(range(1, len(memory_rows.TITLES) + 1))
    assert rows == set(range(1, 39))
    assert rows - set(memory_rows.mechanisms()) == set()
    assert rows - set(memory_rows.tests()) == set()


def test_the_table_holds_every_row_and_nothing_that_is_gone():
    """What has been added since only has to be there the next time the page is generated."""
    again = "run `python -m experiments.memory_rows`"
    stored = memory_rows.TABLE.read_text().splitlines()
    current = memory_rows.table().splitlines()
    assert len(stored) == len(current), again
    for old, new in zip(stored, current, strict=True):
        assert set(re.findall(r"`[^`]+`", old)) <= set(re.findall(r"`[^`]+`", new)), again
        assert old.split("`")[0] == new.split("`")[0], again
        assert "none" not in old.split(" | ")[2:], again


def test_rows_are_read_as_they_are_cited():
    found = memory_rows.cited_rows("means (row S7), and (rows S9 to S11, S20); S30 is not cited")
    assert found == {7, 9, 10, 11, 20}
