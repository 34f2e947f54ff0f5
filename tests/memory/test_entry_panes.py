import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.data.pane_scenes import PANE_DEPTH, WALL_DEPTH, make_pane_scene, render_pane
from worldstereo_jax.memory.entry_views import see_through, two_depths
from worldstereo_jax.memory.entry_warp import compose_layers, warp_entries, warp_layers


def cameras(places):
    w2c = np.tile(np.eye(4, dtype=np.float32), (len(places), 1, 1))
    w2c[:, :2, 3] = -np.asarray(places)
    return w2c


@pytest.fixture(scope="module")
def taken():
    """Ten views through the pane, every other of whose depth is the wall's; and one beyond them."""
    places = [(0.5 * np.cos(2.4 * i), 0.4 * np.sin(2.4 * i)) for i in range(10)]
    scene = make_pane_scene(1)
    size = {"height": es.HEIGHT, "width": es.WIDTH}
    w2c = cameras([*places, (0.12, 0.1)])
    views = render_pane(scene, w2c, np.tile(es.INTRINSICS, (11, 1, 1)), **size)
    depth = es.noisy(views.alternating(), noise=0.003)
    return views, w2c, es.build(es.frames(views.image[:10], depth[:10], w2c[:10]))


@pytest.mark.row("S24")
def test_views_for_and_against_that_come_and_go_are_a_pane():
    def bits(*views):
        word = np.zeros((1, 2), np.uint32)
        for view in views:
            word[0, view // 32] |= np.uint32(1 << (view % 32))
        return jnp.asarray(word)

    for seen, denied, pane in [
        ((0, 2, 4), (1, 3), True),
        ((0, 40), (20, 60), True),
        ((31, 33), (30, 32), True),
        ((0, 1, 2, 3), (4, 5, 6, 7), False),  # it was there, and went
        ((4, 5, 6), (1, 2, 8, 9), False),  # it came, and went
        ((3,), (0, 1, 2, 4, 5, 6), False),  # one wrong depth
        ((), (1, 2), False),
        ((1, 2), (), False),
    ]:
        assert bool(two_depths(bits(*seen), bits(*denied))[0]) == pane, (seen, denied)


@pytest.mark.row("S24")
def test_a_pane_and_what_is_behind_it_both_live(taken):
    _, _, bank = taken
    position, held = np.asarray(bank.position), np.asarray(bank.valid)
    inner = held & (np.abs(position[:, 0]) < 0.6) & (np.abs(position[:, 1]) < 0.4)
    inner &= np.asarray(bank.observations) >= 3
    clear = np.asarray(see_through(bank))
    for z, seen_through in ((PANE_DEPTH, True), (WALL_DEPTH, False)):
        there = inner & (np.abs(position[:, 2] / z - 1) < 0.02)
        assert there.sum() > 50
        assert np.median(np.asarray(bank.confidence)[there]) > 0.5
        assert (clear[there].mean() > 0.8) if seen_through else (clear[there].mean() < 0.1)


@pytest.mark.row("S24")
@pytest.mark.row("S18")
def test_a_ray_shows_two_depths_and_the_colours_of_both(taken):
    views, w2c, bank = taken
    camera = jnp.asarray(w2c[10]), jnp.asarray(es.INTRINSICS)
    layers = warp_layers(bank, *camera, height=es.HEIGHT, width=es.WIDTH)
    surface, pane = (jax.tree.map(lambda x, i=i: np.asarray(x[i]), layers) for i in (0, 1))
    inner = views.through[10].copy()
    inner[1:-1, 1:-1] &= views.through[10][2:, 1:-1] & views.through[10][:-2, 1:-1]
    both = inner & (surface.mask < 0.5) & (pane.mask < 0.5)
    assert both.sum() > 0.8 * inner.sum()
    np.testing.assert_allclose(np.median(pane.depth[both]), PANE_DEPTH, rtol=0.01)
    np.testing.assert_allclose(np.median(surface.depth[both]), WALL_DEPTH, rtol=0.01)
    seen = compose_layers(layers)
    drawn = warp_entries(bank, *camera, height=es.HEIGHT, width=es.WIDTH)
    np.testing.assert_allclose(drawn.features, seen.features, atol=1e-6)
    error = {
        name: np.square(np.asarray(x)[both] - views.image[10][both]).mean()
        for name, x in (
            ("both", seen.features),
            ("wall", surface.features),
            ("pane", pane.features),
        )
    }
    assert error["both"] < 0.75 * min(error["wall"], error["pane"]), error
