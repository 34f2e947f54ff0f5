"""A picture of a spatial-stereo memory: top view, coverage, correspondences and the block mask."""

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from worldstereo_jax.array_types import Array, Bool, UInt8, ndarray
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.evaluation.memory_report import MemoryReport, report_stride
from worldstereo_jax.evaluation.path_preview import previewed_views
from worldstereo_jax.evaluation.sheet_layout import figure_pixels
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.memory.correspondence import dense_correspondence
from worldstereo_jax.memory.masks import ViewSet, reference_block_mask, token_geometry
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory, bank_points

_MOST_POINTS = 30_000
_LINES = 24
# Views on each side of the mask drawn: more would be too fine to see.
_MASK_VIEWS = 3

_bank_points = jax.jit(bank_points, static_argnames="least_confidence")
_dense_correspondence = jax.jit(dense_correspondence)


def memory_picture(
    memory: SpatialStereoMemory, report: MemoryReport, *, title: str, seed: int = 0
) -> UInt8[ndarray, "height width 3"]:
    """Four panels, as colours in 0..255.

    The stored surface from above, coloured by confidence, with the cameras; which share of each
    view other views show; correspondences between the two views that share most, as lines; and
    which tokens of the newest views may attend to which of the oldest.

    Args:
        memory: the bank; at least one view must be stored.
        report: `report_memory` of it.
        title: a line on top.
        seed: of the points and lines chosen.
    """
    figure = Figure(figsize=(13, 9.5), facecolor="#faf9f6")
    # A folder's name may hold what is no character, or dollar signs, which are no formula there.
    name = title.encode("utf-8", "replace").decode()
    figure.suptitle(name, x=0.02, ha="left", fontsize=11, parse_math=False)
    axes = figure.subplots(2, 2)
    random = np.random.default_rng(seed)
    held = np.flatnonzero(np.asarray(memory.valid))
    _draw_from_above(axes[0, 0], memory, random)
    _draw_coverage(axes[0, 1], report)
    _draw_correspondences(axes[1, 0], memory, report, held, random)
    _draw_mask(axes[1, 1], memory, held)
    figure.tight_layout(rect=(0, 0, 1, 0.97))
    return figure_pixels(figure)


def _draw_from_above(axis: Axes, memory: SpatialStereoMemory, random) -> None:
    # Of some million pixels few are drawn: the others need no points.
    memory = previewed_views(memory, report_stride(*memory.depth.shape))
    cloud = _bank_points(memory, least_confidence=0.05)
    valid = np.flatnonzero(np.asarray(cloud.valid))
    chosen = random.permutation(valid)[:_MOST_POINTS]
    points = np.asarray(cloud.points)[chosen]
    confidence = np.asarray(memory.confidence).reshape(-1)[chosen]
    dots = axis.scatter(
        points[:, 0], points[:, 2], c=confidence, s=1, cmap="viridis", vmin=0, vmax=1
    )
    axis.figure.colorbar(dots, ax=axis, label="confidence", shrink=0.8)
    w2c = np.asarray(memory.w2c)
    centre = np.asarray(camera_centers(w2c))
    ahead = w2c[:, 2, :3]
    axis.quiver(centre[:, 0], centre[:, 2], ahead[:, 0], ahead[:, 2], color="#e2583e", width=0.004)
    if len(points):
        low, high = np.percentile(points[:, [0, 2]], [1, 99], axis=0)
        low, high = (
            np.minimum(low, centre[:, [0, 2]].min(0)),
            np.maximum(high, centre[:, [0, 2]].max(0)),
        )
        pad = 0.05 * (high - low).max() + 1e-6
        axis.set_xlim(low[0] - pad, high[0] + pad)
        axis.set_ylim(low[1] - pad, high[1] + pad)
    axis.set_aspect("equal")
    axis.set_title("surface from above (x, z), cameras in red", fontsize=10)


def _draw_coverage(axis: Axes, report: MemoryReport) -> None:
    image = axis.imshow(report.shared, vmin=0, vmax=1, cmap="magma")
    axis.figure.colorbar(image, ax=axis, label="share of known pixels", shrink=0.8)
    axis.set_xlabel("also shown by view")
    axis.set_ylabel("view")
    axis.set_title("what views show of each other", fontsize=10)


def _draw_correspondences(
    axis: Axes, memory: SpatialStereoMemory, report: MemoryReport, held, random
) -> None:
    axis.set_axis_off()
    apart = report.shared - np.diag(np.diag(report.shared))
    if len(held) < 2 or apart.max() <= 0:
        axis.set_title("no two views show the same surface", fontsize=10)
        return
    # Of the pairs that share much, the two that stand farthest apart say most.
    centre = np.asarray(camera_centers(np.asarray(memory.w2c)[held]))
    distance = np.linalg.norm(centre[:, None] - centre[None], axis=-1)
    score = np.where(apart >= 0.5 * apart.max(), apart * (distance + 1e-3), 0.0)
    i, j = np.unravel_index(int(np.argmax(score)), score.shape)
    a, b = int(held[i]), int(held[j])
    pixels, valid = _dense_correspondence(
        memory.depth[a],
        memory.w2c[a],
        memory.intrinsics[a],
        memory.depth[b],
        memory.w2c[b],
        memory.intrinsics[b],
    )
    width = memory.images.shape[2]
    axis.imshow(np.concatenate([to_uint8(memory.images[a]), to_uint8(memory.images[b])], axis=1))
    pixels = np.asarray(pixels)
    rows, columns = np.nonzero(np.asarray(valid))
    for n in random.permutation(len(rows))[:_LINES]:
        x, y = pixels[rows[n], columns[n]]
        axis.plot([columns[n], x - 0.5 + width], [rows[n], y - 0.5], linewidth=0.8, marker=".")
    axis.set_title(
        f"views {i} and {j}: {100 * report.shared[i, j]:.0f} % of the first is in the second",
        fontsize=10,
    )


def _draw_mask(axis: Axes, memory: SpatialStereoMemory, held) -> None:
    newest = held[-_MASK_VIEWS:]
    oldest = held[:_MASK_VIEWS]

    def views(chosen) -> ViewSet:
        fields = (memory.depth, memory.w2c, memory.intrinsics)
        depth, w2c, intrinsics = (jnp.asarray(np.asarray(field)[chosen]) for field in fields)
        return ViewSet(depth, w2c, intrinsics, jnp.asarray(np.ones(len(chosen), bool)))

    seen = np.asarray(_block_mask(views(newest), views(oldest)))
    count = seen.shape[-1] * len(oldest) // (len(oldest) + len(newest))
    cross = seen[0, 0, count:, :count]
    axis.imshow(cross, cmap="Greys", interpolation="nearest", aspect="auto")
    tokens = count // len(oldest)
    for edge in range(tokens, cross.shape[1], tokens):
        axis.axvline(edge - 0.5, color="#e2583e", linewidth=0.7)
    for edge in range(tokens, cross.shape[0], tokens):
        axis.axhline(edge - 0.5, color="#e2583e", linewidth=0.7)
    axis.set_xlabel(f"tokens of the {len(oldest)} oldest views")
    axis.set_ylabel(f"tokens of the {len(newest)} newest views")
    axis.set_title(f"who may attend to whom: {100 * cross.mean():.1f} % of the pairs", fontsize=10)


@jax.jit
def _block_mask(target: ViewSet, reference: ViewSet) -> Bool[Array, "1 1 q k"]:
    """Which tokens of both may attend to which, pair by pair."""
    mask = reference_block_mask(
        token_geometry(reference, target), token_geometry(target, reference)
    )
    return mask.dense()
