"""`worldstereo memory inspect`: what a saved memory holds, in figures and in a picture."""

import argparse
from pathlib import Path

import numpy as np

from worldstereo_jax.cli.arguments import ArgumentParser
from worldstereo_jax.data.images import write_uint8_image
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.memory_picture import memory_picture
from worldstereo_jax.evaluation.memory_report import MemoryReport, report_entries, report_memory
from worldstereo_jax.memory.entry_folder import entries_from_fields, is_entry_field
from worldstereo_jax.memory.folder import load_memory, load_optional_fields, model_of_memory
from worldstereo_jax.memory.global_geometric import GlobalGeometricMemory
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory

_BAR = 40


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="worldstereo memory", description=__doc__, allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="print what a memory holds and draw it")
    inspect.add_argument("folder", type=Path, metavar="DIR", help="the memory/ folder of a run")
    inspect.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="where to draw it, a PNG (default: memory.png beside the folder)",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Print the figures and write the picture."""
    model = model_of_memory(options.folder)
    points, stereo = load_memory(options.folder, model=model)
    optional = load_optional_fields(options.folder)
    picture = options.picture or options.folder.resolve().parent / "memory.png"
    if picture.is_dir():
        raise InputError(f"--picture {picture} is a folder; it must be a file to write")
    report = report_memory(stereo)
    print(describe(options.folder, model, points, stereo, report, optional))
    if report.views:
        write_uint8_image(
            picture, memory_picture(stereo, report, title=str(options.folder))[..., :3]
        )
        print(f"\n{picture}")


def describe(
    folder: Path,
    model: str,
    points: GlobalGeometricMemory,
    stereo: SpatialStereoMemory,
    report: MemoryReport,
    optional: dict[str, np.ndarray],
) -> str:
    """The figures as text, a section for each memory."""
    sources = ", ".join(f"{count} of clip {number}" for number, count in report.sources.items())
    height, width = stereo.images.shape[1:3]
    lines = [
        f"{folder}, made by model {model}",
        "",
        "spatial-stereo memory",
        f"  views       {report.views} of {stereo.capacity} ({sources or 'none'}), "
        f"{height} x {width} pixels, {int(stereo.overflow)} found no room",
    ]
    if report.views:
        shared = report.shared - np.eye(report.views, dtype=np.float32) * report.shared
        lines += [
            f"  known depth {100 * report.known.mean():.1f} % of the pixels",
            f"  overlap     the average view is shown to {100 * shared.max(1).mean():.0f} % by "
            "another one",
            f"  size        {report.bytes_per_view / 1e6:.2f} MB a view",
            "  confidence  of known pixels",
        ]
        lines += _bars(report.confidence)
    if "position" in optional:
        lines += _describe_entries(optional)
    for name, value in optional.items():
        if "position" in optional and is_entry_field(name):
            continue
        shape = " x ".join(map(str, value.shape))
        lines.append(f"  {name:<11} {value.dtype} {shape}, {value.nbytes / 1e6:.2f} MB")
    held = int(np.asarray(points.valid).sum())
    lines += [
        "",
        "global-geometric memory",
        f"  points      {held:,} of {points.capacity:,}, {int(points.overflow):,} found no room",
    ]
    return "\n".join(lines)


def _describe_entries(optional: dict[str, np.ndarray]) -> list[str]:
    """The figures of the surface entries among a folder's optional arrays."""
    report = report_entries(entries_from_fields(optional, capacity=len(optional["position"])))
    filled = ", ".join(
        f"{count:,} of {width} channels"
        for count, width in zip(report.levels, report.widths, strict=True)
    )
    seen = ", ".join(
        f"{int(count):,} by {number}" for number, count in enumerate(report.views) if count
    )
    return [
        f"  entries     {report.entries:,}, {report.overflow:,} found no room",
        f"  levels      {filled or 'none'}, the finest first",
        f"  seen by     {seen or 'none'} (entries by number of views)",
        f"  size        {report.bytes_per_entry} bytes an entry",
        "  confidence  of the entries",
        *_bars(report.confidence),
    ]


def _bars(histogram: np.ndarray) -> list[str]:
    """A histogram over 0..1 as lines of text."""
    most = max(int(histogram.max()), 1)
    return [
        f"    {i / len(histogram):.1f} {count:>9,} {'█' * round(_BAR * int(count) / most)}"
        for i, count in enumerate(histogram)
    ]
