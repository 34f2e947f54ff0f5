"""The denoising loop: as one `lax.scan`, and as steps that the host counts.

`sample` is for one program that holds the whole loop, `make_stepped_sampler` for commands: it tells
of each step without a callback inside the program, since a program that calls back is not kept in
jax's persistent cache and would be compiled again by every process.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, Int
from worldstereo_jax.sampling.precision import jit_at
from worldstereo_jax.sampling.schedules import Schedule
from worldstereo_jax.sampling.solvers import Solver, SolverFactory

VelocityFn = Callable[[Array, Array, Array], Array]
"""(x [...], timestep scalar in 0..1000, sigma scalar in 0..1) -> velocity [...]."""


def sample(
    velocity_fn: VelocityFn,
    noise: Float[Array, "..."],
    schedule: Schedule,
    solver: SolverFactory,
) -> Float[Array, "..."]:
    """Denoise `noise` [...] (unit normal) along `schedule`; returns x at the last sigma, float32.

    velocity_fn: called once in tracing as velocity_fn(x, timestep, sigma) with float32 scalars,
        evaluated `schedule.steps` times.
    solver: `euler`, `dmd`, `unipc` or another function from a schedule to a `Solver`.

    The first sigma is taken as the noise level of `noise` itself, as the official code does.
    """
    made = solver(schedule)

    def body(state: Any, index: Array) -> tuple[Any, None]:
        return _step(velocity_fn, schedule, made, state, index), None

    state, _ = jax.lax.scan(body, made.init(noise), jnp.arange(schedule.steps))
    return state.sample


def advance(
    velocity_fn: VelocityFn,
    state: Any,
    schedule: Schedule,
    solver: SolverFactory,
    first: Int[Array, ""],
    last: Int[Array, ""],
) -> Any:
    """The solver's state after the steps `first` .. `last` - 1 of `sample`.

    Both may be traced: one program serves any run of steps, and gives the same bits whether they
    are taken at once or one by one. No gradient can be taken through it.

    Args:
        velocity_fn, schedule, solver: as in `sample`.
        state: of the solver, before step `first`.
        first, last: 0 .. `schedule.steps`.
    """
    made = solver(schedule)
    return jax.lax.fori_loop(
        first, last, lambda index, state: _step(velocity_fn, schedule, made, state, index), state
    )


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


def _step(
    velocity_fn: VelocityFn, schedule: Schedule, made: Solver, state: Any, index: Array
) -> Any:
    return made.step(state, _velocity(velocity_fn, schedule, state, index), index)


def _velocity(velocity_fn: VelocityFn, schedule: Schedule, state: Any, index: Array) -> Array:
    """What the network says in step `index`, which may be traced; float32."""
    timestep = jnp.asarray(schedule.timesteps)[index]
    sigma = jnp.asarray(schedule.sigmas)[index]
    return velocity_fn(state.sample, timestep, sigma).astype(jnp.float32)


def make_sampler(
    velocity_fn: Callable[[Any, Array, Array, Array], Array],
    schedule: Schedule,
    solver: SolverFactory,
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
        )

    return run


def make_stepped_sampler(
    velocity_fn: Callable[[Any, Array, Array, Array], Array],
    schedule: Schedule,
    solver: SolverFactory,
    *,
    on_step: Callable[[int], None] | None = None,
    precision: str | None = None,
    settle: Callable[[Any], Any] = lambda state: state,
) -> Callable[[Any, Array], Array]:
    """Return `(context, noise) -> x0` like `make_sampler`'s, whose steps are run from the host.

    The result is the same bit for bit whether steps are told of or not, and so is the program,
    which is kept in jax's persistent cache where there is one.

    Args:
        velocity_fn, schedule, solver: as in `make_sampler`.
        on_step: called with the index of each finished step. None runs all of them in one call,
            which may also be traced.
        precision: of the program's products, see `precision.jit_at`.
        settle: applied in the program to the solver's states, to say how they lie on devices: as
            the first one does, or the second step would be another program.
    """

    def start(noise: Array) -> Any:
        return settle(solver(schedule).init(noise))

    def proceed(context: Any, state: Any, first: Array, last: Array) -> Any:
        def velocity(x: Array, timestep: Array, sigma: Array) -> Array:
            return velocity_fn(context, x, timestep, sigma)

        return settle(advance(velocity, state, schedule, solver, first, last))

    # The state is not donated: it is small beside any network, and may be the caller's noise.
    starting, proceeding = jit_at(precision, start), jit_at(precision, proceed)

    def run(context: Any, noise: Array) -> Array:
        def go(state: Any, first: int, last: int) -> Any:
            return proceeding(context, state, np.int32(first), np.int32(last))

        return run_steps(go, starting(noise), schedule.steps, on_step).sample

    return run


def run_steps(
    proceed: Callable[[Any, int, int], Any],
    state: Any,
    steps: int,
    on_step: Callable[[int], None] | None = None,
) -> Any:
    """The state after `steps` steps, all at once or, where they are told of, one by one.

    Args:
        proceed: (state, first, last) -> state, such as a jitted `advance`.
        state: before the first step.
        steps: how many there are.
        on_step: called with the index of each finished step.
    """
    if on_step is None:
        return proceed(state, 0, steps)
    for index in range(steps):
        state = jax.block_until_ready(proceed(state, index, index + 1))
        on_step(index)
    return state
