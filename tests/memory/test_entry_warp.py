import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
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
