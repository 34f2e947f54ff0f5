"""Solvers of the probability-flow ODE dx/dsigma = v, as pure steps inside one scan.

A solver is made from a `Schedule` on the host: a table with the numbers of each step, and the pure
functions `init(x) -> state` and `step(state, velocity, row) -> state`, where `velocity` is the
network's at (state.sample, sigmas[i]) and `row` is row i of the table. All step sizes and multistep
weights are computed once in float64, so the scan's body holds only linear combinations and never
meets the infinite log signal-to-noise ratios at sigma 0 and 1. Since the table is data, a program
may take it as an argument and serve any schedule.
"""

import math
import typing
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax.numpy as jnp
import numpy as np
from flax import struct

from worldstereo_jax.array_types import Array, Float, PyTree, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.sampling.prediction import flow_x0
from worldstereo_jax.sampling.schedules import Schedule


@runtime_checkable
class SolverState(Protocol):
    """What every solver's state offers: `sample`, the current x, float32, any shape."""

    @property
    def sample(self) -> Array:
        """The current x at sigmas[index]."""
        ...


class Solver(NamedTuple):
    """`init(x) -> state` and `step(state, velocity, row) -> state`; states are pytrees.

    `table` is a pytree of float32 arrays [n, ...], a row for each of the schedule's steps: all that
    `step` knows of the schedule. `init` and `step` know nothing of it.
    """

    table: PyTree
    init: Callable[[Array], SolverState]
    step: Callable[[Any, Array, PyTree], SolverState]


SolverFactory = Callable[[Schedule], Solver]


@struct.dataclass
@typing.no_type_check
class EulerState:
    """State of `euler`: `sample` float32 [...], x at the current noise level."""

    sample: Float[Array, "..."]


def euler(schedule: Schedule) -> Solver:
    """First order: x += (sigma_next - sigma) v."""

    def init(x: Float[Array, "..."]) -> EulerState:
        return EulerState(sample=x.astype(jnp.float32))

    def step(state: EulerState, velocity: Float[Array, "..."], size) -> EulerState:
        return EulerState(sample=state.sample + size * velocity.astype(jnp.float32))

    return Solver(np.diff(schedule.sigmas), init, step)


def dmd(schedule: Schedule) -> Solver:
    """Return the few-step sampler of the distilled model: Euler steps over a `dmd_schedule`."""
    return euler(schedule)


class UniPCRow(NamedTuple):
    """Numbers of a step of `unipc`: its sigma, and the weights of `unipc_weights`.

    Attributes:
        sigma: [] or, of a whole table, [n].
        corrector: [5] or [n, 5].
        predictor: [3] or [n, 3].
    """

    sigma: Array | ndarray
    corrector: Array | ndarray
    predictor: Array | ndarray


@struct.dataclass
@typing.no_type_check
class UniPCState:
    """State of `unipc`; all float32 of the sample's shape.

    sample: the predictor's x at the current noise level.
    corrected: x at the level before, after its corrector.
    x0, x0_before: the last two data predictions, newest first; zero until they exist.
    """

    sample: Float[Array, "..."]
    corrected: Float[Array, "..."]
    x0: Float[Array, "..."]
    x0_before: Float[Array, "..."]


def unipc(schedule: Schedule, *, order: int = 2) -> Solver:
    """UniPC, data prediction, B(h) = e^h - 1 ("bh2"), with corrector, lower order at both ends.

    Zhao et al. 2023, "UniPC", algorithms 5 to 8 (data prediction), with the official model's
    settings. With lambda = log((1 - sigma) / sigma), h = lambda_next - lambda and
    r = (lambda_before - lambda) / h, one evaluation x0 = x - sigma v first corrects x at its own
    level, then predicts the next. The last step has order 1 and returns its x0.

    Raises InputError when `order` is not 1 or 2.
    """
    if order not in (1, 2):
        raise InputError(f"UniPC's order must be 1 or 2, not {order}")
    table = UniPCRow(schedule.sigmas[:-1], *unipc_weights(schedule, order))

    def init(x: Float[Array, "..."]) -> UniPCState:
        x = x.astype(jnp.float32)
        zero = jnp.zeros_like(x)
        return UniPCState(sample=x, corrected=zero, x0=zero, x0_before=zero)

    def step(state: UniPCState, velocity: Float[Array, "..."], row: UniPCRow) -> UniPCState:
        x0 = flow_x0(velocity.astype(jnp.float32), state.sample, jnp.asarray(row.sigma))
        terms = (state.sample, state.corrected, state.x0, state.x0_before, x0)
        corrected = _combine(row.corrector, terms)
        sample = _combine(row.predictor, (corrected, x0, state.x0))
        return UniPCState(sample=sample, corrected=corrected, x0=x0, x0_before=state.x0)

    return Solver(table, init, step)


def unipc_weights(
    schedule: Schedule, order: int
) -> tuple[Float[ndarray, "n 5"], Float[ndarray, "n 3"]]:
    """Return UniPC's step weights, float32.

    Returns (corrector, predictor): at step i the corrected x is `corrector[i]` times
    (sample, corrected x of step i - 1, x0 of i - 1, x0 of i - 2, x0 of i), and the next sample is
    `predictor[i]` times (corrected x, x0 of i, x0 of i - 1).
    """
    sigmas = schedule.sigmas.astype(np.float64)
    with np.errstate(divide="ignore"):
        lambdas = np.log1p(-sigmas) - np.log(sigmas)
    steps = schedule.steps
    orders = [min(order, i + 1, steps - i) for i in range(steps)]
    corrector, predictor = np.zeros((steps, 5)), np.zeros((steps, 3))
    corrector[0, 0] = 1.0
    for i in range(steps):
        h = lambdas[i + 1] - lambdas[i]
        # b is alpha_next B(h): expm1(-h) is -1 at infinite h, so both ends stay finite.
        b = (1 - sigmas[i + 1]) * -math.expm1(-h)
        keep = sigmas[i + 1] / sigmas[i]
        r = (lambdas[i - 1] - lambdas[i]) / h if orders[i] == 2 else -math.inf
        old = 0.5 / r if orders[i] == 2 else 0.0
        predictor[i] = keep, b * (1 - old), b * old
        if i + 1 < steps:
            old, new = _corrector_weights(h, r, orders[i])
            corrector[i + 1, 1:] = keep, b * (1 - old - new), b * old, b * new
    return corrector.astype(np.float32), predictor.astype(np.float32)


def _corrector_weights(h: float, r: float, order: int) -> tuple[float, float]:
    """Return the weights of (x0_before - x0) and (x0_new - x0) that satisfy the order conditions.

    They solve [[1, 1], [r, 1]] rho = (phi_1, phi_2) / B(h); order 1 takes 1/2 for the new one.
    """
    if order == 1:
        return 0.0, 0.5
    hh = -h
    bh = math.expm1(hh)
    phi_1 = bh / hh - 1
    phi_2 = phi_1 / hh - 0.5
    first, second = phi_1 / bh, 2 * phi_2 / bh
    rho = (second - first) / (r - 1)
    return rho / r, first - rho


def _combine(weights: Float[Array | ndarray, "k"], terms: tuple[Array, ...]) -> Array:
    total = weights[0] * terms[0]
    for i, term in enumerate(terms[1:], start=1):
        total = total + weights[i] * term
    return total
