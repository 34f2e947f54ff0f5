"""The contact sheet: start, renders, hole masks, result and depth of a clip in one picture."""

import matplotlib
import numpy as np

from worldstereo_jax.array_types import Array, Float, UInt8, ndarray
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.evaluation.sheet_layout import (
    PAPER,
    Panel,
    Row,
    Section,
    evenly_chosen,
    lay_out,
)

HOLE = (226, 88, 62)
COVERED = (232, 232, 228)
_COLOUR_MAP = "Spectral_r"


def contact_sheet(
    image: Float[Array | ndarray, "h w 3"],
    renders: Float[Array | ndarray, "f h w 3"],
    masks: Float[Array | ndarray, "f h w 1"],
    result: Float[Array | ndarray, "f h w 3"],
    depth: Float[Array | ndarray, "f h w"] | None = None,
    *,
    columns: int = 5,
    title: str = "",
) -> UInt8[ndarray, "height width 3"]:
    """A picture, 0..255, that shows how a clip came about.

    Over `columns` evenly chosen frames (first and last included) stand, above, the memory's renders
    and their hole masks (holes coloured) beside the picture the clip starts from; below, the result
    and its depth beside the last frame of the result.

    image, renders, result: colours in [-1, 1]. masks: 1 = hole. depth: camera z in world units, 0
    where unknown (drawn as paper); its row is left out when None. title: a line on top, wrapped
    where it is long.
    """
    chosen = evenly_chosen(np.shape(result)[0], columns)
    clip = to_uint8(result)
    memory = [
        Row("render", to_uint8(renders)[chosen]),
        Row("holes", colour_mask(masks)[chosen]),
    ]
    output = [Row("result", clip[chosen])]
    if depth is not None:
        output.append(Row("depth", colour_depth(depth)[chosen]))
    sections = [
        Section(memory, Panel("start", to_uint8(image))),
        Section(output, Panel(f"result, frame {len(clip) - 1}", clip[-1])),
    ]
    return lay_out(sections, [f"frame {i}" for i in chosen], title)


def colour_mask(masks: Float[Array | ndarray, "f h w 1"]) -> UInt8[ndarray, "f h w 3"]:
    """Masks (1 = hole) as flat colours: holes red, cover light."""
    hole = np.asarray(masks) > 0.5
    return np.where(hole, np.array(HOLE, np.uint8), np.array(COVERED, np.uint8))


def colour_depth(depth: Float[Array | ndarray, "f h w"]) -> UInt8[ndarray, "f h w 3"]:
    """Depth as colours, near warm and far cold, one scale for the clip; unknown depth is paper.

    Disparity (1/depth) between its 2nd and 98th percentile spans the colour map, so that a few far
    pixels do not flatten the picture.
    """
    depth = np.asarray(depth, np.float32)
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        return np.broadcast_to(np.array(PAPER, np.uint8), (*depth.shape, 3)).copy()
    disparity = np.where(known, 1 / np.where(known, depth, 1), 0)
    low, high = np.percentile(disparity[known], [2, 98])
    level = np.clip((disparity - low) / max(float(high - low), 1e-6), 0, 1)
    colours = matplotlib.colormaps[_COLOUR_MAP](level, bytes=True)[..., :3]
    return np.where(known[..., None], colours, np.array(PAPER, np.uint8)).astype(np.uint8)
