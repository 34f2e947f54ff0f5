"""How two stored views see the same surface: rays in space, lines between pictures (row S8)."""

import typing

import jax
import matplotlib
import numpy as np
from PIL import Image, ImageDraw

from worldstereo_jax.array_types import Array, Bool, Float, UInt8, ndarray
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.geometry.points import depth_to_points
from worldstereo_jax.memory.correspondence import dense_correspondence
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory


class Rays(typing.NamedTuple):
    """Correspondences of two views: segments [n, 2, 3] from each camera to the surface point that
    its own depth gives, and their colours [n, 2, 3]; share of the first view's pixels with depth
    that the second shows; picture of both views side by side with the same matches.
    """

    segments: Float[ndarray, "n 2 3"]
    colors: UInt8[ndarray, "n 2 3"]
    share: float
    picture: UInt8[ndarray, "h two_w 3"]


def correspondence_rays(stereo: SpatialStereoMemory, a: int, b: int, *, most: int = 60) -> Rays:
    """How two stored views see the same surface (row S8).

    Where both depths agree, the two rays of a match meet.

    Args:
        stereo: the bank.
        a, b: slots of two stored views.
        most: matches shown, evenly chosen.
    """
    views = jax.tree.map(np.asarray, (stereo.depth, stereo.w2c, stereo.intrinsics))
    one, other = (tuple(field[i] for field in views) for i in (a, b))
    pixels, valid, points, points_b = (np.asarray(x) for x in _match(one, other))
    rows, columns = _spread_matches(valid, most)
    there = np.floor(pixels[rows, columns]).astype(int)
    ends_a, ends_b = points[rows, columns], points_b[there[:, 1], there[:, 0]]
    starts = [
        np.broadcast_to(np.asarray(camera_centers(view[1])), ends_a.shape) for view in (one, other)
    ]
    segments = np.concatenate(
        [np.stack([start, end], 1) for start, end in zip(starts, (ends_a, ends_b), strict=True)]
    )
    hue = matplotlib.colormaps["hsv"](np.linspace(0, 0.9, max(len(rows), 1)), bytes=True)[:, :3]
    hue = hue[: len(rows)]
    colors = np.broadcast_to(np.concatenate([hue, hue])[:, None], segments.shape).astype(np.uint8)
    known = int((one[0] > 0).sum())
    pair = np.concatenate([to_uint8(stereo.images[i]) for i in (a, b)], axis=1)
    matches = (
        np.concatenate([columns[:, None] + 0.5, rows[:, None] + 0.5], 1),
        pixels[rows, columns],
    )
    return Rays(segments, colors, valid.sum() / max(known, 1), _draw_matches(pair, *matches, hue))


@jax.jit
def _match(one: tuple[Array, ...], other: tuple[Array, ...]) -> tuple[Array, ...]:
    """`dense_correspondence` of two views, and the surface points of both."""
    return (*dense_correspondence(*one, *other), depth_to_points(*one), depth_to_points(*other))


def _spread_matches(valid: Bool[ndarray, "h w"], most: int) -> tuple[ndarray, ndarray]:
    """Rows and columns of at most `most` valid pixels, spread over the picture."""
    rows, columns = np.nonzero(valid)
    # Every so many-th along a curve through all of them would follow columns: the golden ratio
    # visits a row's pixels all over.
    order = np.argsort(np.mod(np.arange(len(rows)) * 0.6180339887, 1.0))[:most]
    return rows[order], columns[order]


def _draw_matches(
    pair: UInt8[ndarray, "h two_w 3"],
    left: Float[ndarray, "n 2"],
    right: Float[ndarray, "n 2"],
    colors: UInt8[ndarray, "n 3"],
) -> UInt8[ndarray, "h two_w 3"]:
    picture = Image.fromarray(pair)
    draw = ImageDraw.Draw(picture)
    half = pair.shape[1] // 2
    for start, end, colour in zip(left, right, colors, strict=True):
        draw.line([*start.tolist(), end[0] + half, end[1]], fill=tuple(colour.tolist()))
    return np.asarray(picture)
