"""The whole denoising loop as one `lax.scan`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, Int
from worldstereo_jax.sampling.schedules import Schedule
from worldstereo_jax.sampling.solvers import SolverFactory

VelocityFn = Callable[[Array, Array, Array], Array]
"""(x [...], timestep scalar in 0..1000, sigma scalar in 0..1) -> velocity [...]."""


def sample(
    velocity_fn: VelocityFn,
    noise: Float[Array, "..."],
    schedule: Schedule,
    solver: SolverFactory,
    *,
    on_step: Callable[[int], None] | None = None,
) -> Float[Array, "..."]:
    """Denoise `noise` [...] (unit normal) along `schedule`; returns x at the last sigma, float32.

    velocity_fn: called once in tracing as velocity_fn(x, timestep, sigma) with float32 scalars,
        evaluated `schedule.steps` times.
    solver: `euler`, `dmd`, `unipc` or another function from a schedule to a `Solver`.
    on_step: called on the host with the index of each finished step, for a progress bar.

    The first sigma is taken as the noise level of `noise` itself, as the official code does.
    """
    made = solver(schedule)
    report = None if on_step is None else lambda index: on_step(int(index))

    def body(state: Any, index: Array) -> tuple[Any, None]:
        state = made.step(state, _velocity(velocity_fn, schedule, state, index), index)
        if report is not None:
            # The value passed depends on the new state, so that the call follows the step.
            done, _ = jax.lax.optimization_barrier((index, state.sample))
            jax.debug.callback(report, done)
        return state, None

    state, _ = jax.lax.scan(body, made.init(noise), jnp.arange(schedule.steps))
    return state.sample


def sample_until(
    velocity_fn: VelocityFn,
    noise: Float[Array, "..."],
    schedule: Schedule,
    solver: SolverFactory,
    steps: Int[Array, ""],
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """The first `steps` steps of `sample`, and no more.

    Their number may be traced: one program serves all of them. No gradient can be taken through
    the steps.

    Args:
        velocity_fn, noise, schedule, solver: as in `sample`.
        steps: 0 .. `schedule.steps`.

    Returns:
        x at sigmas[steps], and x0 = x - sigma v as the last of the steps predicted it (0 when there
        was none), both float32. Behind all steps of an Euler schedule that ends at sigma 0, the two
        are the same and what `sample` returns.
    """
    made = solver(schedule)

    def body(index: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        state, _ = carry
        velocity = _velocity(velocity_fn, schedule, state, index)
        x0 = state.sample - jnp.asarray(schedule.sigmas)[index] * velocity
        return made.step(state, velocity, index), x0

    start = made.init(noise)
    state, x0 = jax.lax.fori_loop(0, steps, body, (start, jnp.zeros_like(start.sample)))
    return state.sample, x0


def _velocity(velocity_fn: VelocityFn, schedule: Schedule, state: Any, index: Array) -> Array:
    """What the network says in step `index`, which may be traced; float32."""
    timestep = jnp.asarray(schedule.timesteps)[index]
    sigma = jnp.asarray(schedule.sigmas)[index]
    return velocity_fn(state.sample, timestep, sigma).astype(jnp.float32)


def make_sampler(
    velocity_fn: Callable[[Any, Array, Array, Array], Array],
    schedule: Schedule,
    solver: SolverFactory,
    *,
    on_step: Callable[[int], None] | None = None,
) -> Callable[[Any, Array], Array]:
    """Return jitted `(context, noise) -> x0`; a second call with the same shapes compiles nothing.

    velocity_fn: (context, x, timestep, sigma) -> velocity; `context` is any pytree of arrays
        (parameters, text, control, memory), passed as an argument so that it is not baked into
        the program.
    """

    @jax.jit
    def run(context: Any, noise: Array) -> Array:
        return sample(
            lambda x, timestep, sigma: velocity_fn(context, x, timestep, sigma),
            noise,
            schedule,
            solver,
            on_step=on_step,
        )

    return run
