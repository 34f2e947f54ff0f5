import numpy as np
import pytest

from worldstereo_jax.evaluation import sheet_layout as layout
from worldstereo_jax.evaluation.sheet_layout import Panel, Row, Section


def test_evenly_chosen_frames_hold_both_ends():
    assert layout.evenly_chosen(21, 5) == [0, 5, 10, 15, 20]
    assert layout.evenly_chosen(9, 5) == [0, 2, 4, 6, 8]
    assert layout.evenly_chosen(3, 5) == [0, 1, 2]
    assert layout.evenly_chosen(1, 5) == [0]


@pytest.mark.parametrize("title", ["", "short", "word " * 200, "x" * 3000])
def test_titles_fit_the_sheet(title):
    font = layout.typeface(17)
    lines = layout.wrap(title, font, 600)
    assert len(lines) <= 3
    assert all(font.getlength(line) <= 600 for line in lines)
    assert bool(lines) == bool(title)


def test_without_a_panel_the_sheet_is_narrower_by_it():
    frames = np.zeros((2, 12, 20, 3), np.uint8)
    bare = layout.lay_out([Section([Row("a", frames)])], ["1", "2"], "")
    panelled = layout.lay_out([Section([Row("a", frames)], Panel("p", frames[0]))], ["1", "2"], "")
    assert bare.shape[1] < panelled.shape[1] - 2 * layout.CELL_WIDTH
    assert np.all(bare == 0, -1).sum() == 2 * 224 * 134
