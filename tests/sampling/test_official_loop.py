"""The official loop of many steps, its guidance evaluated in one batch instead of two passes.

The loops as the official code runs them are compared in tests/evaluation/test_verify.py.
"""

import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.evaluation.golden_arrays import GoldenArrays, channels_last, relative_error
from worldstereo_jax.evaluation.golden_sampling import official_network
from worldstereo_jax.interop.safetensors_io import SafetensorsFile
from worldstereo_jax.sampling import guide_one_batch, make_sampler, unipc, unipc_schedule


@pytest.mark.slow
def test_guidance_in_one_batch_equals_official(goldens_dir):
    network, inputs = official_network(
        SafetensorsFile(goldens_dir / "memory_model.safetensors"),
        GoldenArrays(goldens_dir / "memory_model_io.npz"),
    )
    golden = np.load(goldens_dir / "sampling_unipc.npz", allow_pickle=False)
    positive = {**inputs, "condition": channels_last(golden["cond"])}
    negative = {**positive, "text": jnp.asarray(golden["neg"])}
    scale = float(golden["scale"])

    def velocity(conditions, x, timestep, sigma):
        return guide_one_batch(network, *conditions, scale)(x, timestep, sigma)

    schedule = unipc_schedule(int(golden["steps"]), float(golden["shift"]))
    sampler = make_sampler(velocity, schedule, unipc)
    found = sampler((positive, negative), channels_last(golden["lat0"]))
    assert relative_error(found, np.moveaxis(golden["out"], 1, -1)) < 1e-5
