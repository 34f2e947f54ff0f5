import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.comparison_sheet import (
    LARGEST_ERROR,
    comparison_sheet,
    error_colours,
)

_SHAPE = (9, 24, 40, 3)
_CELL = 224 * round(224 * 24 / 40)


def _clip(value: float) -> np.ndarray:
    return np.full(_SHAPE, value, np.float32)


def _count(picture: np.ndarray, colour: tuple[int, ...]) -> int:
    return int(np.all(picture == np.array(colour, np.uint8), axis=-1).sum())


def test_every_clip_has_a_row_of_its_chosen_frames():
    sheet = comparison_sheet({"truth": _clip(-1), "both": _clip(0.5), "none": _clip(-0.5)})
    assert sheet.dtype == np.uint8
    for colour in ((0, 0, 0), (191, 191, 191), (64, 64, 64)):
        assert _count(sheet, colour) == 5 * _CELL
    narrow = comparison_sheet({"truth": _clip(-1)}, columns=3)
    assert _count(narrow, (0, 0, 0)) == 3 * _CELL


def test_rows_show_first_and_last_frame():
    clip = _clip(0.0)
    clip[0], clip[-1] = 1.0, -1.0
    sheet = comparison_sheet({"clip": clip})
    assert _count(sheet, (255, 255, 255)) == _CELL
    assert _count(sheet, (0, 0, 0)) == _CELL


def test_errors_are_drawn_against_the_reference_only_when_asked():
    videos = {"truth": _clip(0.0), "equal": _clip(0.0), "far": _clip(0.9)}
    plain = comparison_sheet(videos)
    sheet = comparison_sheet(videos, reference="truth")
    darkest = tuple(int(v) for v in error_colours(_clip(1.0), _clip(0.0))[0, 0, 0])
    assert _count(plain, darkest) == 0
    assert _count(sheet, darkest) == 5 * _CELL
    # Two rows more, and none for the reference itself.
    assert sheet.shape[0] - plain.shape[0] == 2 * (134 + 8) - 8 + 32


def test_error_colours_grow_darker_with_the_error():
    errors = np.linspace(0, 2 * LARGEST_ERROR, 6, dtype=np.float32)
    video = np.zeros((1, 1, 6, 3), np.float32) + errors[:, None]
    colours = error_colours(video, np.zeros_like(video))[0, 0].astype(int).sum(-1)
    assert np.all(np.diff(colours) < 0)
    assert colours[0] > 600  # pale


def test_refuses_clips_that_cannot_be_compared():
    with pytest.raises(InputError, match="at least one clip"):
        comparison_sheet({})
    with pytest.raises(InputError, match="'b' has shape"):
        comparison_sheet({"a": _clip(0), "b": _clip(0)[:3]})
    with pytest.raises(InputError, match="no clip 'truth'"):
        comparison_sheet({"a": _clip(0)}, reference="truth")
