"""`worldstereo memory surface`: a saved memory in, its surfaces as a coloured point cloud out."""

import argparse
from pathlib import Path

import numpy as np

from worldstereo_jax.cli.arguments import check_can_be_made
from worldstereo_jax.cli.memory_input import A_MEMORY, memory_folder, read_any_memory
from worldstereo_jax.cli.outputs import write_surface
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entry_cloud import CERTAIN, surface_cloud
from worldstereo_jax.memory.folder import model_of_memory


def add_surface(actions) -> None:
    """Add the command to the subparsers of `worldstereo memory`."""
    what = "write the surfaces that the entries make up as a PLY file of coloured points"
    parser = actions.add_parser("surface", help=what, description=what)
    parser.add_argument("folder", **A_MEMORY)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .ply file")
    parser.add_argument(
        "--spacing",
        type=float,
        metavar="S",
        help="greatest distance between points of a surface, in the units of the world (default: "
        "one pixel of the view that saw it)",
    )
    parser.add_argument(
        "--least-confidence",
        type=float,
        default=CERTAIN,
        metavar="C",
        help="of the entries that count, 0 to 1 (default: %(default)s); what the given image put "
        "there counts from a lower one",
    )
    parser.set_defaults(act=_write)


def _write(options: argparse.Namespace) -> None:
    """Write the cloud, and say what went into it."""
    if options.out.suffix.lower() != ".ply":
        raise InputError(f"--out {options.out} must end in .ply")
    if options.out.exists():
        raise InputError(f"--out {options.out} is there already; name a new file")
    check_can_be_made(options.out, "--out")
    if not 0 <= options.least_confidence <= 1:
        raise InputError(f"--least-confidence {options.least_confidence} is not within 0 to 1")
    folder = memory_folder(options.folder)
    entries = read_any_memory(folder, model_of_memory(folder)).entries
    cloud = surface_cloud(
        entries, spacing=options.spacing, least_confidence=options.least_confidence
    )
    used = len(np.unique(cloud.entry))
    written = write_surface(options.out, cloud)
    print(f"{used:,} of {int(entries.valid.sum()):,} entries as {written:,} points")
    print(options.out)
