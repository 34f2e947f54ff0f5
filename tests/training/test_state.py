import sys
from pathlib import Path

import jax
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
import toy

from worldstereo_jax.training.state import init_train_state


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
