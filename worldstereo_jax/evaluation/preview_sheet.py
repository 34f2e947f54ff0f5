"""A preview of a camera path as a table, small pictures, and a sheet with its curves."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from worldstereo_jax.array_types import Bool, Float, UInt8, ndarray
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.evaluation.contact_sheet import COVERED
from worldstereo_jax.evaluation.path_preview import FrameFigures, PathPreview
from worldstereo_jax.evaluation.sheet_layout import (
    PAPER,
    Row,
    Section,
    evenly_chosen,
    figure_pixels,
    lay_out,
)

UNKNOWN = (236, 20, 180)
"""Colour of what no memory shows: like nothing in a scene, among whose colours it stands."""
KNOWN = (30, 150, 60)
"""Colour of a frame that is known wholly."""
WIDEST_DEGREES = 60.0
"""Angle to the nearest stored view that is drawn brightest."""
_ANGLES = "viridis"
_BEHIND = 0.02  # share of a frame that shows backs of surfaces, from which on it is said
_DOTS_PER_INCH = 100
_CURVES = {
    "known": ("either memory", "#222226"),
    "points": ("global points", "#3b7dd8"),
    "entries": ("surface entries", "#3f9e5b"),
    "views": ("stored views", "#c98a1b"),
}


def preview_table(figures: Sequence[FrameFigures]) -> str:
    """A line for each frame, below a heading of two lines."""
    lines = [
        "       share of pixels shown by         seen from    to the nearest view        nearest",
        "frame  points entries  views  either    behind       angle   distance   view    surface",
    ]
    for number, frame in enumerate(figures):
        shares = (frame.points, frame.entries, frame.views, frame.known)
        told = "".join(f"{100 * share:6.1f} %" for share in shares)
        seen = np.isfinite(frame.angle)
        angle = f"{frame.angle:8.1f}° {frame.distance:10.3f}" if seen else f"{'-':>9} {'-':>10}"
        view = str(frame.view) if frame.view >= 0 else "-"
        near = f"{frame.nearest:.3f}" if np.isfinite(frame.nearest) else "-"
        line = f"{number:5} {told}  {100 * frame.behind:6.1f} %   {angle} {view:>6} {near:>10}"
        lines.append(line + ("  through a surface" if frame.through else ""))
    return "\n".join(lines)


def preview_summary(figures: Sequence[FrameFigures]) -> str:
    """A few sentences: how much is known, how far the views are, what is in the way."""
    known = np.array([frame.known for frame in figures])
    least = int(known.argmin())
    said = [
        f"The memories show {100 * known.mean():.0f} % of the path's pixels, "
        f"least in frame {least} ({100 * known[least]:.0f} %)."
    ]
    angles = np.array([frame.angle for frame in figures])
    if np.isfinite(angles).any():
        widest = int(np.nanargmax(angles))
        said.append(
            f"Stored views look at it from up to {angles[widest]:.0f}° aside (frame {widest})."
        )
    behind = np.array([frame.behind for frame in figures])
    if behind.max() > _BEHIND:
        most = int(behind.argmax())
        said.append(f"{100 * behind[most]:.0f} % of frame {most} are backs of surfaces.")
    through = [number for number, frame in enumerate(figures) if frame.through]
    if through:
        said.append(
            f"The path runs through a stored surface before frame {', '.join(map(str, through))}."
        )
    else:
        said.append("It runs through no stored surface.")
    return " ".join(said)


def known_colours(known: Float[ndarray, "f"]) -> UInt8[ndarray, "f 3"]:
    """Of shares, 0 to 1: from the colour of what is unknown to a green."""
    shades = [np.interp(known, [0, 1], pair) for pair in zip(UNKNOWN, KNOWN, strict=True)]
    return np.stack(shades, axis=-1).astype(np.uint8)


def frame_label(number: int, figures: FrameFigures) -> str:
    """A frame's figures in a few words."""
    label = f"frame {number}: {100 * figures.known:.0f} % known"
    if np.isfinite(figures.angle):
        label += f", {figures.angle:.0f}° from view {figures.view}"
    return label + (", through a surface" if figures.through else "")


def show_holes(
    colours: Float[ndarray, "*f h w 3"], seen: Bool[ndarray, "*f h w"]
) -> UInt8[ndarray, "*f h w 3"]:
    """Pictures with what is not seen in the colour of holes."""
    return np.where(seen[..., None], to_uint8(colours), np.array(UNKNOWN, np.uint8))


def known_pictures(preview: PathPreview) -> UInt8[ndarray, "f h w 3"]:
    """What either memory shows, the entries before the points, with its holes."""
    colours = np.where(preview.entries_seen[..., None], preview.entries, preview.points)
    return show_holes(colours, preview.entries_seen | preview.points_seen)


def angle_pictures(preview: PathPreview) -> UInt8[ndarray, "f h w 3"]:
    """The angle to the nearest stored view: dark where it is small, bright from `WIDEST_DEGREES`
    on; light grey where no view shows the surface, the colour of holes where none is known.
    """
    level = np.degrees(np.where(preview.views_seen, preview.angle, 0.0)) / WIDEST_DEGREES
    colours = matplotlib.colormaps[_ANGLES](np.clip(level, 0, 1), bytes=True)[..., :3]
    known = preview.entries_seen | preview.points_seen
    unseen = np.where(known[..., None], np.array(COVERED, np.uint8), np.array(UNKNOWN, np.uint8))
    return np.where(preview.views_seen[..., None], colours, unseen)


def preview_sheet(
    preview: PathPreview, figures: Sequence[FrameFigures], *, columns: int = 6, title: str = ""
) -> UInt8[ndarray, "height width 3"]:
    """A picture, 0..255: evenly chosen frames as both memories show them, with their holes, and the
    angle to the stored views; below, the figures of all frames as curves.

    Args:
        preview: of at least one frame.
        figures: `frame_figures` of it.
        columns: most frames drawn, first and last included.
        title: a line on top, wrapped where it is long.
    """
    chosen = evenly_chosen(len(figures), columns)
    part = PathPreview(*(field[chosen] for field in preview[:-1]), clearance=preview.clearance)
    rows = [
        Row("points", show_holes(part.points, part.points_seen)),
        Row("entries", show_holes(part.entries, part.entries_seen)),
        Row("angle", angle_pictures(part)),
    ]
    captions = [
        f"frame {i}: {100 * figures[i].known:.0f} %" + (" ×" if figures[i].through else "")
        for i in chosen
    ]
    sheet = lay_out([Section(rows)], captions, title)
    return np.concatenate([sheet, _curves(figures, sheet.shape[1])])


def _curves(figures: Sequence[FrameFigures], width: int) -> UInt8[ndarray, "height width 3"]:
    """Shares over the frames beside angle and distance; where a surface is met, marked."""
    size = (width / _DOTS_PER_INCH, 3.2)
    paper = "#{:02x}{:02x}{:02x}".format(*PAPER)
    figure = Figure(figsize=size, dpi=_DOTS_PER_INCH, facecolor=paper, layout="constrained")
    left, right = figure.subplots(1, 2)
    number = np.arange(len(figures))
    for name, (label, colour) in _CURVES.items():
        shares = [100 * getattr(frame, name) for frame in figures]
        left.plot(number, shares, ".-", color=colour, label=label)
    left.plot(number, [100 * frame.behind for frame in figures], ":", color="#e2583e", label="back")
    left.set_ylim(-3, 103)
    left.set_ylabel("% of the pixels")
    right.plot(number, [frame.angle for frame in figures], ".-", color="#7a4fb5")
    right.set_ylabel("° to the nearest view, median")
    right.set_ylim(bottom=0)
    apart = right.twinx()
    apart.plot(number, [frame.distance for frame in figures], ".--", color="#8b8b90")
    apart.set_ylabel("distance to it (dashed)")
    apart.set_ylim(bottom=0)
    for axis in (left, right):
        for at in (i for i, frame in enumerate(figures) if frame.through):
            axis.axvspan(at - 1, at, color="#e2583e", alpha=0.25, linewidth=0)
        axis.set_xlim(-0.3, len(figures) - 0.7)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.set_xlabel("frame (shaded: through a surface)")
        axis.set_facecolor(paper)
    left.legend(fontsize=8, loc="lower left")
    scale = ScalarMappable(Normalize(0, WIDEST_DEGREES), _ANGLES)
    figure.colorbar(scale, ax=right, label="° in the pictures (grey: no view)", pad=0.12)
    drawn = figure_pixels(figure)
    # Rounding of inches may miss the sheet's width by a pixel.
    whole = np.full((drawn.shape[0], width, 3), PAPER, np.uint8)
    shared = min(width, drawn.shape[1])
    whole[:, :shared] = drawn[:, :shared]
    return whole
