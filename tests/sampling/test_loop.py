import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.sampling import euler, make_sampler, sample, unipc, unipc_schedule

SCHEDULE = unipc_schedule(5, 3.0)


def velocity(weight, x, timestep, sigma):
    return jnp.tanh(x @ weight) + sigma * x - timestep / 1000


def inputs(batch=2):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (4, 4)), jax.random.normal(keys[1], (batch, 4))


@pytest.mark.parametrize("solver", [euler, unipc])
def test_scan_equals_a_plain_loop(solver):
    weight, noise = inputs()
    init, step = solver(SCHEDULE)
    state = init(noise)
    for i in range(SCHEDULE.steps):
        v = velocity(weight, state.sample, SCHEDULE.timesteps[i], SCHEDULE.sigmas[i])
        state = step(state, v, jnp.array(i))
    found = make_sampler(velocity, SCHEDULE, solver)(weight, noise)
    np.testing.assert_allclose(found, state.sample, rtol=1e-6, atol=1e-6)


def test_second_call_compiles_nothing():
    traces = []

    def counted(weight, x, timestep, sigma):
        traces.append(x.shape)
        return velocity(weight, x, timestep, sigma)

    sampler = make_sampler(counted, SCHEDULE, unipc)
    weight, noise = inputs()
    sampler(weight, noise)
    traced = len(traces)
    sampler(weight + 1, noise + 1)
    assert len(traces) == traced
    sampler(weight, inputs(batch=3)[1])
    assert len(traces) > traced


def test_progress_is_reported_once_per_step():
    weight, noise = inputs()
    seen = []
    plain = make_sampler(velocity, SCHEDULE, unipc)(weight, noise)
    reported = make_sampler(velocity, SCHEDULE, unipc, on_step=seen.append)(weight, noise)
    jax.effects_barrier()
    assert sorted(seen) == list(range(SCHEDULE.steps))
    np.testing.assert_allclose(plain, reported, rtol=1e-6, atol=1e-6)


def test_differentiable_in_the_noise():
    weight, noise = inputs()

    def total(x):
        return sample(lambda *a: velocity(weight, *a), x, SCHEDULE, unipc).sum()

    assert np.all(np.isfinite(jax.grad(total)(noise)))
