import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.data.pane_scenes import PANE_DEPTH, WALL_DEPTH, make_pane_scene, render_pane
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_views import see_through, standing_against, two_depths
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


def _votes(seen, denied, *, support=None, shown=0.0, variance=0.0, far=1.0):
    """One entry of colour 0 that `seen` views saw and `denied` contradict, where they show that."""
    against = float(denied)
    empty = init_entries(EntryConfig(1, (3,), views=64))
    word = np.zeros((2, 1, 2), np.uint32)
    word[0, 0, 0], word[1, 0, 1] = (1 << seen) - 1, (1 << denied) - 1
    return empty.replace(
        valid=jnp.ones((1,), bool),
        views=jnp.asarray(word[0]),
        denied=jnp.asarray(word[1]),
        observations=jnp.array([seen]),
        support=jnp.array([float(seen if support is None else support)]),
        against=jnp.array([against]),
        through=jnp.array([against]),
        beyond=far * against * jnp.array([[1.0, shown, shown, shown]]),
        feature_variance=jnp.array([variance]),
    )


@pytest.mark.row("S24")
def test_balanced_votes_and_the_same_colours_are_a_pane():
    for bank, pane in [
        (_votes(3, 2), True),
        (_votes(3, 9), True),
        (_votes(9, 3), True),
        (_votes(2, 8), False),  # it was there twice, and is gone
        (_votes(9, 2), False),
        (_votes(1, 3), False),  # one wrong depth
        (_votes(2, 1), False),
        (_votes(0, 2), False),
        (_votes(2, 0), False),
        (_votes(5, 5, shown=0.5), False),  # where it was there is now something else
        (_votes(5, 5, shown=0.5, variance=0.1), True),  # but that is how it differs anyway
        (_votes(5, 5, far=0.4), False),  # most of the time the same surface, told a little wrong
    ]:
        assert bool(two_depths(bank)[0]) == pane
        assert bool(see_through(bank)[0]) == pane
        counts = float(standing_against(bank)[0])
        least = float(bank.against[0] - 2.0 * bank.support[0])
        assert counts == (max(least, 0.0) if pane else float(bank.against[0]))


@pytest.mark.row("S24")
def test_a_pane_is_a_pane_in_whichever_order_its_depths_are_told(taken):
    views, w2c, bank = taken
    first = np.arange(11)[:, None, None] < 5
    depth = es.noisy(np.where(first, views.depth, views.behind), noise=0.003)
    halves = es.build(es.frames(views.image[:10], depth[:10], w2c[:10]))
    for some in (bank, halves):
        position = np.asarray(some.position)
        pane = np.asarray(some.valid) & (np.abs(position[:, 2] / PANE_DEPTH - 1) < 0.02)
        pane &= (np.abs(position[:, 0]) < 0.6) & (np.abs(position[:, 1]) < 0.4)
        assert pane.sum() > 50
        assert np.asarray(see_through(some))[pane].mean() > 0.8
        assert np.median(np.asarray(some.confidence)[pane]) > 0.5


@pytest.mark.row("S24")
@pytest.mark.row("S12")
@pytest.mark.parametrize("present", [(0, 4), (0, 2, 4, 6, 8)], ids=["twice", "every other view"])
def test_an_opaque_thing_that_comes_and_goes_is_no_pane(room, present):
    w2c = es.cameras(room, 10)
    images, depth, _ = es.with_box(*es.photographs(room, w2c), w2c, present)
    numbers = [3, 9, 0, 5, 1, 8, 2, 7, 4, 6]
    verdicts = []
    for views in (None, numbers):
        bank = es.build(es.frames(images, es.noisy(depth), w2c, views=views))
        position = np.asarray(bank.position)
        thing = np.asarray(bank.valid) & (np.abs(position[:, 2] - 2.0) < 0.06)
        thing &= (np.abs(position[:, :2] - [0.0, 0.1]) < [0.28, 0.23]).all(1)
        assert thing.sum() > 80
        assert np.asarray(see_through(bank))[thing].mean() < 0.05
        assert np.median(np.asarray(bank.confidence)[thing]) < 0.3
        verdicts.append(np.asarray(bank.confidence))
    # How views are numbered makes no difference.
    np.testing.assert_array_equal(*verdicts)


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
