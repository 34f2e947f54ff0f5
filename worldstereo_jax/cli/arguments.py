"""Reading command lines: every mistake ends in one sentence."""

import argparse
import os
from pathlib import Path
from typing import NoReturn

from worldstereo_jax.errors import InputError

LARGEST_SEED = 2**32 - 1


class ArgumentParser(argparse.ArgumentParser):
    """An argument parser that raises `InputError` instead of printing its usage."""

    def error(self, message: str) -> NoReturn:
        """Raise the sentence that argparse would print below the usage."""
        raise InputError(f"{message} (see {self.prog} --help)")


def seed(text: str) -> int:
    """A seed, 0 .. 2^32 - 1; a type for `add_argument`."""
    return _whole_number(text, 0, LARGEST_SEED)


def count(text: str) -> int:
    """A whole number of at least 1; a type for `add_argument`."""
    return _whole_number(text, 1, 1_000_000)


def check_can_be_made(path: Path, argument: str) -> None:
    """Refuse a file or folder for which there is no writable folder.

    Args:
        path: to be written; its folders may be missing.
        argument: that names it.

    Raises:
        InputError: naming the argument and what is in the way.
    """
    nearest = next(parent for parent in path.resolve().parents if parent.exists())
    if not nearest.is_dir():
        raise InputError(f"{argument} {path} cannot be made: {nearest} is a file")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise InputError(f"{argument} {path} cannot be made: {nearest} is not writable")


def check_new(path: Path, argument: str, *, suffix: str | None = None) -> None:
    """Refuse a result that would replace what is there, or that cannot be made.

    Args:
        path: to be written.
        argument: that names it.
        suffix: in which it must end, in lower or upper case; None for any.

    Raises:
        InputError: naming the argument and what is in the way.
    """
    if suffix is not None and path.suffix.lower() != suffix:
        raise InputError(f"{argument} {path} must end in {suffix}")
    if path.exists():
        raise InputError(f"{argument} {path} is there already; name a new one")
    check_can_be_made(path, argument)


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of "480x832".

    Raises:
        InputError: when the text is no such size.
    """
    parts = text.split("x")
    if len(parts) != 2 or not all(part.isdecimal() and int(part) > 0 for part in parts):
        raise InputError(f"--size is {text!r}, expected height x width such as 480x832")
    return int(parts[0]), int(parts[1])


def _whole_number(text: str, lowest: int, highest: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = None
    if value is None or not lowest <= value <= highest:
        raise argparse.ArgumentTypeError(
            f"expected a whole number from {lowest} to {highest}, not {text!r}"
        )
    return value
