"""Drawing shared by the sheets: captioned strips of frames on paper, with large pictures beside."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw, ImageFont

from worldstereo_jax.array_types import UInt8, ndarray

PAPER = (250, 249, 246)
INK = (34, 34, 38)
QUIET = (120, 120, 126)
CELL_WIDTH = 224
_MARGIN = 24
_GAP = 8
_SECTION_GAP = 32
_LINE = 24


@dataclasses.dataclass(frozen=True)
class Row:
    """One strip of pictures with its caption.

    Attributes:
        label: the caption, a few words.
        frames: colours [f, h, w, 3] in 0..255.
    """

    label: str
    frames: UInt8[ndarray, "f h w 3"]


@dataclasses.dataclass(frozen=True)
class Panel:
    """A large picture at the left of a section.

    Attributes:
        caption: stands above the sheet's first panel.
        picture: colours [h, w, 3] in 0..255.
    """

    caption: str
    picture: UInt8[ndarray, "h w 3"]


@dataclasses.dataclass(frozen=True)
class Section:
    """Rows that belong together, drawn below one another.

    Attributes:
        rows: each holds one frame per column of the sheet.
        panel: drawn at the left at the width of two columns, if any.
    """

    rows: Sequence[Row]
    panel: Panel | None = None


def evenly_chosen(total: int, count: int) -> list[int]:
    """At most `count` frame numbers out of `total`, evenly spaced, first and last included."""
    return sorted({int(i) for i in np.round(np.linspace(0, total - 1, min(count, total)))})


def lay_out(
    sections: Sequence[Section], captions: Sequence[str], title: str
) -> UInt8[ndarray, "height width 3"]:
    """Sections of captioned rows below one another, each with its panel at its left.

    sections: all with a panel or all without; each row holds as many frames as there are
        `captions`, which stand above the columns.
    title: a line on top, wrapped where it is long.
    """
    text, small = typeface(17), typeface(14)
    cell = _cell_size(sections[0].rows[0].frames)
    panel_width = 2 * cell[0] + _GAP
    label_width = round(max(text.getlength(row.label) for part in sections for row in part.rows))
    beside = panel_width + _MARGIN if any(part.panel for part in sections) else 0
    left = _MARGIN + beside + label_width + 2 * _GAP
    width = left + len(captions) * (cell[0] + _GAP) - _GAP + _MARGIN
    lines = wrap(title, text, width - 2 * _MARGIN)
    top = _MARGIN + len(lines) * _LINE + (_GAP if lines else 0) + _LINE
    pictures = [_panel_picture(part.panel, panel_width) for part in sections]
    heights = [
        max(len(part.rows) * (cell[1] + _GAP) - _GAP, picture.height if picture else 0)
        for part, picture in zip(sections, pictures, strict=True)
    ]
    height = top + sum(heights) + (len(sections) - 1) * _SECTION_GAP + _MARGIN
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, line in enumerate(lines):
        draw.text((_MARGIN, _MARGIN + i * _LINE), line, fill=INK, font=text)
    for column, caption in enumerate(captions):
        middle = left + column * (cell[0] + _GAP) + cell[0] // 2
        draw.text((middle, top - 8), caption, fill=QUIET, font=small, anchor="ms")
    for part, picture, section_height in zip(sections, pictures, heights, strict=True):
        if part.panel is not None and picture is not None:
            draw.text((_MARGIN, top - 8), part.panel.caption, fill=QUIET, font=small, anchor="ls")
            sheet.paste(picture, (_MARGIN, top))
        for r, row in enumerate(part.rows):
            y = top + r * (cell[1] + _GAP)
            at = (left - 2 * _GAP, y + cell[1] // 2)
            draw.text(at, row.label, fill=INK, font=text, anchor="rm")
            for column, frame in enumerate(row.frames):
                sheet.paste(_resized(frame, cell), (left + column * (cell[0] + _GAP), y))
        top += section_height + _SECTION_GAP
    return np.asarray(sheet)


def figure_pixels(figure: Figure) -> UInt8[ndarray, "height width 3"]:
    """What a figure of matplotlib shows, 0..255."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def typeface(size: int) -> ImageFont.FreeTypeFont:
    """The typeface that matplotlib ships, so that the sheet looks alike on every machine."""
    path = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
    return ImageFont.truetype(str(path), size)


def wrap(title: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
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


def _cell_size(frames: UInt8[ndarray, "f h w 3"]) -> tuple[int, int]:
    """Width and height of a picture in the grid, in the frames' own proportions."""
    return CELL_WIDTH, round(CELL_WIDTH * frames.shape[1] / frames.shape[2])


def _panel_picture(panel: Panel | None, width: int) -> Image.Image | None:
    if panel is None:
        return None
    height, own_width = panel.picture.shape[:2]
    return _resized(panel.picture, (width, round(width * height / own_width)))


def _resized(image: UInt8[ndarray, "h w 3"], size: tuple[int, int]) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(image)).resize(size, Image.Resampling.LANCZOS)
