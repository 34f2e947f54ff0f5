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
    init_train_state,
    join,
    make_train_step,
    only,
    split,
)


def test_steps_count_and_use_another_key_each():
    step, batch = toy.new_step(), next(toy.new_batches())
    state, first = step(toy.new_state(), batch)
    frozen = state.replace(params=toy.new_state().params)
    state, second = step(frozen, batch)
    # Same parameters, same batch: only the noise differs.
    assert first["loss"] != second["loss"]
    assert int(state.step) == 2
    assert set(first) == {"loss", "grad_norm", "skipped", "mean_error"}


def test_average_warms_up_then_follows_slowly():
    step, batches = toy.new_step(), toy.new_batches()
    state = toy.new_state()
    start = np.asarray(state.params["w"])
    state, _ = step(state, next(batches))
    after = np.asarray(state.params["w"])
    assert state.ema is not None
    # decay at step 0 is 1/10
    np.testing.assert_allclose(state.ema["w"], 0.1 * start + 0.9 * after, rtol=1e-6)


def test_an_accumulated_gradient_is_that_of_the_whole_batch():
    def loss(params, batch, key):
        error = batch["x"] @ params["w"] + params["b"][None] - batch["x"].sum(-1, keepdims=True)
        return jnp.mean(error**2), {"mean_error": jnp.mean(error)}

    batch = {"x": next(toy.new_batches())}
    found = {
        parts: make_train_step(loss, toy.OPTIMIZER, parts=parts)(toy.new_state(), batch)
        for parts in (1, 4)
    }
    (whole, expected), (state, metrics) = found[1], found[4]
    for name in expected:
        np.testing.assert_allclose(metrics[name], expected[name], rtol=1e-5)
    np.testing.assert_allclose(state.params["w"], whole.params["w"], rtol=1e-6)


def test_parts_of_a_batch_have_keys_of_their_own():
    def loss(params, batch, key):
        return jnp.sum(params["w"]), {"drawn": jax.random.uniform(key)}

    batch = next(toy.new_batches())
    drawn = [
        float(make_train_step(loss, toy.OPTIMIZER, parts=parts)(toy.new_state(), batch)[1]["drawn"])
        for parts in (1, 2)
    ]
    assert drawn[0] != drawn[1]


def test_a_step_that_is_not_finite_changes_its_number_alone():
    step, batch = toy.new_step(), next(toy.new_batches())
    state, metrics = step(toy.new_state(), batch)
    assert metrics["skipped"] == 0
    before = jax.device_get((state.params, state.opt_state, state.ema))
    state, metrics = step(state, batch * np.inf)
    assert metrics["skipped"] == 1
    assert int(state.step) == 2
    jax.tree.map(np.testing.assert_array_equal, before, (state.params, state.opt_state, state.ema))


def test_without_average():
    state = init_train_state(
        {"w": np.ones((4, 1)), "b": np.zeros(1)}, toy.OPTIMIZER, jax.random.key(0), with_ema=False
    )
    state, _ = toy.new_step()(state, next(toy.new_batches()))
    assert state.ema is None


def test_modules_are_chosen_by_whole_names():
    params = {
        "layers": {"new": {"kernel": jnp.ones((3,))}, "renewed": {"kernel": jnp.ones((3,))}},
        "head": {"kernel": jnp.ones((3,))},
    }
    chosen = only(params, "new")
    assert chosen["layers"] == {"new": {"kernel": True}, "renewed": {"kernel": False}}
    assert chosen["head"] == {"kernel": False}
    assert only(params, "layers/new", "head")["head"] == {"kernel": True}
    with pytest.raises(InputError, match="module 'ne'"):
        only(params, "ne")


def test_what_is_frozen_stays_out_of_the_state():
    """Then nothing is kept of it: no moments, no average, no gradient."""
    params = {
        "layers": {"new": {"kernel": jnp.ones((3,))}, "old": {"kernel": 2 * jnp.ones((4,))}},
        "head": {"bias": jnp.ones((5,))},
    }
    trained, frozen = split(params, only(params, "new"))
    assert trained == {"layers": {"new": params["layers"]["new"]}}
    assert set(frozen) == {"layers", "head"}
    assert set(frozen["layers"]) == {"old"}
    jax.tree.map(np.testing.assert_array_equal, join(trained, frozen), params)

    def loss(trained, frozen, key):
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(join(trained, frozen))), {}

    optimizer = optax.adamw(0.1, weight_decay=0.5)
    state = init_train_state(trained, optimizer, jax.random.key(0))
    state, metrics = make_train_step(loss, optimizer)(state, frozen)
    assert metrics["loss"] == 3 + 16 + 5
    np.testing.assert_allclose(metrics["grad_norm"], np.sqrt(12))
    # The parameter, two moments and the average.
    assert [leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim] == [(3,)] * 4
