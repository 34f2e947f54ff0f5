"""Distillations whose optimum is known: clips of independent numbers.

They are normal: teacher and fake score predict exactly as a normal distribution of some mean and
deviation asks, and the student's prediction is affine in each of its steps, so that what it makes
is normal too. Or they are of two kinds, and student and fake score are small networks.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax

from worldstereo_jax.sampling.schedules import dmd_schedule
from worldstereo_jax.training.distill import Networks
from worldstereo_jax.training.distill_state import Optimizers, init_distill_state
from worldstereo_jax.training.official_objective import SHIFT, stratified_sigmas
from worldstereo_jax.training.state import split

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
    return init_distill_state(split(TEACHER, CHOSEN)[0], optimizers, jax.random.key(seed))


SPREAD, SIZES = 0.1, (4, 32, 32, 1)
"""Of either kind: a and -a, with this deviation; widths of the network's layers."""


def two_kinds(key, amplitude, count):
    """True numbers [b, count] for amplitudes a [b, 1]."""
    coin_key, noise_key = jax.random.split(key)
    shape = (len(amplitude), count)
    noise = SPREAD * jax.random.normal(noise_key, shape)
    return amplitude * jax.random.rademacher(coin_key, shape, jnp.float32) + noise


def two_kinds_velocity(params, amplitude, x, timestep):
    """(x - E[x0 | x]) / sigma of a mixture of two normal distributions."""
    sigma = timestep[:, None] / 1000
    left = 1 - sigma
    variance = (left * SPREAD) ** 2 + sigma**2
    share = jax.nn.sigmoid(2 * left * amplitude * x / variance)
    gain = left * SPREAD**2 / variance
    kinds = [kind + gain * (x - left * kind) for kind in (amplitude, -amplitude)]
    return (x - share * kinds[0] - (1 - share) * kinds[1]) / sigma


def network_velocity(params, amplitude, x, timestep):
    """A small network, the same for every number."""
    sigma = jnp.broadcast_to(timestep[:, None] / 1000, x.shape)
    hidden = jnp.stack([x, sigma, jnp.broadcast_to(amplitude, x.shape), x * sigma], axis=-1)
    for number, layer in enumerate(params.values()):
        hidden = (jax.nn.silu(hidden) if number else hidden) @ layer["kernel"]
        hidden = hidden + layer["bias"][None, None]
    return hidden[..., 0]


def network_params():
    """Of `network_velocity`, after flow matching on true numbers: the teacher but for what is left.

    A distillation starts from its teacher, and this one is no network.
    """
    rng = np.random.default_rng(0)
    params = {
        f"layer_{number}": {
            "kernel": jnp.asarray(rng.normal(size=shape) / np.sqrt(shape[0]), jnp.float32),
            "bias": jnp.zeros(shape[1]),
        }
        for number, shape in enumerate(itertools.pairwise(SIZES))
    }
    optimizer = optax.adam(5e-3)

    def loss(params, key):
        amplitude_key, target_key, sigma_key, noise_key = jax.random.split(key, 4)
        amplitude = jax.random.uniform(amplitude_key, (64, 1), minval=0.4, maxval=1.2)
        target = two_kinds(target_key, amplitude, 16)
        sigma = stratified_sigmas(sigma_key, 64, SHIFT)[:, None]
        noise = jax.random.normal(noise_key, target.shape)
        x = (1 - sigma) * target + sigma * noise
        found = network_velocity(params, amplitude, x, 1000 * sigma[:, 0])
        return jnp.mean((found - (noise - target)) ** 2)

    def step(carry, key):
        params, state = carry
        updates, state = optimizer.update(jax.grad(loss)(params, key), state)
        return (optax.apply_updates(params, updates), state), None

    @jax.jit
    def run(params, key):
        start = (params, optimizer.init(params))
        return jax.lax.scan(step, start, jax.random.split(key, 1000))[0][0]

    return run(params, jax.random.key(0))


TWO_KINDS = Networks(
    student=network_velocity,
    fake=network_velocity,
    teacher=two_kinds_velocity,
    schedule=dmd_schedule(4),
    shape=lambda amplitude: (len(amplitude), 16),
)
