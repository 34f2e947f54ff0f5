"""Ways before, beside and through a wall of entries."""

import numpy as np
import pytest

from tests.evaluation import wall_world as ww
from worldstereo_jax.evaluation.path_clearance import path_clearance

pytestmark = pytest.mark.row("S27")


def clear(*centres, **changes):
    bank = ww.wall().entries.replace(**changes)
    return path_clearance(bank, np.asarray(centres, np.float32))


def test_a_way_through_the_wall_is_met_where_it_passes():
    found = clear((0, 0, 0), (0, 0, 1.5), (0.3, 0.2, 2.5), (0, 0, 3), (0, 0, 1))
    assert found.through.tolist() == [False, False, True, False, True]
    # To the middle of the nearest entry, which lies up to half a width aside.
    np.testing.assert_allclose(found.nearest, [2, 0.5, 0.5, 1, 1], atol=2e-3)


def test_ways_beside_what_is_stored_meet_nothing():
    assert not clear((2, 0, 1), (2, 0, 3)).through.any()
    assert not clear((0, 0, 1), (1, 0, 1), (1, 0.5, 1.9)).through.any()


def test_no_way_slips_between_the_pieces():
    random = np.random.default_rng(0)
    places = random.uniform([-1.1, -0.7], [1.4, 0.7], (40, 2))
    ways = [(x, y, 1.5 + i % 2) for i, (x, y) in enumerate(places)]
    assert clear(*ways).through[1:].all()


def test_doubtful_entries_and_empty_slots_are_no_surface():
    entries = ww.wall().entries
    for changes in (
        {"confidence": 0 * entries.confidence + 0.05},
        {"confidence": 0 * entries.confidence + 0.4, "source": entries.source + 3},
        {"valid": entries.valid & False},
    ):
        found = clear((0, 0, 1), (0, 0, 3), **changes)
        assert not found.through.any()
        assert np.isinf(found.nearest).all()


def test_one_camera_has_no_way():
    assert clear((0, 0, 1)).through.tolist() == [False]
