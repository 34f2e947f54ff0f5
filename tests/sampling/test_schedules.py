import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.sampling import Schedule, dmd_schedule, flow_schedule, unipc_schedule


def test_unipc_equals_official(goldens_dir):
    golden = np.load(goldens_dir / "sampling_unipc.npz", allow_pickle=False)
    schedule = unipc_schedule(int(golden["steps"]), float(golden["shift"]))
    np.testing.assert_array_equal(schedule.timesteps, golden["timesteps"])
    np.testing.assert_array_equal(schedule.sigmas, golden["sigmas"])


def test_dmd_equals_official(goldens_dir):
    golden = np.load(goldens_dir / "sampling_dmd.npz", allow_pickle=False)
    schedule = dmd_schedule(4, 250, 1000, 5.0)
    np.testing.assert_array_equal(schedule.timesteps, golden["timesteps"])
    np.testing.assert_array_equal(schedule.sigmas[:-1], golden["timesteps"] / np.float32(1000))
    assert schedule.sigmas[-1] == 0


def test_unipc_timesteps_are_truncated_not_rounded():
    # sigma 0.99966..: 1000 sigma is 999.67, which rounding would make 1000.
    assert unipc_schedule(6, 3.0).timesteps[0] == 999
    timesteps = unipc_schedule(40, 3.0).timesteps
    np.testing.assert_array_equal(timesteps, np.trunc(timesteps))


def test_flow_schedule_ends_and_shift():
    plain, shifted = flow_schedule(5), flow_schedule(5, 3.0)
    np.testing.assert_allclose(plain.sigmas, [1, 0.8, 0.6, 0.4, 0.2, 0], atol=1e-7)
    assert shifted.sigmas[0] == 1
    assert shifted.sigmas[-1] == 0
    assert np.all(shifted.sigmas[1:-1] > plain.sigmas[1:-1])
    np.testing.assert_allclose(shifted.timesteps, 1000 * shifted.sigmas[:-1], rtol=1e-6)


@pytest.mark.parametrize("make", [unipc_schedule, flow_schedule, dmd_schedule])
@pytest.mark.parametrize("steps", [1, 2, 40])
def test_every_schedule_is_well_formed(make, steps):
    schedule = make(steps)
    assert schedule.steps == steps
    assert schedule.timesteps.dtype == schedule.sigmas.dtype == np.float32
    assert np.all(np.diff(schedule.timesteps) < 0)
    assert hash(schedule) == hash(make(steps))
    assert schedule == make(steps)
    assert schedule != make(steps + 1)


@pytest.mark.parametrize(
    "call",
    [
        lambda: unipc_schedule(0),
        lambda: flow_schedule(4, 0.0),
        lambda: dmd_schedule(4, start=1000, end=250),
        lambda: Schedule(np.ones(2, np.float32), np.array([0.5, 0.6, 0.0], np.float32)),
        lambda: Schedule(np.ones(2, np.float32), np.array([0.5, 0.0], np.float32)),
    ],
)
def test_bad_input_is_named(call):
    with pytest.raises(InputError):
        call()
