"""What came before a frame says of what it adds, as if it came after (row S12)."""

import numpy as np
import pytest

from tests.memory import entry_scene as es

WRONG = 3


@pytest.fixture(scope="module")
def shots(room):
    w2c = es.cameras(room, 10)[[0, 1, 3, 5, 6, 8]]
    images, depth = es.photographs(room, w2c)
    return images, es.noisy(depth, noise=0.005), w2c


def _frames(shots, factor):
    images, depth, w2c = shots
    depth = depth.copy()
    depth[WRONG] *= factor
    return es.frames(images, depth, w2c)


def _of(bank, view):
    """Of entries that `view` alone has seen, by position: all that is said of them."""
    mine = np.asarray(bank.valid) & (np.asarray(bank.views)[:, 0] == 1 << view)
    fields = ("denied", "against", "through", "beyond", "confidence")
    told = [np.asarray(getattr(bank, name))[mine].reshape(mine.sum(), -1) for name in fields]
    place = [tuple(x) for x in np.asarray(bank.position)[mine].tolist()]
    return dict(zip(place, np.concatenate(told, -1), strict=True))


@pytest.mark.row("S12")
@pytest.mark.row("S6")
@pytest.mark.parametrize("factor", [0.8, 1.2], ids=["too near", "too far"])
def test_of_two_views_the_earlier_says_what_it_would_say_later(shots, factor):
    frames = _frames(shots, factor)
    first, last = (_of(es.build(frames, order), WRONG) for order in ([WRONG, 0], [0, WRONG]))
    both = first.keys() & last.keys()
    assert len(both) > 0.95 * len(first) > 1000
    one, other = (np.array([told[place] for place in both]) for told in (first, last))
    denied = one[:, 0] == 1
    assert denied.mean() > 0.75
    # But for silhouettes, where lines of sight end, and what only one of them saw.
    assert (denied == (other[:, 0] == 1)).mean() > 0.85
    same = denied & (other[:, 0] == 1)
    np.testing.assert_allclose(one[same].mean(0), other[same].mean(0), atol=0.05)
    # against, through and confidence; colours are those of a neighbour at times
    assert (np.abs(one - other)[same][:, [2, 3, -1]] < 0.05).mean() > 0.9


@pytest.mark.row("S12")
@pytest.mark.row("S13")
@pytest.mark.parametrize("factor", [0.8, 1.2], ids=["too near", "too far"])
def test_one_wrong_view_of_six_is_voted_down_whenever_it_comes(shots, factor):
    frames = _frames(shots, factor)
    others = [view for view in range(6) if view != WRONG]
    doubts, trust = [], []
    for place in (0, 3, 5):
        bank = es.build(frames, [*others[:place], WRONG, *others[place:]])
        held, confidence = np.asarray(bank.valid), np.asarray(bank.confidence)
        away = es.surface_error(bank.position)
        wrong = held & (np.asarray(bank.views)[:, 0] == 1 << WRONG) & (away > 0.15)
        good = held & (np.asarray(bank.observations) >= 3) & (away < 0.1)
        assert min(wrong.sum(), good.sum()) > 600
        # Those that would be drawn see where no other view does.
        assert (confidence[wrong] > 0.1).mean() < 0.2
        doubts.append(confidence[wrong].mean())
        trust.append(confidence[good].mean())
    assert max(doubts) < 0.1
    assert max(doubts) - min(doubts) < 0.04, doubts
    assert min(trust) > 0.6
    assert max(trust) - min(trust) < 0.05, trust


@pytest.mark.row("S12")
@pytest.mark.row("S34")
def test_right_views_do_not_speak_against_each_other(shots):
    bank = es.build(_frames(shots, 1.0))
    held = np.asarray(bank.valid)
    late = held & (np.asarray(bank.views)[:, 0] & 1 == 0)
    assert late.sum() > 200
    assert (np.asarray(bank.against)[late] > 0).mean() < 0.1
