"""`worldstereo convert`: official weights to an orbax checkpoint, or such a checkpoint back.

To orbax: SOURCE is a folder or hub id of a published checkpoint, TARGET a folder; run it again
after an interruption and it goes on. Back: SOURCE is such a folder, TARGET a .safetensors file.
"""

import argparse
from pathlib import Path

from worldstereo_jax.cli.arguments import ArgumentParser
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.conversion import convert_to_orbax, export_to_safetensors
from worldstereo_jax.interop.converted import is_converted


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="worldstereo convert", description=__doc__, allow_abbrev=False)
    parser.add_argument("source", metavar="SOURCE", help="what to convert")
    parser.add_argument("target", type=Path, metavar="TARGET", help="where to write")
    parser.add_argument(
        "--base", metavar="FOLDER_OR_ID", help="base model, instead of the one that SOURCE names"
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Convert in the direction that the target's name shows."""
    if options.target.suffix == ".safetensors":
        if not is_converted(Path(options.source)):
            raise InputError(
                f"{options.source}: is no folder that worldstereo convert wrote, so nothing can "
                "be exported from it"
            )
        if options.base is not None:
            raise InputError("--base has no use in an export; leave it out")
        export_to_safetensors(options.source, options.target)
        return
    for name in convert_to_orbax(options.source, options.target, base=options.base):
        print(f"without use, kept for the export: {name}")
