"""`worldstereo memory surface`: a saved memory in, its surfaces as a coloured point cloud out."""

import argparse
from pathlib import Path

import numpy as np

from worldstereo_jax.cli.arguments import check_new
from worldstereo_jax.cli.memory_input import A_MEMORY, open_memory
from worldstereo_jax.cli.outputs import write_surface
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entry_cloud import CERTAIN, surface_cloud


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
    check_new(options.out, "--out", suffix=".ply")
    if not 0 <= options.least_confidence <= 1:
        raise InputError(f"--least-confidence {options.least_confidence} is not within 0 to 1")
    entries = open_memory(options.folder).memory.entries
    cloud = surface_cloud(
        entries, spacing=options.spacing, least_confidence=options.least_confidence
    )
    used = len(np.unique(cloud.entry))
    written = write_surface(options.out, cloud)
    print(f"{used:,} of {int(entries.valid.sum()):,} entries as {written:,} points")
    print(options.out)
