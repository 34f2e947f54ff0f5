import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.memory.entry_store import build_store, index_bank, init_store, update_store


@pytest.fixture(scope="module")
def stacked(room):
    w2c = es.cameras(room, 10)[[0, 3, 6]]
    images, depth = es.photographs(room, w2c)
    return es.frames(images, es.noisy(depth), w2c)


@pytest.mark.row("S10")
@pytest.mark.row("S29")
def test_looking_only_at_what_is_in_view_gives_the_same_bank(stacked):
    run = functools.partial(build_store, rule=es.RULE, most=6000)
    empty = init_store(es.CONFIG, cell=0.2, batch=6000)
    store = jax.jit(run, donate_argnums=0)(empty, stacked)
    whole = es.build(stacked)
    assert int(store.missed) == 0
    assert int(store.bank.count) == int(store.index.count) == int(whole.count)
    for a, b in zip(jax.tree.leaves(store.bank), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    # Every entry is in the index under its slot.
    held = np.concatenate([np.asarray(run.entry)[: int(run.count)] for run in store.index.runs])
    assert sorted(held) == list(range(int(whole.count)))
    anew = index_bank(whole, cell=0.2, batch=6000)
    assert int(anew.index.count) == int(whole.count)


@pytest.mark.slow
@pytest.mark.row("S29")
def test_entries_in_view_that_are_passed_over_are_counted(stacked):
    store = index_bank(es.build(stacked, [0]), cell=0.2, batch=6000)
    few = update_store(store, es.one(stacked, 1), rule=es.RULE, most=100)
    assert int(few.missed) > 500
    assert jnp.isfinite(few.bank.position).all()
