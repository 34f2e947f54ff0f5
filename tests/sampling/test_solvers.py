import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.sampling import (
    Schedule,
    dmd,
    dmd_schedule,
    euler,
    flow_schedule,
    sample,
    unipc,
    unipc_schedule,
)

MEAN, SPREAD = 0.7, 0.4


def gaussian_velocity(x, timestep, sigma):
    """Exact velocity when the data are normal with mean MEAN and deviation SPREAD."""
    del timestep
    variance = (1 - sigma) ** 2 * SPREAD**2 + sigma**2
    centred = x - (1 - sigma) * MEAN
    x0 = MEAN + (1 - sigma) * SPREAD**2 / variance * centred
    noise = sigma / variance * centred
    return noise - x0


def gaussian_solution(x, sigma_from, sigma_to):
    """The ODE keeps the position within the marginal's normal distribution."""
    scale = [np.sqrt((1 - s) ** 2 * SPREAD**2 + s**2) for s in (sigma_from, sigma_to)]
    return (1 - sigma_to) * MEAN + (x - (1 - sigma_from) * MEAN) / scale[0] * scale[1]


def error_after(solver, steps):
    """Greatest error from sigma 0.9 to 0.1 in `steps` steps even in the log signal-to-noise."""
    edge = np.log(9.0)
    sigmas = 1 / (1 + np.exp(np.linspace(-edge, edge, steps + 1)))
    schedule = Schedule((1000 * sigmas[:-1]).astype(np.float32), sigmas.astype(np.float32))
    x = jnp.array([-1.5, 0.3, 2.0])
    found = sample(gaussian_velocity, x, schedule, solver)
    return float(np.abs(found - gaussian_solution(np.asarray(x), 0.9, 0.1)).max())


@pytest.mark.parametrize(("solver", "order"), [(euler, 1), (unipc, 2)])
def test_order_of_convergence(solver, order):
    coarse, fine = error_after(solver, 10), error_after(solver, 40)
    measured = np.log(coarse / fine) / np.log(4)
    assert order - 0.2 < measured
    assert fine < {1: 4e-2, 2: 6e-4}[order]


def test_unipc_beats_euler_at_equal_cost():
    assert error_after(unipc, 10) < 0.1 * error_after(euler, 10)


def unipc_by_the_paper(velocity_fn, x, schedule):
    """UniPC-2 written with the paper's matrices and growing lists, float64."""
    sigmas = schedule.sigmas.astype(np.float64)
    lambdas = [np.log((1 - s) / s) if s > 0 else np.inf for s in sigmas]

    def update(x, outputs, i, order, new=None):
        """From level i to i + 1, from the data predictions at i, i - 1, ... and maybe i + 1."""
        h = lambdas[i + 1] - lambdas[i]
        base = sigmas[i + 1] / sigmas[i] * x - (1 - sigmas[i + 1]) * np.expm1(-h) * outputs[i]
        r = [(lambdas[i - k] - lambdas[i]) / h for k in range(1, order)]
        slopes = [(outputs[i - k] - outputs[i]) / r[k - 1] for k in range(1, order)]
        if new is not None:
            r, slopes = [*r, 1.0], [*slopes, new - outputs[i]]
        if not slopes:
            return base
        if len(slopes) == 1:
            weights = [0.5]
        else:
            phi = [np.expm1(-h) / -h - 1]
            phi.append(phi[0] / -h - 0.5)
            right = np.array([phi[0], 2 * phi[1]]) / np.expm1(-h)
            weights = np.linalg.solve(np.array([np.ones(2), r]), right)
        correction = sum(w * d for w, d in zip(weights, slopes, strict=True))
        return base - (1 - sigmas[i + 1]) * np.expm1(-h) * correction

    outputs, corrected, order = [], None, 1
    for i in range(schedule.steps):
        new = x - sigmas[i] * velocity_fn(x, schedule.timesteps[i], sigmas[i])
        if i > 0:
            x = update(corrected, outputs, i - 1, order, new)
        outputs.append(new)
        corrected, order = x, min(2, i + 1, schedule.steps - i)
        x = update(x, outputs, i, order)
    return x


@pytest.mark.parametrize("steps", [1, 2, 3, 7])
def test_unipc_equals_the_paper(steps):
    schedule = unipc_schedule(steps, 3.0)

    def velocity(x, timestep, sigma):
        return jnp.sin(3 * x) + sigma * x - timestep / 500

    x = np.linspace(-2, 2, 9)
    expected = unipc_by_the_paper(lambda *a: np.asarray(velocity(*a), np.float64), x, schedule)
    found = sample(velocity, jnp.asarray(x, jnp.float32), schedule, unipc)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("solver", [euler, unipc])
@pytest.mark.parametrize("schedule", [flow_schedule(6, 3.0), flow_schedule(1), dmd_schedule()])
def test_a_constant_data_prediction_is_returned(solver, schedule):
    # Holds at sigma 1 too, where the signal-to-noise ratio is 0 and its logarithm infinite.
    target = jnp.array([0.2, -0.9, 3.0])
    found = sample(lambda x, t, s: (x - target) / s, jnp.ones(3), schedule, solver)
    np.testing.assert_allclose(found, target, atol=1e-6)


def test_dmd_steps_are_the_definition():
    schedule = dmd_schedule()
    x = np.array([0.3, -1.0], np.float32)
    for i in range(4):
        x = x + (schedule.sigmas[i + 1] - schedule.sigmas[i]) * np.cos(x)
    found = sample(lambda x, t, s: jnp.cos(x), jnp.array([0.3, -1.0]), schedule, dmd)
    np.testing.assert_allclose(found, x, rtol=1e-6)


def test_bad_order_is_named():
    with pytest.raises(InputError, match="order"):
        unipc(unipc_schedule(4), order=3)
