import datetime

import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.paired import PairedDifference
from worldstereo_jax.evaluation.report import Table, format_difference, kept_rows, write_section

DAY = datetime.date(2026, 1, 2)
TABLE = Table(["method", "PSNR"], [["ours", "25.1"], ["a|b", "21.0"]], caption="Held out")


def write(path, title, text="words"):
    write_section(path, title, [TABLE, text], command="python -m x", date=DAY)


def test_section_holds_table_and_record(tmp_path):
    path = tmp_path / "RESULTS.md"
    write(path, "First")
    text = path.read_text()
    assert text.startswith("# Results\n\n## First\n\nCommand: `python -m x`. Machine: ")
    assert "Date: 2026-01-02." in text
    table = "| method | PSNR |\n| --- | --- |\n| ours | 25.1 |\n| a\\|b | 21.0 |"
    assert f"Held out\n\n{table}\n\nwords\n" in text


def test_a_section_is_replaced_in_place(tmp_path):
    path = tmp_path / "RESULTS.md"
    path.write_text(
        "# Results\n\nBy hand.\n\n## First\n\nold\n\n### Detail\n\nold too\n\n## Last\n\nkept\n"
    )
    write(path, "First", "new")
    write(path, "Added")
    text = path.read_text()
    assert "old" not in text
    assert "### Detail" not in text
    assert text.index("By hand.") < text.index("## First") < text.index("## Last\n\nkept")
    assert text.index("kept") < text.index("## Added")
    assert text.count("## First") == 1
    write(path, "First", "new")
    assert path.read_text() == text
    assert [p.name for p in tmp_path.iterdir()] == ["RESULTS.md"]


def test_titles_that_begin_alike_are_two_sections(tmp_path):
    path = tmp_path / "RESULTS.md"
    write(path, "Speed on GPU", "fast")
    write(path, "Speed", "slow")
    assert "fast" in path.read_text()


@pytest.mark.parametrize(
    "call",
    [
        lambda path: write(path, "two\nlines"),
        lambda path: write(path, ""),
        lambda path: write(path, "First", "## Second"),
        lambda path: Table(["a"], [["b", "c"]]),
    ],
)
def test_bad_sections_leave_no_file(tmp_path, call):
    with pytest.raises(InputError):
        call(tmp_path / "RESULTS.md")
    assert not list(tmp_path.iterdir())


def test_difference_shows_both_intervals():
    difference = PairedDifference(1.234, (0.9, 1.56), (-0.92, 1.5), 20)
    assert format_difference(difference) == "+1.23 [+0.90, +1.56] (bootstrap [-0.92, +1.50])"


def test_rows_of_an_earlier_run_are_found_again(tmp_path):
    path, header = tmp_path / "RESULTS.md", ("a", "b")
    rows = [("1", "x y"), ("2", "")]
    assert kept_rows(path, "One", header) == []
    write_section(path, "Zero", [Table(header, [("0", "0")])], command="c")
    parts = ["Words.", Table(("p", "q"), [("5", "6")]), Table(header, rows)]
    write_section(path, "One", parts, command="c")
    write_section(path, "Two", [Table(header, [("3", "z")])], command="c")
    assert kept_rows(path, "One", header) == rows
    assert kept_rows(path, "One", ("a", "c")) == []
    assert kept_rows(path, "Three", header) == []
