"""`worldstereo memory`: what a saved memory holds, in figures, pictures and points; editing it."""

import argparse
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import UInt8, ndarray
from worldstereo_jax.cli.arguments import ArgumentParser, check_can_be_made
from worldstereo_jax.cli.memory_edit import add_edits
from worldstereo_jax.cli.memory_input import A_MEMORY, memory_folder
from worldstereo_jax.cli.memory_locate import add_locate
from worldstereo_jax.cli.memory_preview import add_preview
from worldstereo_jax.cli.memory_surface import add_surface
from worldstereo_jax.data.images import write_uint8_image
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.bank_agreement import (
    VERDICTS,
    agreement_picture,
    clip_agreement,
    entry_agreement,
)
from worldstereo_jax.evaluation.memory_picture import memory_picture
from worldstereo_jax.evaluation.memory_report import MemoryReport, report_entries, report_memory
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_codec import QuantisedEntries, restore_entries
from worldstereo_jax.memory.entry_folder import entries_from_fields, is_entry_field
from worldstereo_jax.memory.folder import load_memory, load_optional_fields, model_of_memory
from worldstereo_jax.memory.global_geometric import GlobalGeometricMemory
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory

_BAR = 40
_VIEWS = 4  # compared with the entries in the picture


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="worldstereo memory", description=__doc__, allow_abbrev=False)
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    inspect = actions.add_parser("inspect", help="print what a memory holds and draw it")
    inspect.add_argument("folder", **A_MEMORY)
    inspect.add_argument(
        "--picture",
        type=Path,
        metavar="FILE",
        help="where to draw it, a .png file (default: beside the folder, under its name); how its "
        "views agree with its entries is drawn beside it",
    )
    inspect.set_defaults(act=inspect_memory)
    add_surface(actions)
    add_preview(actions)
    add_locate(actions)
    add_edits(actions)
    return parser


def run(options: argparse.Namespace) -> None:
    """Do what was chosen."""
    options.act(options)


def inspect_memory(options: argparse.Namespace) -> None:
    """Print the figures and write the picture."""
    folder = memory_folder(options.folder)
    model = model_of_memory(folder)
    points, stereo = load_memory(folder, model=model)
    optional = load_optional_fields(folder)
    own = folder.resolve()
    picture = options.picture or own.with_name(f"{own.name}.png")
    if picture.is_dir():
        raise InputError(f"--picture {picture} is a folder; it must be a file to write")
    if picture.suffix.lower() != ".png":
        raise InputError(f"--picture {picture} must end in .png")
    check_can_be_made(picture, "--picture")
    report = report_memory(stereo)
    print(describe(folder, model, points, stereo, report, optional))
    if report.views:
        write_uint8_image(picture, memory_picture(stereo, report, title=str(folder)))
        print(f"\n{picture}")
    if report.views and "position" in optional:
        beside = picture.with_name(f"{picture.stem}_agreement.png")
        write_uint8_image(beside, _draw_agreement(stereo, optional))
        print(beside)


def describe(
    folder: Path,
    model: str,
    points: GlobalGeometricMemory,
    stereo: SpatialStereoMemory,
    report: MemoryReport,
    optional: dict[str, np.ndarray],
) -> str:
    """The figures as text, a section for each memory."""
    # Numbers in the memory only tell clips apart; here they count the clips that are left.
    later = (count for number, count in report.sources.items() if number > 0)
    sources = ", ".join(
        ([f"{report.sources[0]} of the beginning"] if 0 in report.sources else [])
        + [f"{count} of clip {place}" for place, count in enumerate(later, start=1)]
    )
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
    verdict = np.asarray(entry_agreement(_held_entries(optional)).verdict)
    counts = np.bincount(verdict[verdict >= 0], minlength=len(VERDICTS))
    verdicts = ", ".join(
        f"{count:,} {name}" for name, count in zip(VERDICTS, counts, strict=True) if count
    )
    return [
        f"  entries     {report.entries:,}, {report.overflow:,} found no room",
        f"  levels      {filled or 'none'}, the finest first",
        f"  seen by     {seen or 'none'} (entries by number of views)",
        f"  size        {report.bytes_per_entry} bytes an entry",
        f"  verdicts    {verdicts or 'none'}",
        "  confidence  of the entries",
        *_bars(report.confidence),
    ]


def _held_entries(optional: dict[str, np.ndarray]) -> EntryBank:
    """The folder's entries with float32 features."""
    bank = entries_from_fields(optional, capacity=len(optional["position"]))
    return restore_entries(bank) if isinstance(bank, QuantisedEntries) else bank


def _draw_agreement(
    stereo: SpatialStereoMemory, optional: dict[str, np.ndarray]
) -> UInt8[ndarray, "height width 3"]:
    """Stored views beside the entries seen from them, and where both differ (row S25)."""
    held = np.flatnonzero(np.asarray(stereo.valid))
    chosen = np.unique(held[np.linspace(0, len(held) - 1, _VIEWS).astype(int)])
    views = stereo.images[chosen]
    cameras = stereo.w2c[chosen], stereo.intrinsics[chosen]
    found = clip_agreement(views, *cameras, _held_entries(optional))
    names = [f"view {number}" for number in chosen]
    return agreement_picture(np.asarray(views), found, names=names)


def _bars(histogram: np.ndarray) -> list[str]:
    """A histogram over 0..1 as lines of text."""
    most = max(int(histogram.max()), 1)
    return [
        f"    {i / len(histogram):.1f} {count:>9,} {'█' * round(_BAR * int(count) / most)}"
        for i, count in enumerate(histogram)
    ]
