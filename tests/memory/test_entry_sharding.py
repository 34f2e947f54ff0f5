"""Entries spread over a mesh of eight devices: the same results as on one (rows S18, S30)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from tests.memory import entry_scene as es
from worldstereo_jax.memory.entry_prune import prune_entries
from worldstereo_jax.memory.entry_views import used_views
from worldstereo_jax.memory.entry_warp import warp_entries


@pytest.fixture(scope="module")
def bank(room):
    w2c = es.cameras(room, 10)[[0, 3, 6]]
    images, depth = es.photographs(room, w2c)
    return es.build(es.frames(images, es.noisy(depth), w2c))


@pytest.fixture(scope="module")
def spread(bank):
    assert len(jax.devices()) >= 8
    mesh = Mesh(np.array(jax.devices()[:8]), ("entries",))

    def place(leaf):
        spec = PartitionSpec("entries") if leaf.ndim else PartitionSpec()
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    found = jax.tree.map(place, bank)
    assert len(found.position.sharding.device_set) == 8
    return found


@pytest.mark.row("S30")
def test_pruned_over_eight_devices_is_pruned_on_one(bank, spread):
    budget = int(bank.count) // 2
    alone, together = prune_entries(bank, budget), prune_entries(spread, budget)
    assert int(alone.count) == budget
    es.assert_equal_banks(alone, together)


@pytest.mark.row("S18")
def test_drawn_over_eight_devices_is_drawn_on_one(bank, spread, room):
    camera = jnp.asarray(room.look([0.1, -0.1, 0.1], [0.1, 0.4, 4.0]), jnp.float32)
    alone, together = (
        warp_entries(x, camera, jnp.asarray(es.INTRINSICS), height=es.HEIGHT, width=es.WIDTH)
        for x in (bank, spread)
    )
    assert float(alone.mask.mean()) < 0.2
    np.testing.assert_array_equal(alone.mask, together.mask)
    np.testing.assert_allclose(alone.depth, together.depth, rtol=1e-5)
    np.testing.assert_allclose(alone.features, together.features, atol=1e-5)


@pytest.mark.row("S33")
def test_views_in_use_are_told_over_eight_devices(bank, spread):
    """Merging asks for them; a mesh of CPUs has no `or` over whole words."""
    found = jax.jit(used_views)(spread.views)
    assert int(found.sum()) == 3
    np.testing.assert_array_equal(found, used_views(bank.views))
