"""Text files of numbers in columns, read so that every fault has its line number."""

import dataclasses
import math
import os
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of a file: its number, counted from 1, and its words."""

    number: int
    words: tuple[str, ...]


def read_lines(path: str | os.PathLike[str]) -> list[str]:
    """The lines of a text file; InputError when it is missing, cannot be read, or is no text."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text file.") from error


def read_rows(path: str | os.PathLike[str]) -> list[Row]:
    """The lines of a text file that are neither empty nor comments (#)."""
    rows = (Row(number, tuple(line.split())) for number, line in enumerate(read_lines(path), 1))
    return [row for row in rows if row.words and not row.words[0].startswith("#")]


def number(path: str | os.PathLike[str], line: int, word: str) -> float:
    """A finite number; InputError, naming file and line, for anything else."""
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"{path}, line {line}: {word!r} is no finite number.")
    return value


def is_number(word: str) -> bool:
    """Whether a word is meant as a number: one that is not finite counts too."""
    try:
        float(word)
    except ValueError:
        return False
    return True


def read_table(
    path: str | os.PathLike[str], rows: list[Row], columns: str
) -> Float[ndarray, "f columns"]:
    """Rows as numbers.

    Args:
        path: the rows' file, for the error's sentence.
        rows: of the file.
        columns: their names, parted by spaces; each row must have as many.

    Raises:
        InputError: for no rows, a row of another length, and a word that is no finite number.
    """
    wanted = columns.split()
    if not rows:
        raise InputError(f"{path} holds no cameras; lines of '{columns}' were expected.")
    for row in rows:
        if len(row.words) != len(wanted):
            raise InputError(
                f"{path}, line {row.number} has {len(row.words)} columns instead of "
                f"{len(wanted)}: {columns}."
            )
    return np.array([[number(path, row.number, word) for word in row.words] for row in rows])
