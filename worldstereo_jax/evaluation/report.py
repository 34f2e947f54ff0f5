"""Writing an experiment's figures as a section of a markdown file."""

import dataclasses
import datetime
import os
import platform
from collections.abc import Sequence
from pathlib import Path

import jax

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.paired import PairedDifference
from worldstereo_jax.files import atomic_write


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of already formatted cells: the column names, then one sequence of cells per row.

    Raises InputError when a row has another length than the columns.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""

    def __post_init__(self) -> None:
        for row in self.rows:
            if len(row) != len(self.columns):
                raise InputError(
                    f"the row of {row[0] if row else 'nothing'!r} has {len(row)} cells for "
                    f"{len(self.columns)} columns"
                )

    def markdown(self) -> str:
        """Return the table in GitHub's markdown, the caption above it."""
        lines = [_row(self.columns), _row(["---"] * len(self.columns)), *map(_row, self.rows)]
        return "\n".join(([self.caption, ""] if self.caption else []) + lines)


def format_difference(difference: PairedDifference, digits: int = 2) -> str:
    """Return "+1.23 [+0.90, +1.56] (bootstrap [+0.92, +1.53])"."""
    (low, high), (boot_low, boot_high) = difference.student, difference.bootstrap
    number = f"+.{digits}f"
    return (
        f"{difference.mean:{number}} [{low:{number}}, {high:{number}}] "
        f"(bootstrap [{boot_low:{number}}, {boot_high:{number}}])"
    )


def write_section(
    path: str | os.PathLike[str],
    title: str,
    parts: Sequence[Table | str],
    *,
    command: str,
    date: datetime.date | None = None,
) -> None:
    """Write section "## title" of the markdown file at `path`; replace it if it is there.

    parts: tables and paragraphs in order. command: what reproduces the section. The machine and
    the date (today unless given) are written beneath the title. Other sections stay as they are;
    a missing file is made; the file is replaced atomically.

    Raises InputError when the title is empty or of several lines, or a part holds a heading of
    the first two levels, since the section could not be found again.
    """
    if not title.strip() or "\n" in title:
        raise InputError("a section's title must be one line of text")
    texts = [part.markdown() if isinstance(part, Table) else part.strip() for part in parts]
    if any(_is_heading(line) for text in texts for line in text.splitlines()):
        raise InputError(f"the section {title!r} must not hold headings of level 1 or 2 itself")
    day = date or datetime.date.today()
    record = f"Command: `{command}`. Machine: {machine()}. Date: {day.isoformat()}."
    section = "\n\n".join([f"## {title}", record, *texts])
    path = Path(path)
    before = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    with atomic_write(path) as temporary:
        temporary.write_text(_replace(before, title, section), encoding="utf-8")


def kept_rows(
    path: str | os.PathLike[str], title: str, header: Sequence[str]
) -> list[tuple[str, ...]]:
    """Rows of a table that a section of the file already holds, none where it has no such table.

    For commands that fill a table in several runs. `header` names all its columns.
    """
    text = Path(path).read_text(encoding="utf-8") if Path(path).exists() else ""
    section = text.partition(f"## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    rows = [tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines]
    if tuple(header) not in rows:
        return []
    rows = rows[rows.index(tuple(header)) + 2 :]
    return [row for row in rows if len(row) == len(header)]


def machine() -> str:
    """Return the accelerator jax runs on, or the processor, with the number of cores."""
    device = jax.devices()[0]
    name = device.device_kind if device.platform != "cpu" else _processor()
    return f"{name}, {os.cpu_count()} CPU cores, jax {jax.__version__}"


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _is_heading(line: str) -> bool:
    return line.startswith(("# ", "## "))


def _replace(text: str, title: str, section: str) -> str:
    """Put `section` in the place of the one with `title`, or at the end."""
    lines = text.splitlines()
    start = next((i for i, line in enumerate(lines) if line.strip() == f"## {title}"), len(lines))
    end = next((i for i in range(start + 1, len(lines)) if _is_heading(lines[i])), len(lines))
    blocks = ["\n".join(lines[:start]).strip(), section, "\n".join(lines[end:]).strip()]
    return "\n\n".join(block for block in blocks if block) + "\n"
