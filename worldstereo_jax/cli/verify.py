"""`worldstereo verify`: a folder of recorded official outputs against this package, file by file.

Exit code 0 when every file was compared and is within the tolerance, else 1.
"""

import argparse
import sys
from pathlib import Path

from worldstereo_jax.cli.arguments import ArgumentParser
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.verify import TOLERANCE, verify_folder


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="worldstereo verify", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", type=Path, metavar="DIR", help="folder of .npz and .safetensors")
    parser.add_argument(
        "--tolerance",
        type=_tolerance,
        default=TOLERANCE,
        metavar="X",
        help="largest error allowed, relative to an output's largest value (default: %(default)g)",
    )
    return parser


def run(options: argparse.Namespace) -> int:
    """Print a line per file as it is compared; return the exit code."""
    failed = count = 0
    for verdict in verify_folder(options.folder):
        print(verdict.line(options.tolerance), flush=True)
        count += 1
        failed += not verdict.passed(options.tolerance)
    if not count:
        print(
            f"worldstereo verify: {options.folder} holds no .npz or .safetensors file to compare",
            file=sys.stderr,
        )
        return 1
    print(f"{count - failed} of {count} files agree with the official code")
    return 1 if failed else 0


def _tolerance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise InputError(f"--tolerance is {text!r}, expected a number from 0 to below 1")
    return value
