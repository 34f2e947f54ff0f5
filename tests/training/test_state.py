import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

sys.path.insert(0, str(Path(__file__).parent))
import toy

from worldstereo_jax.errors import InputError
from worldstereo_jax.training.state import (
    freeze_rest,
    init_train_state,
    make_train_step,
    only,
    train_only,
)


def test_steps_count_and_use_another_key_each():
    step, batch = toy.new_step(), next(toy.new_batches())
    state, first = step(toy.new_state(), batch)
    frozen = state.replace(params=toy.new_state().params)
    state, second = step(frozen, batch)
    # Same parameters, same batch: only the noise differs.
    assert first["loss"] != second["loss"]
    assert int(state.step) == 2
    assert set(first) == {"loss", "grad_norm", "mean_error"}


def test_average_warms_up_then_follows_slowly():
    step, batches = toy.new_step(), toy.new_batches()
    state = toy.new_state()
    start = np.asarray(state.params["w"])
    state, _ = step(state, next(batches))
    after = np.asarray(state.params["w"])
    assert state.ema is not None
    # decay at step 0 is 1/10
    np.testing.assert_allclose(state.ema["w"], 0.1 * start + 0.9 * after, rtol=1e-6)


def test_without_average():
    state = init_train_state(
        {"w": np.ones((4, 1)), "b": np.zeros(1)}, toy.OPTIMIZER, jax.random.key(0), with_ema=False
    )
    state, _ = toy.new_step()(state, next(toy.new_batches()))
    assert state.ema is None


def test_only_the_named_modules_are_trained():
    """The rest stays bit for bit, weight decay or not, and no gradient is computed for it."""
    params = {
        "layers": {"new": {"kernel": jnp.ones((3,))}, "renewed": {"kernel": jnp.ones((3,))}},
        "head": {"kernel": jnp.ones((3,))},
    }
    chosen = only(params, "new")
    assert chosen["layers"] == {"new": {"kernel": True}, "renewed": {"kernel": False}}

    def loss(params, batch, key):
        params = freeze_rest(params, chosen)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(params)), {}

    gradient = jax.grad(lambda p: loss(p, None, None)[0])(params)
    np.testing.assert_array_equal(gradient["head"]["kernel"], 0)
    optimizer = train_only(optax.adamw(0.1, weight_decay=0.5), chosen)
    before = jax.device_get(params)
    state = init_train_state(params, optimizer, jax.random.key(0))
    state, _ = make_train_step(loss, optimizer)(state, None)
    after = jax.device_get(state.params)
    assert (after["layers"]["new"]["kernel"] < 1).all()
    np.testing.assert_array_equal(after["head"]["kernel"], before["head"]["kernel"])
    np.testing.assert_array_equal(
        after["layers"]["renewed"]["kernel"], before["layers"]["renewed"]["kernel"]
    )
    with pytest.raises(InputError, match="module 'ne'"):
        only(params, "ne")
