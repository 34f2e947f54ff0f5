"""A distillation whose optimum is known: clips of independent normal numbers.

Teacher and fake score predict exactly as a normal distribution of some mean and deviation asks; the
student's prediction is affine in each of its steps, so that what it makes is normal too.
"""

import jax
import jax.numpy as jnp
import optax

from worldstereo_jax.sampling.schedules import dmd_schedule
from worldstereo_jax.training.distill import Networks
from worldstereo_jax.training.distill_state import Optimizers, init_distill_state, pick

MEAN, DEVIATION = 1.5, 0.5
SCHEDULE = dmd_schedule(2)
TEACHER = {
    "score": {"mean": jnp.array(MEAN), "log_deviation": jnp.log(jnp.array(DEVIATION))},
    "steps": {"gain": jnp.array([0.2, 0.4]), "shift": jnp.array([0.0, -0.3])},
    # What all networks share; a factor of 1.
    "shared": {"one": jnp.array(1.0)},
}
CHOSEN = {
    "score": {"mean": True, "log_deviation": True},
    "steps": {"gain": True, "shift": True},
    "shared": {"one": False},
}


def normal_velocity(params, conditions, x, timestep):
    """(x - E[x0 | x]) / sigma where x0 is normal."""
    mean, variance = params["score"]["mean"], jnp.exp(2 * params["score"]["log_deviation"])
    sigma = timestep[:, None] / 1000
    left = 1 - sigma
    gain = left * variance / (left**2 * variance + sigma**2)
    return params["shared"]["one"] * (x - mean - gain * (x - left * mean)) / sigma


def affine_velocity(params, conditions, x, timestep):
    """(x - x0) / sigma where x0 is affine in x, in each step in its own way."""
    step = jnp.argmin(jnp.abs(jnp.asarray(SCHEDULE.timesteps) - timestep[0]))
    gain, shift = params["steps"]["gain"][step], params["steps"]["shift"][step]
    return params["shared"]["one"] * (x - gain * x - shift) / (timestep[:, None] / 1000)


NETWORKS = Networks(
    student=affine_velocity,
    fake=normal_velocity,
    teacher=normal_velocity,
    schedule=SCHEDULE,
    shape=lambda conditions: conditions.shape,
)
OPTIMIZERS = Optimizers(optax.adam(0.02, b1=0.5), optax.adam(0.04, b1=0.5))


def read(batch, key):
    return batch


def new_state(seed=0, optimizers=OPTIMIZERS):
    return init_distill_state(pick(TEACHER, CHOSEN), optimizers, jax.random.key(seed))
