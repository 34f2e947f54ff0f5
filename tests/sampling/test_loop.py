import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import OPTIMISED, compilation_cache_at
from worldstereo_jax.sampling import euler, make_sampler, sample, unipc, unipc_schedule
from worldstereo_jax.sampling.loop import advance, make_stepped_sampler, step_table

SCHEDULE = unipc_schedule(5, 3.0)


def velocity(weight, x, timestep, sigma):
    return jnp.tanh(x @ weight) + sigma * x - timestep / 1000


def inputs(batch=2):
    keys = jax.random.split(jax.random.key(0))
    return jax.random.normal(keys[0], (4, 4)), jax.random.normal(keys[1], (batch, 4))


@pytest.mark.parametrize("solver", [euler, unipc])
def test_scan_equals_a_plain_loop(solver):
    weight, noise = inputs()
    table, init, step = solver(SCHEDULE)
    state = init(noise)
    for i in range(SCHEDULE.steps):
        v = velocity(weight, state.sample, SCHEDULE.timesteps[i], SCHEDULE.sigmas[i])
        state = step(state, v, jax.tree.map(lambda values, i=i: jnp.asarray(values[i]), table))
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


@pytest.mark.parametrize("solver", [euler, unipc])
def test_steps_run_from_the_host_give_the_bits_of_the_scan(solver):
    weight, noise = inputs()
    seen = []
    told = make_stepped_sampler(velocity, SCHEDULE, solver, on_step=seen.append)(weight, noise)
    assert seen == list(range(SCHEDULE.steps))
    np.testing.assert_array_equal(
        make_stepped_sampler(velocity, SCHEDULE, solver)(weight, noise), told
    )

    made = solver(SCHEDULE)

    def at_once(weight, noise):
        return sample(lambda *given: velocity(weight, *given), noise, SCHEDULE, solver)

    def in_steps(weight, noise, table, *span):
        start = made.init(noise)
        return advance(lambda *given: velocity(weight, *given), made, start, table, *span).sample

    scanned = jax.jit(at_once, compiler_options=OPTIMISED)(weight, noise)
    table = step_table(SCHEDULE, made)
    stepped = jax.jit(in_steps, compiler_options=OPTIMISED)(weight, noise, table, 0, SCHEDULE.steps)
    np.testing.assert_array_equal(scanned, stepped)
    np.testing.assert_allclose(scanned, told, rtol=1e-5, atol=1e-6)


def test_a_sampler_that_tells_of_its_steps_is_kept_for_the_next_process(tmp_path):
    """Another sampler stands for another process: it is traced anew, and writes no other file."""
    weight, noise = inputs()
    kept = []
    with compilation_cache_at(tmp_path):
        for _ in range(2):
            # Other noise levels, and another number of them, are the same program, too.
            schedule = unipc_schedule(5 + len(kept), 3.0 + len(kept))
            make_stepped_sampler(velocity, schedule, unipc, on_step=lambda _: None)(weight, noise)
            kept.append({path.name for path in tmp_path.glob("jit_proceed*-cache")})
    assert len(kept[0]) == 1
    assert kept[1] == kept[0]


def test_differentiable_in_the_noise():
    weight, noise = inputs()

    def total(x):
        return sample(lambda *a: velocity(weight, *a), x, SCHEDULE, unipc).sum()

    assert np.all(np.isfinite(jax.grad(total)(noise)))
