from typing import Any

import numpy as np
import pytest

from worldstereo_jax.evaluation import contact_sheet as sheet

_FRAMES, _HEIGHT, _WIDTH = 9, 24, 40


def _inputs(value: float = 0.0) -> dict[str, Any]:
    shape = (_FRAMES, _HEIGHT, _WIDTH)
    return {
        "image": np.full((_HEIGHT, _WIDTH, 3), -0.5, np.float32),
        "renders": np.full((*shape, 3), value, np.float32),
        "masks": np.zeros((*shape, 1), np.float32),
        "result": np.full((*shape, 3), 0.5, np.float32),
        "depth": np.full(shape, 2.0, np.float32),
    }


def _count(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int(np.all(picture == np.array(colour, np.uint8), axis=-1).sum())


def test_every_picture_of_every_row_is_on_the_sheet():
    picture = sheet.contact_sheet(**_inputs(value=-1.0))
    cell = 224 * round(224 * _HEIGHT / _WIDTH)
    panel = (2 * 224 + 8) * round((2 * 224 + 8) * _HEIGHT / _WIDTH)
    assert picture.dtype == np.uint8
    assert _count(picture, (0, 0, 0)) == 5 * cell
    assert _count(picture, (64, 64, 64)) == panel
    assert _count(picture, (191, 191, 191)) == 5 * cell + panel
    assert _count(picture, sheet.COVERED) == 5 * cell


def test_holes_are_coloured_where_they_are():
    inputs = _inputs()
    inputs["masks"][:, :, : _WIDTH // 4] = 1

    def reddish(picture: np.ndarray) -> int:
        return int((picture[..., 0] > picture[..., 2].astype(int) + 80).sum())

    covered = reddish(sheet.contact_sheet(**_inputs()))
    assert reddish(sheet.contact_sheet(**inputs)) - covered == pytest.approx(
        5 * 224 * 134 / 4, rel=0.05
    )


def test_unknown_depth_is_paper_and_near_and_far_differ():
    depth = np.ones((2, 4, 6), np.float32)
    depth[:, :, 3:] = 5
    depth[0, 0, 0] = 0
    depth[1, 0, 0] = np.nan
    colours = sheet.colour_depth(depth)
    np.testing.assert_array_equal(colours[:, 0, 0], [sheet.PAPER] * 2)
    near, far = colours[0, 2, 1].astype(int), colours[0, 2, 4].astype(int)
    assert near[0] > near[2]  # warm
    assert far[2] > far[0]  # cold
    empty = sheet.colour_depth(np.zeros((1, 2, 3), np.float32))
    np.testing.assert_array_equal(empty, np.broadcast_to(sheet.PAPER, (1, 2, 3, 3)))


def test_captions_never_touch_a_picture():
    # Only text and the pictures' own flat colours may be on the sheet: were text drawn over a
    # picture, or a picture over text, the counts of the bare sheet would change.
    bare = sheet.contact_sheet(**_inputs())
    titled = sheet.contact_sheet(**_inputs(), title="A long title about a corridor " * 40)
    for colour in ((64, 64, 64), (191, 191, 191), sheet.COVERED):
        assert _count(bare, colour) == _count(titled, colour)
    assert titled.shape[0] > bare.shape[0]
    assert titled.shape[1] == bare.shape[1]


def test_depth_may_be_left_out_and_the_function_is_pure():
    inputs = _inputs()
    copies = {name: value.copy() for name, value in inputs.items()}
    whole = sheet.contact_sheet(**inputs)
    np.testing.assert_array_equal(whole, sheet.contact_sheet(**inputs))
    for name, value in inputs.items():
        np.testing.assert_array_equal(value, copies[name])
    del inputs["depth"]
    assert sheet.contact_sheet(**inputs).ndim == 3
    few = {n: v[:2] if n != "image" else v for n, v in inputs.items()}
    assert sheet.contact_sheet(**few).shape[1] < whole.shape[1]
