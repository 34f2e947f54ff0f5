"""The comparison sheet: the same frames of several clips below one another, and how they differ."""

from collections.abc import Mapping

import matplotlib
import numpy as np

from worldstereo_jax.array_types import Array, Float, UInt8, ndarray
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.sheet_layout import Row, Section, evenly_chosen, lay_out

LARGEST_ERROR = 0.25
"""Mean difference over the channels, as a share of the range of colours, that is drawn darkest."""
_COLOUR_MAP = "YlOrRd"


def comparison_sheet(
    videos: Mapping[str, Float[Array | ndarray, "f h w 3"]],
    *,
    reference: str | None = None,
    columns: int = 5,
    title: str = "",
) -> UInt8[ndarray, "height width 3"]:
    """A picture, 0..255, with one row per clip: `columns` evenly chosen frames, ends included.

    videos: label -> colours in [-1, 1], all of one shape. reference: label of the clip that the
    others' errors are drawn against in a second block of rows (`error_colours`); no such block
    when None. title: a line on top, wrapped where it is long.

    Raises InputError when there is no clip, when shapes differ, or for an unknown reference.
    """
    if not videos:
        raise InputError("a comparison sheet needs at least one clip")
    shapes = {label: np.shape(video) for label, video in videos.items()}
    first = next(iter(shapes))
    for label, shape in shapes.items():
        if shape != shapes[first]:
            raise InputError(f"clip {label!r} has shape {shape}, but {first!r} has {shapes[first]}")
    chosen = evenly_chosen(shapes[first][0], columns)
    picked = {label: np.asarray(video)[chosen] for label, video in videos.items()}
    sections = [Section([Row(label, to_uint8(video)) for label, video in picked.items()])]
    if reference is not None:
        if reference not in videos:
            raise InputError(f"there is no clip {reference!r} to compare with")
        others = {label: video for label, video in picked.items() if label != reference}
        rows = [
            Row(f"error, {label}", error_colours(video, picked[reference]))
            for label, video in others.items()
        ]
        if rows:
            sections.append(Section(rows))
    return lay_out(sections, [f"frame {i}" for i in chosen], title)


def error_colours(
    video: Float[Array | ndarray, "f h w 3"], truth: Float[Array | ndarray, "f h w 3"]
) -> UInt8[ndarray, "f h w 3"]:
    """The difference of two clips as colours: pale where equal, dark red where far.

    Mean absolute difference over the channels; `LARGEST_ERROR` and more is darkest.
    """
    difference = np.abs(np.asarray(video, np.float32) - np.asarray(truth, np.float32))
    level = np.clip(difference.mean(-1) / (2 * LARGEST_ERROR), 0, 1)
    return matplotlib.colormaps[_COLOUR_MAP](level, bytes=True)[..., :3]
