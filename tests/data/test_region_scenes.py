import numpy as np
import pytest

from worldstereo_jax.data.region_scenes import (
    REGIONS,
    WALL_DEPTH,
    make_region_scene,
    render_regions,
)
from worldstereo_jax.errors import InputError

HEIGHT, WIDTH = 48, 80
K = np.array([[46.0, 0, WIDTH / 2], [0, 46.0, HEIGHT / 2], [0, 0, 1]])


@pytest.fixture(scope="module")
def views():
    w2c = np.tile(np.eye(4), (2, 1, 1))
    w2c[1, :2, 3] = [0.5, -0.1]
    scene = make_region_scene(3)
    return w2c, render_regions(scene, w2c, np.stack([K, K]), height=HEIGHT, width=WIDTH)


def _carried(views):
    """Where pixels of view 0 lie in view 1, and which of them are seen there, in whole pixels."""
    w2c, frames = views
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    depth = frames.depth[0].astype(float)
    points = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(K).T * depth[..., None]
    q = (points + w2c[1, :3, 3]) @ K.T
    column, row = (np.floor(q[..., i] / q[..., 2]).astype(int) for i in (0, 1))
    inside = (column >= 0) & (row >= 0) & (column < WIDTH) & (row < HEIGHT)
    column, row = np.where(inside, column, 0), np.where(inside, row, 0)
    return row, column, inside & (np.abs(frames.depth[1][row, column] - q[..., 2]) < 0.02)


def test_views_agree_on_the_surface_and_on_what_it_is(views):
    frames = views[1]
    row, column, seen = _carried(views)
    assert seen.mean() > 0.75
    same = frames.region[1][row, column] == frames.region[0]
    assert same[seen].mean() > 0.95
    for frame in range(2):
        assert all(mask.sum() > 20 for mask in frames.masks(frame).values())
    assert np.abs(frames.image).max() <= 1.0


@pytest.mark.row("S21")
@pytest.mark.row("S24")
def test_only_gloss_and_mirror_change_with_the_view(views):
    frames = views[1]
    row, column, seen = _carried(views)
    change = np.abs(frames.image[1][row, column] - frames.image[0]).mean(-1)
    change = {n: change[seen & (frames.region[0] == i)].mean() for i, n in enumerate(REGIONS)}
    assert change["mirror"] > 4 * max(change["wall"], change["relief"])
    assert change["gloss"] > 2 * max(change["wall"], change["relief"])


@pytest.mark.row("S22")
@pytest.mark.row("S23")
def test_relief_has_depth_and_edges_lie_where_depth_and_light_jump(views):
    frames = views[1]
    relief = frames.depth[0][frames.region[0] == REGIONS.index("relief")]
    assert 0.03 < relief.max() - relief.min() < 0.25
    flat = frames.depth[0][frames.region[0] == REGIONS.index("weave")]
    np.testing.assert_allclose(flat, WALL_DEPTH, atol=2e-3)
    jump = np.abs(np.diff(frames.depth[0], axis=1)) > 0.5
    assert frames.silhouette[0][:, 1:][jump].all()
    # Across the shadow's border the light changes and the depth does not.
    edge = frames.shadow_edge[0]
    steep = np.hypot(*np.gradient(frames.image[0].mean(-1)))
    plain = (frames.region[0] == 0) & ~edge & ~frames.silhouette[0]
    assert np.quantile(steep[edge], 0.8) > 2 * np.quantile(steep[plain], 0.8)
    assert np.ptp(frames.depth[0][edge]) < 0.2


def test_scenes_follow_from_their_seed():
    one, again, other = make_region_scene(5), make_region_scene(5), make_region_scene(6)
    np.testing.assert_array_equal(one.bumps, again.bumps)
    assert (one.bumps != other.bumps).any()
    with pytest.raises(InputError, match="negative"):
        make_region_scene(-1)
