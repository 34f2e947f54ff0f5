import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.view_change import change_agreement, view_change

HEIGHT, WIDTH = 24, 40
K = np.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])


def views(shift, glint):
    """A wall at 4 m painted by a wave; a glint that stands where `glint` says, per view."""
    w2c = np.tile(np.eye(4), (2, 1, 1))
    w2c[1, 0, 3] = -shift
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    images = []
    for pose, place in zip(w2c, glint, strict=True):
        at = [(x - WIDTH / 2) * 4 / 40 - pose[0, 3], (y - HEIGHT / 2) * 4 / 40]
        paint = 0.3 * np.sin(2 * at[0]) * np.cos(at[1])
        shine = 0.6 * np.exp(-((at[0] - place) ** 2 + at[1] ** 2) / 0.2)
        images.append(np.repeat((paint + shine)[..., None], 3, -1))
    return np.stack(images), np.full((2, HEIGHT, WIDTH), 4.0), w2c, np.stack([K, K])


@pytest.mark.row("S24")
def test_paint_does_not_change_and_a_glint_does():
    images, *geometry = views(0.3, (9.0, 9.0))
    still, tracked = view_change(images, *geometry)
    assert tracked.mean() > 0.85
    assert np.abs(still[tracked]).max() < 0.02
    images, *geometry = views(0.3, (0.0, 0.4))
    moved, _ = view_change(images, *geometry)
    assert np.abs(moved[tracked]).max() > 0.3


@pytest.mark.row("S24")
def test_agreement_is_full_for_the_truth_and_none_for_what_stands_still():
    true, tracked = view_change(*views(0.3, (0.0, 0.4)))
    half = change_agreement(0.5 * true, true, tracked)
    assert half.correlation == pytest.approx(1.0)
    assert half.slope == pytest.approx(0.5)
    assert half.points == tracked.sum()
    still, _ = view_change(*views(0.3, (0.0, 0.0)))
    assert abs(change_agreement(still, true, tracked).slope) < 0.05
    back, _ = view_change(*views(0.3, (0.4, 0.0)))
    assert change_agreement(back, true, tracked).correlation < -0.5
    assert np.isnan(change_agreement(true, np.zeros_like(true), tracked).slope)
    with pytest.raises(InputError, match="differ"):
        change_agreement(true[1:], true, tracked)


def test_hidden_points_are_not_tracked():
    images, depth, w2c, k = views(0.3, (0.0, 0.4))
    depth[1, :, 10:14] = 2.0
    depth[0, :3] = 0.0
    _, tracked = view_change(images, depth, w2c, k)
    assert not tracked[:3].any()
    assert not tracked[5, 14:16].any()
