import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.lowered import coarse_products
from tests.memory import entry_scene as es
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_prune import prune_entries
from worldstereo_jax.memory.entry_update import rate_entries
from worldstereo_jax.memory.entry_warp import warp_entries


@pytest.mark.row("S18")
def test_entries_seen_larger_than_they_were_leave_no_holes(room):
    """Through four times the focal length: entries stand four pixels apart."""
    w2c = es.cameras(room, 10)[:1]
    images, depth = es.photographs(room, w2c)
    bank = es.build(es.frames(images, depth, w2c))
    zoom = es.INTRINSICS.copy()
    zoom[[0, 1], [0, 1]] *= 4.0
    size = {"height": es.HEIGHT, "width": es.WIDTH}
    drawn = warp_entries(bank, jnp.asarray(w2c[0]), jnp.asarray(zoom), **size)
    truth = room.take(w2c[0], zoom, es.HEIGHT, es.WIDTH)[1]
    covered = np.asarray(drawn.mask) < 0.5
    # Beyond the frame there are no entries to close its outermost pixels.
    assert covered[4:-4, 4:-4].mean() > 0.98
    error = np.abs(np.asarray(drawn.depth) / truth - 1)
    assert (error[covered] < 0.02).mean() > 0.97


@pytest.fixture(scope="module")
def shots(room):
    w2c = es.cameras(room, 10)
    return *es.photographs(room, w2c), w2c


def _drawn(bank, w2c):
    intrinsics = jnp.asarray(es.INTRINSICS)
    return warp_entries(bank, jnp.asarray(w2c), intrinsics, height=es.HEIGHT, width=es.WIDTH)


@pytest.mark.row("S12")
@pytest.mark.row("S18")
@pytest.mark.parametrize("factor", [0.85, 0.93])
def test_depth_too_near_in_one_view_of_ten_hides_nothing(room, shots, factor):
    images, depth, w2c = shots
    held = room.look([0.1, -0.1, 0.1], [0.0, 0.4, 4.0]).astype(np.float32)
    truth = room.take(held, es.INTRINSICS, es.HEIGHT, es.WIDTH)[1]
    depth = es.noisy(depth)
    depth[5] *= factor
    drawn = _drawn(es.build(es.frames(images, depth, w2c)), held)
    covered = np.asarray(drawn.mask) < 0.5
    assert covered.mean() > 0.9
    error = np.abs(np.asarray(drawn.depth) / truth - 1)[covered]
    # Most at the factor that lies just at the gate, beyond which depth is contradicted.
    assert (error > 0.02).mean() < 0.1


@pytest.mark.row("S12")
@pytest.mark.row("S22")
def test_what_most_views_looked_through_hides_nothing_and_what_none_did_is_drawn(shots):
    images, depth, w2c = shots
    for present, stands in (((0, 3, 6, 9), False), ((9,), True)):
        taken, told, middle = es.with_box(images, depth, w2c, present)
        bank = es.build(es.frames(taken, es.noisy(told), w2c))
        if stands:
            unasked = jnp.zeros_like(bank.against)
            bank = rate_entries(bank.replace(against=unasked, through=unasked), es.RULE)
        view = 9 if stands else 8
        drawn = _drawn(bank, w2c[view])
        covered = np.asarray(drawn.mask) < 0.5
        assert covered[middle[view]].mean() > 0.9
        inner = middle[view] & covered
        error = np.square(np.asarray(drawn.features) - taken[view])[inner].mean()
        near = np.asarray(drawn.depth)[inner] < 0.5 * (depth[view] + 2.0)[inner]
        assert (near.mean() > 0.95) if stands else (near.mean() < 0.05)
        assert 10 * np.log10(4 / error) > 17.0


@pytest.mark.row("S4")
@pytest.mark.row("S18")
def test_of_a_thin_board_the_side_is_drawn_that_is_seen():
    """A white side and a black one at the same place, within what depth tells apart."""
    turned = np.diag([-1.0, 1.0, -1.0, 1.0]).astype(np.float32)
    turned[2, 3] = 8.0
    w2c = np.stack([np.eye(4, dtype=np.float32), turned])
    side = np.ones((es.HEIGHT, es.WIDTH, 3), np.float32)
    depth = np.full((2, es.HEIGHT, es.WIDTH), 4.0, np.float32)
    bank = es.build(es.frames(np.stack([side, -side]), es.noisy(depth, noise=1e-3), w2c))
    assert int(bank.count) == 2 * side[..., 0].size
    for camera, colour in zip(w2c, (1.0, -1.0), strict=True):
        drawn = _drawn(bank, camera)
        assert float(drawn.mask.max()) == 0.0
        np.testing.assert_allclose(drawn.features, colour, atol=0.05)


@pytest.mark.row("S18")
def test_what_is_drawn_can_be_learned_through_the_warp(room):
    """The warp is linear in the values it carries, so its derivative gives them back."""
    w2c = es.cameras(room, 10)[:1]
    images, depth = es.photographs(room, w2c)
    bank = es.build(es.frames(images, depth, w2c))
    values = bank.features[1][:, :2]

    def total(values):
        size = {"height": es.HEIGHT, "width": es.WIDTH}
        drawn = warp_entries(bank, jnp.asarray(w2c[0]), es.INTRINSICS, values=values, **size)
        return (drawn.features * jnp.arange(1.0, es.WIDTH + 1)[None, :, None]).sum()

    found, slope = jax.value_and_grad(total)(values)
    assert float(jnp.abs(found)) > 100
    np.testing.assert_allclose((slope * values).sum(), found, rtol=1e-4)


def test_entries_are_projected_exactly_on_every_device():
    bank = jax.eval_shape(lambda: init_entries(EntryConfig(64, pyramid_widths())))
    camera = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((4, 4), (3, 3))]
    warp = functools.partial(warp_entries, height=es.HEIGHT, width=es.WIDTH)
    assert not coarse_products(warp, bank, *camera)
    assert not coarse_products(lambda bank: prune_entries(bank, 8), bank)
