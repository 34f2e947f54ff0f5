"""The table, the sentences and the sheet of a preview made by hand."""

import numpy as np
import pytest

from worldstereo_jax.evaluation.contact_sheet import COVERED
from worldstereo_jax.evaluation.path_clearance import PathClearance
from worldstereo_jax.evaluation.path_preview import PathPreview, frame_figures
from worldstereo_jax.evaluation.preview_sheet import (
    KNOWN,
    UNKNOWN,
    angle_pictures,
    frame_label,
    known_colours,
    known_pictures,
    preview_sheet,
    preview_summary,
    preview_table,
)

FRAMES, H, W = 8, 6, 10


@pytest.fixture
def preview():
    """Points show the first 10 - i columns of frame i, entries one less, stored views two less."""
    column, frame = np.arange(W)[None, None], np.arange(FRAMES)[:, None, None]
    seen = [np.broadcast_to(column < W - frame - i, (FRAMES, H, W)) for i in range(3)]
    angle = np.where(seen[2], np.radians(5.0) * np.arange(FRAMES)[:, None, None], np.inf)
    return PathPreview(
        points=np.full((FRAMES, H, W, 3), -1.0, np.float32),
        points_seen=seen[0],
        entries=np.full((FRAMES, H, W, 3), 1.0, np.float32),
        entries_seen=seen[1],
        behind=np.zeros((FRAMES, H, W), bool),
        views_seen=seen[2],
        angle=angle.astype(np.float32),
        distance=np.where(seen[2], 0.5, np.inf).astype(np.float32),
        view=np.where(seen[2], (frame > 1) & (column > 0), -1).astype(np.int32),
        clearance=PathClearance(
            np.linspace(2, 0.5, FRAMES).astype(np.float32), np.arange(FRAMES) == 5
        ),
    )


def test_the_table_has_a_line_for_each_frame(preview):
    table = preview_table(frame_figures(preview)).splitlines()
    assert len(table) == FRAMES + 2
    assert "70.0 %" in table[2 + 3]
    assert "15.0°      0.500      1" in table[2 + 3]
    assert "5.0°      0.500      0" in table[2 + 1]
    assert [line.endswith("through a surface") for line in table[2:]] == [
        i == 5 for i in range(FRAMES)
    ]


def test_the_summary_names_the_worst_frame_and_the_surface(preview):
    said = preview_summary(frame_figures(preview))
    assert "least in frame 7 (30 %)" in said
    assert "35° aside (frame 7)" in said
    assert "through a stored surface before frame 5." in said
    calm = preview._replace(
        clearance=preview.clearance._replace(through=np.zeros(FRAMES, bool)),
        views_seen=np.zeros_like(preview.views_seen),
    )
    said = preview_summary(frame_figures(calm))
    assert "through no stored surface" in said
    assert "aside" not in said
    assert "backs" not in said
    backs = preview._replace(
        behind=np.broadcast_to(np.arange(FRAMES)[:, None, None] == 4, (8, H, W))
    )
    assert "100 % of frame 4 are backs" in preview_summary(frame_figures(backs))
    assert "-" in preview_table(frame_figures(calm))


def test_a_frame_has_a_label_and_a_colour(preview):
    figures = frame_figures(preview)
    assert frame_label(3, figures[3]) == "frame 3: 70 % known, 15° from view 1"
    assert frame_label(5, figures[5]).endswith(", through a surface")
    unseen = figures[7]._replace(known=0.0, angle=np.nan)
    assert frame_label(7, unseen) == "frame 7: 0 % known"
    colours = known_colours(np.array([0.0, 0.5, 1.0]))
    np.testing.assert_array_equal(colours[[0, 2]], [UNKNOWN, KNOWN])
    np.testing.assert_allclose(colours[1], (np.array(UNKNOWN) + KNOWN) / 2, atol=1)


def test_holes_are_shown_and_entries_stand_before_points(preview):
    drawn = known_pictures(preview)[3]
    assert (drawn[:, 7:] == UNKNOWN).all()
    assert (drawn[:, 6] == 0).all()  # a point, where there is no entry
    assert (drawn[:, :6] == 255).all()
    angle = angle_pictures(preview)[3]
    assert (angle[:, 7:] == UNKNOWN).all()
    assert (angle[:, 5:7] == COVERED).all()
    steeper = angle_pictures(preview)[6]
    assert steeper[0, 0].sum() > angle[0, 0].sum()


def test_the_sheet_shows_frames_above_curves(preview):
    figures = frame_figures(preview)
    sheet = preview_sheet(preview, figures, title="a path")
    few = preview_sheet(preview, figures, columns=2, title="a path")
    assert few.shape[1] < sheet.shape[1]
    assert (sheet == UNKNOWN).all(-1).any()
    # The curves' colours stand in the lower part only.
    line = (np.abs(sheet.astype(int) - (0x3B, 0x7D, 0xD8)) < 3).all(-1)
    assert line.any()
    assert not line[: sheet.shape[0] - 330].any()
