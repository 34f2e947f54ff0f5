"""The contact sheet: input, renders, hole masks, result and depth of a clip in one picture."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from worldstereo_jax.array_types import Array, Float, UInt8, ndarray

_PAPER = (250, 249, 246)
_INK = (34, 34, 38)
_QUIET = (120, 120, 126)
_HOLE = (226, 88, 62)
_COVERED = (232, 232, 228)
_MARGIN = 24
_GAP = 8
_CELL_WIDTH = 224
_SECTION_GAP = 32
_COLOUR_MAP = "Spectral_r"


@dataclasses.dataclass(frozen=True)
class Row:
    """One strip of pictures with its caption.

    Attributes:
        label: the caption, one or two words.
        frames: colours [f, h, w, 3] in 0..255.
    """

    label: str
    frames: UInt8[ndarray, "f h w 3"]


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
    and their hole masks (holes coloured) beside the input image; below, the result and its depth
    beside the last frame of the result.

    image, renders, result: colours in [-1, 1]. masks: 1 = hole. depth: camera z in world units, 0
    where unknown (drawn as paper); its row is left out when None. title: a line on top, wrapped
    where it is long.
    """
    chosen = evenly_chosen(np.shape(result)[0], columns)
    clip = _colours(result)
    memory = [
        Row("render", _colours(renders)[chosen]),
        Row("holes", colour_mask(masks)[chosen]),
    ]
    output = [Row("result", clip[chosen])]
    if depth is not None:
        output.append(Row("depth", colour_depth(depth)[chosen]))
    panels = [("input", _colours(image)), (f"result, frame {len(clip) - 1}", clip[-1])]
    return lay_out(panels, [memory, output], [f"frame {i}" for i in chosen], title)


def evenly_chosen(total: int, count: int) -> list[int]:
    """At most `count` frame numbers out of `total`, evenly spaced, first and last included."""
    return sorted({int(i) for i in np.round(np.linspace(0, total - 1, min(count, total)))})


def colour_mask(masks: Float[Array | ndarray, "f h w 1"]) -> UInt8[ndarray, "f h w 3"]:
    """Masks (1 = hole) as flat colours: holes red, cover light."""
    hole = np.asarray(masks) > 0.5
    return np.where(hole, np.array(_HOLE, np.uint8), np.array(_COVERED, np.uint8))


def colour_depth(depth: Float[Array | ndarray, "f h w"]) -> UInt8[ndarray, "f h w 3"]:
    """Depth as colours, near warm and far cold, one scale for the clip; unknown depth is paper.

    Disparity (1/depth) between its 2nd and 98th percentile spans the colour map, so that a few far
    pixels do not flatten the picture.
    """
    depth = np.asarray(depth, np.float32)
    known = np.isfinite(depth) & (depth > 0)
    if not known.any():
        return np.broadcast_to(np.array(_PAPER, np.uint8), (*depth.shape, 3)).copy()
    disparity = np.where(known, 1 / np.where(known, depth, 1), 0)
    low, high = np.percentile(disparity[known], [2, 98])
    level = np.clip((disparity - low) / max(float(high - low), 1e-6), 0, 1)
    colours = matplotlib.colormaps[_COLOUR_MAP](level, bytes=True)[..., :3]
    return np.where(known[..., None], colours, np.array(_PAPER, np.uint8)).astype(np.uint8)


def lay_out(
    panels: Sequence[tuple[str, UInt8[ndarray, "h w 3"]]],
    sections: Sequence[Sequence[Row]],
    captions: Sequence[str],
    title: str,
) -> UInt8[ndarray, "height width 3"]:
    """Sections of captioned rows below one another, each with one large picture at its left.

    panels: caption and picture of each section, drawn at the height of two rows or lower.
    sections: rows of each section; each row holds as many frames as there are `captions`, which
    stand above the columns.
    """
    text, small = _font(17), _font(14)
    cell = _cell_size(sections[0][0].frames)
    panel_width = 2 * cell[0] + _GAP
    label_width = max(text.getlength(row.label) for rows in sections for row in rows)
    left = 2 * _MARGIN + panel_width + round(label_width) + 2 * _GAP
    width = left + len(captions) * (cell[0] + _GAP) - _GAP + _MARGIN
    lines = _wrap(title, text, width - 2 * _MARGIN)
    top = _MARGIN + len(lines) * 24 + (_GAP if lines else 0) + 24
    pictures = [
        _resized(picture, (panel_width, round(panel_width * picture.shape[0] / picture.shape[1])))
        for _, picture in panels
    ]
    heights = [
        max(len(rows) * (cell[1] + _GAP) - _GAP, picture.height)
        for rows, picture in zip(sections, pictures, strict=True)
    ]
    height = top + sum(heights) + (len(sections) - 1) * _SECTION_GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + i * 24), line, fill=_INK, font=text)
    for column, caption in enumerate(captions):
        middle = left + column * (cell[0] + _GAP) + cell[0] // 2
        draw.text((middle, top - 8), caption, fill=_QUIET, font=small, anchor="ms")
    for (caption, _), picture, rows, section_height in zip(
        panels, pictures, sections, heights, strict=True
    ):
        draw.text((_MARGIN, top - 8), caption, fill=_QUIET, font=small, anchor="ls")
        sheet.paste(picture, (_MARGIN, top))
        for r, row in enumerate(rows):
            y = top + r * (cell[1] + _GAP)
            at = (left - 2 * _GAP, y + cell[1] // 2)
            draw.text(at, row.label, fill=_INK, font=text, anchor="rm")
            for column, frame in enumerate(row.frames):
                sheet.paste(_resized(frame, cell), (left + column * (cell[0] + _GAP), y))
        top += section_height + _SECTION_GAP
    return np.asarray(sheet)


def _colours(image: Float[Array | ndarray, "*batch 3"]) -> UInt8[ndarray, "*batch 3"]:
    return np.round((np.clip(np.asarray(image, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def _cell_size(frames: UInt8[ndarray, "f h w 3"]) -> tuple[int, int]:
    """Width and height of a picture in the grid, in the frames' own proportions."""
    return _CELL_WIDTH, round(_CELL_WIDTH * frames.shape[1] / frames.shape[2])


def _resized(image: UInt8[ndarray, "h w 3"], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS)


def _font(size: int) -> ImageFont.FreeTypeFont:
    """The typeface that matplotlib ships, so that the sheet looks alike on every machine."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def _wrap(title: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """The title in lines that fit `width` pixels, at most three, the last one cut if need be."""
    lines: list[str] = []
    words = title.split()
    while words and len(lines) < 3:
        count = max(
            (n for n in range(1, len(words) + 1) if font.getlength(" ".join(words[:n])) <= width),
            default=1,
        )
        lines.append(" ".join(words[:count]))
        words = words[count:]
    while lines and (words or font.getlength(lines[-1]) > width):
        words = []
        cut = f"{lines[-1].removesuffix(' …')[:-1].rstrip()} …"
        lines[-1] = cut
        if len(cut) <= 2:
            break
    return lines
