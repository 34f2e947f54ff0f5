"""The denoising loop: as one `lax.scan`, and as steps that the host counts.

`sample` is for one program that holds the whole loop, `make_stepped_sampler` for commands. That one
tells of each step without a callback inside the program, since a program that calls back is not
kept in jax's persistent cache and would be compiled again by every process; and what a step knows
of the schedule is an argument, so that one program serves every schedule.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, Int, PyTree, ndarray
from worldstereo_jax.sampling.precision import jit_at
from worldstereo_jax.sampling.schedules import Schedule
from worldstereo_jax.sampling.solvers import Solver, SolverFactory

_TABLE_ROWS = 64  # tables are padded to a multiple of these, so that their shape is that of others
VelocityFn = Callable[[Array, Array, Array], Array]
"""(x [...], timestep scalar in 0..1000, sigma scalar in 0..1) -> velocity [...]."""


class Step(NamedTuple):
    """What a step needs to know of its schedule.

    Of a table every array has the steps first, and may be the host's.

    Attributes:
        timestep: float32 [], what the network receives, 0 .. 1000.
        sigma: float32 [], the noise level that the step begins at.
        row: the solver's numbers, see `solvers.Solver`.
    """

    timestep: Array
    sigma: Array
    row: PyTree


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
    table = _steps(schedule, made)

    def body(state: Any, index: Array) -> tuple[Any, None]:
        return _take(velocity_fn, made, state, _step_at(table, index)), None

    state, _ = jax.lax.scan(body, made.init(noise), jnp.arange(schedule.steps))
    return state.sample


def step_table(schedule: Schedule, solver: Solver) -> Step:
    """The steps of a schedule as `advance` takes them, arrays of the host.

    Padded with zeros to a multiple of 64 steps, so that a program that takes a table as an argument
    serves schedules of any number of steps up to that.

    Args:
        schedule: noise levels.
        solver: made from the same schedule.
    """
    rows = -(-schedule.steps // _TABLE_ROWS) * _TABLE_ROWS

    def padded(values: Array | ndarray) -> ndarray:
        values = np.asarray(values)
        return np.pad(values, [(0, rows - len(values))] + [(0, 0)] * (values.ndim - 1))

    return jax.tree.map(padded, _steps(schedule, solver))


def advance(
    velocity_fn: VelocityFn,
    solver: Solver,
    state: Any,
    table: Step,
    first: Int[Array, ""],
    last: Int[Array, ""],
) -> Any:
    """The solver's state after the steps `first` .. `last` - 1 of `sample`.

    Table, first and last may be traced: one program serves any run of steps of any schedule, and
    gives the same bits whether they are taken at once or one by one. No gradient can be taken
    through it.

    Args:
        velocity_fn: as in `sample`.
        solver: of any schedule; its table is not read.
        state: of the solver, before step `first`.
        table: of `step_table`.
        first, last: 0 .. steps of the schedule.
    """
    return jax.lax.fori_loop(
        first,
        last,
        lambda index, state: _take(velocity_fn, solver, state, _step_at(table, index)),
        state,
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
    table = _steps(schedule, made)

    def body(index: Array, carry: tuple[Any, Array]) -> tuple[Any, Array]:
        state, _ = carry
        step = _step_at(table, index)
        velocity = _velocity(velocity_fn, state, step)
        x0 = state.sample - step.sigma * velocity
        return made.step(state, velocity, step.row), x0

    start = made.init(noise)
    state, x0 = jax.lax.fori_loop(0, steps, body, (start, jnp.zeros_like(start.sample)))
    return state.sample, x0


def _steps(schedule: Schedule, solver: Solver) -> Step:
    table: Any = schedule.timesteps, schedule.sigmas[:-1], solver.table
    return Step(*table)


def _step_at(table: Step, index: Array) -> Step:
    """One step of a table; `index` may be traced."""
    return jax.tree.map(lambda values: jnp.asarray(values)[index], table)


def _take(velocity_fn: VelocityFn, solver: Solver, state: Any, step: Step) -> Any:
    return solver.step(state, _velocity(velocity_fn, state, step), step.row)


def _velocity(velocity_fn: VelocityFn, state: Any, step: Step) -> Array:
    """What the network says in a step; float32."""
    return velocity_fn(state.sample, step.timestep, step.sigma).astype(jnp.float32)


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
    which is kept in jax's persistent cache where there is one and is that of other schedules, too.

    Args:
        velocity_fn, schedule, solver: as in `make_sampler`.
        on_step: called with the index of each finished step. None runs all of them in one call,
            which may also be traced.
        precision: of the program's products, see `precision.jit_at`.
        settle: applied in the program to the solver's states, to say how they lie on devices: as
            the first one does, or the second step would be another program.
    """

    made = solver(schedule)
    table = step_table(schedule, made)

    def start(noise: Array) -> Any:
        return settle(made.init(noise))

    def proceed(context: Any, state: Any, table: Step, first: Array, last: Array) -> Any:
        def velocity(x: Array, timestep: Array, sigma: Array) -> Array:
            return velocity_fn(context, x, timestep, sigma)

        return settle(advance(velocity, made, state, table, first, last))

    # The state is not donated: it is small beside any network, and may be the caller's noise.
    starting, proceeding = jit_at(precision, start), jit_at(precision, proceed)

    def run(context: Any, noise: Array) -> Array:
        def go(state: Any, first: int, last: int) -> Any:
            return proceeding(context, state, table, np.int32(first), np.int32(last))

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
