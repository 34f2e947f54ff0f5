import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.sampling import (
    add_noise,
    anchored_source,
    anchored_target,
    anchored_velocity,
    euler,
    flow_schedule,
    flow_target,
    flow_x0,
    sample,
    unipc,
)

KEYS = jax.random.split(jax.random.key(2), 3)
X0, NOISE, ANCHOR = (jax.random.normal(key, (2, 3, 4)) for key in KEYS)


@pytest.mark.parametrize("sigma", [jnp.float32(0.3), jnp.array([0.3, 0.9])])
def test_targets_give_the_same_velocity_and_the_clean_data(sigma):
    x = add_noise(X0, NOISE, sigma)
    v = flow_target(X0, NOISE)
    anchored = anchored_velocity(anchored_target(X0, ANCHOR), x, sigma, ANCHOR)
    np.testing.assert_allclose(anchored, v, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(flow_x0(v, x, sigma), X0, atol=1e-5)


def test_noise_levels_per_batch_entry():
    x = add_noise(X0, NOISE, jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(x[0], X0[0])
    np.testing.assert_array_equal(x[1], NOISE[1])


@pytest.mark.parametrize("solver", [euler, unipc])
def test_zero_output_returns_the_anchor(solver):
    def velocity(x, timestep, sigma):
        return anchored_velocity(jnp.zeros_like(x), x, sigma, ANCHOR)

    found = sample(velocity, NOISE, flow_schedule(4, 3.0), solver)
    np.testing.assert_allclose(found, ANCHOR, atol=1e-6)


def test_last_step_returns_the_prediction():
    output = jnp.sin(ANCHOR)
    v = anchored_velocity(output, NOISE, jnp.float32(0.05), ANCHOR)
    np.testing.assert_allclose(NOISE - 0.05 * v, ANCHOR + output, atol=1e-6)


def test_anchored_paths_start_near_the_anchor_and_lead_to_the_data():
    """Along the straight path from the source the velocity is the difference of its ends."""
    source = anchored_source(ANCHOR, NOISE)
    assert 0 < float(jnp.abs(source - ANCHOR).max()) < float(jnp.abs(NOISE).max())
    for sigma in (0.2, 0.7, 1.0):
        x = add_noise(X0, source, jnp.float32(sigma))
        v = anchored_velocity(anchored_target(X0, ANCHOR), x, jnp.float32(sigma), ANCHOR)
        np.testing.assert_allclose(v, source - X0, rtol=1e-4, atol=1e-5)
