"""A located photograph beside what it was located by, for a person to judge."""

import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import ConnectionPatch

from worldstereo_jax.array_types import Array, Float, UInt8, ndarray
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.evaluation.bank_agreement import clip_agreement
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_pose import LocatedCamera
from worldstereo_jax.memory.entry_views import has_view
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory

_LINES = 32
_AGREES, _DISAGREES = "#3ddc84", "#e0523f"


def location_picture(
    photo: Float[ndarray, "h w 3"],
    intrinsics: Float[Array | ndarray, "3 3"],
    located: LocatedCamera,
    entries: EntryBank,
    stereo: SpatialStereoMemory,
    view: int,
    *,
    title: str,
) -> UInt8[ndarray, "height width 4"]:
    """Matches with a stored view, and the memory as the located camera sees it; with alpha.

    Above: places in the photograph, those that agree with the pose joined to where the same
    entries are in the stored view; from each a line leads to where the pose shows its entry. Below:
    the photograph, the memory from the pose found, and their difference: edges that are in both
    places at once vanish in it where the pose is right.

    Args:
        photo: in [-1, 1], as it was located.
        intrinsics: of the photograph, pixels.
        located: from `locate_camera`.
        entries, stereo: the memory.
        view: number of the stored view that is drawn.
        title: a line on top.
    """
    height, width = photo.shape[:2]
    rows = height / width, height / width
    figure = Figure(figsize=(13, 1.4 + 6.2 * rows[0] + 4.2 * rows[1]), facecolor="#faf9f6")
    canvas = FigureCanvasAgg(figure)
    # A file's name may hold what is no character, or dollar signs, which are no formula there.
    name = title.encode("utf-8", "replace").decode()
    figure.suptitle(name, x=0.02, ha="left", fontsize=11, parse_math=False)
    upper, lower = figure.subfigures(2, 1, height_ratios=(6.2, 4.2))
    for part in (upper, lower):
        part.set_facecolor("none")
    _draw_matches(upper.subplots(1, 2), photo, intrinsics, located, entries, stereo, view)
    _draw_agreement(lower.subplots(1, 3), photo, intrinsics, located, entries)
    for part in (upper, lower):
        part.subplots_adjust(left=0.02, right=0.98, top=0.9, bottom=0.02, wspace=0.03)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba()).copy()


def _draw_matches(
    axes: ndarray,
    photo: Float[ndarray, "h w 3"],
    intrinsics: Float[Array | ndarray, "3 3"],
    located: LocatedCamera,
    entries: EntryBank,
    stereo: SpatialStereoMemory,
    view: int,
) -> None:
    inlier, matched = np.asarray(located.pose.inlier), np.asarray(located.matched)
    pixels = np.asarray(located.pixels)
    points = entries.position[located.entry]
    shown = np.asarray(project(points, located.pose.w2c, intrinsics)[0])
    stored, _ = project(points, stereo.w2c[view], stereo.intrinsics[view])
    seen = np.asarray(has_view(entries.views[located.entry], jnp.int32(view)))
    _show(axes[0], photo, f"{inlier.sum()} of {matched.sum()} matches agree (green)")
    _show(axes[1], np.asarray(stereo.images[view]), f"stored view {view}")
    for good, colour in ((~inlier, _DISAGREES), (inlier, _AGREES)):
        chosen = matched & good
        axes[0].scatter(*pixels[chosen].T, s=7, color=colour, linewidths=0)
    axes[0].plot(*np.stack([pixels[inlier], shown[inlier]]).transpose(2, 0, 1), color="w", lw=0.8)
    lines = np.flatnonzero(inlier & seen)
    # From left to right, so that neighbouring lines are told apart by their colours.
    lines = lines[np.argsort(pixels[lines, 0])]
    lines = lines[np.unique(np.linspace(0, len(lines) - 1, min(_LINES, len(lines))).astype(int))]
    for number, line in enumerate(lines):
        colour = f"C{number % 10}"
        here, there = ((float(x), float(y)) for x, y in (pixels[line], np.asarray(stored[line])))
        joined = ConnectionPatch(
            here, there, coordsA="data", coordsB="data", axesA=axes[0], axesB=axes[1],
            color=colour, lw=0.8, alpha=0.9,
        )  # fmt: skip
        axes[1].add_artist(joined)
        axes[1].scatter(*there, s=9, color=colour, linewidths=0)


def _draw_agreement(
    axes: ndarray,
    photo: Float[ndarray, "h w 3"],
    intrinsics: Float[Array | ndarray, "3 3"],
    located: LocatedCamera,
    entries: EntryBank,
) -> None:
    pose = located.pose.w2c[None], jnp.asarray(intrinsics)[None]
    found = clip_agreement(jnp.asarray(photo)[None], *pose, entries)
    compared = np.asarray(found.compared[0])
    away = np.where(compared, np.asarray(found.difference[0]), np.nan)
    mean = np.nanmean(away) if compared.any() else np.nan
    _show(axes[0], photo, "the photograph")
    _show(axes[1], np.asarray(found.drawn[0]), "the memory from there")
    axes[2].imshow(away, cmap="magma", vmin=0.0, vmax=0.5, extent=_extent(photo))
    axes[2].set_title(f"difference, mean {mean:.3f}", fontsize=9, loc="left")
    axes[2].set_axis_off()


def _show(axis: Axes, image: Float[ndarray, "h w 3"], title: str) -> None:
    axis.imshow(to_uint8(image), extent=_extent(image))
    axis.set_title(title, fontsize=9, loc="left")
    axis.set_axis_off()
    axis.set_autoscale_on(False)


def _extent(image: Float[ndarray, "h w 3"]) -> tuple[float, float, float, float]:
    """Centres of pixels lie at +0.5."""
    return 0.0, float(image.shape[1]), float(image.shape[0]), 0.0
