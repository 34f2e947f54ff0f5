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
