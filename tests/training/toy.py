"""A toy regression shared by the tests of the training loop."""

import jax
import jax.numpy as jnp
import optax

from worldstereo_jax.training.batches import SeededBatches
from worldstereo_jax.training.state import init_train_state, make_train_step

OPTIMIZER = optax.adam(0.05)


def loss_fn(params, batch, key):
    # The random key enters, so that losing it shows.
    noise = 0.1 * jax.random.normal(key, batch.shape)
    error = (batch + noise) @ params["w"] + params["b"][None] - 3.0 * batch.sum(-1, keepdims=True)
    return jnp.mean(error**2), {"mean_error": jnp.mean(error)}


def new_state(seed=0):
    params = {"w": jnp.full((4, 1), 0.5), "b": jnp.zeros(1)}
    return init_train_state(params, OPTIMIZER, jax.random.key(seed))


def new_step():
    return make_train_step(loss_fn, OPTIMIZER, ema_decay=0.9)


def new_batches(seed=0):
    return SeededBatches(lambda rng: rng.standard_normal((8, 4)).astype("float32"), seed)
