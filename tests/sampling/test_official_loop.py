"""Whole denoising loops of the official memory model at toy size, end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.interop.official import infer_config, params_from_official
from worldstereo_jax.interop.safetensors_io import SafetensorsFile
from worldstereo_jax.models.worldstereo import ControlInput, References, WorldStereo
from worldstereo_jax.sampling import (
    dmd,
    dmd_schedule,
    guide_one_batch,
    guide_two_pass,
    make_sampler,
    unipc,
    unipc_schedule,
)


@pytest.fixture(scope="module")
def memory_model(goldens_dir):
    """(network, inputs): `network(inputs, x, timestep, sigma)`; inputs are batch-first arrays."""
    weights = SafetensorsFile(goldens_dir / "memory_model.safetensors")
    io = np.load(goldens_dir / "memory_model_io.npz", allow_pickle=False)
    config = infer_config(
        weights.shapes,
        num_heads=int(io["num_heads"]),
        control_num_heads=int(io["control_num_heads"]),
        update_ref=bool(io["update_ref"]),
    )
    params = jax.tree.map(jnp.asarray, params_from_official(weights, config))
    reference = channels_last(io["reference_latent"])
    inputs = {
        "text": jnp.asarray(io["encoder_hidden_states"]),
        "image": jnp.asarray(io["encoder_hidden_states_image"]),
        "control": ControlInput(
            render_latent=channels_last(io["render_latent"]),
            render_mask=channels_last(io["render_mask"]),
            plucker=channels_last(io["camera_embedding"]),
        ),
        "references": References(
            latent=reference,
            index=jnp.asarray(io["ref_index"], jnp.int32)[None],
            camera=jnp.asarray(io["camera_qt_ref"]),
        ),
        "camera": jnp.asarray(io["camera_qt"]),
    }

    def network(inputs, x, timestep, sigma):
        del sigma
        return WorldStereo(config).apply(
            {"params": params},
            jnp.concatenate([x, inputs["condition"]], axis=-1),
            jnp.broadcast_to(timestep, (x.shape[0],)),
            inputs["text"],
            inputs["image"],
            control=inputs["control"],
            references=inputs["references"],
            camera=inputs["camera"],
        )

    return network, inputs


def channels_last(array):
    """[b, c, f, h, w] to [b, f, h, w, c]."""
    return jnp.asarray(np.moveaxis(array, 1, -1))


def relative_error(found, golden):
    expected = np.moveaxis(golden["out"], 1, -1)
    return np.abs(found - expected).max() / np.abs(expected).max()


@pytest.mark.slow
@pytest.mark.parametrize("guide", [guide_two_pass, guide_one_batch])
def test_unipc_with_guidance_equals_official(memory_model, goldens_dir, guide):
    network, inputs = memory_model
    golden = np.load(goldens_dir / "sampling_unipc.npz", allow_pickle=False)
    positive = {**inputs, "condition": channels_last(golden["cond"])}
    negative = {**positive, "text": jnp.asarray(golden["neg"])}
    scale = float(golden["scale"])

    def velocity(conditions, x, timestep, sigma):
        return guide(network, *conditions, scale)(x, timestep, sigma)

    schedule = unipc_schedule(int(golden["steps"]), float(golden["shift"]))
    sampler = make_sampler(velocity, schedule, unipc)
    found = sampler((positive, negative), channels_last(golden["lat0"]))
    assert relative_error(found, golden) < 1e-5


@pytest.mark.slow
def test_few_steps_equal_official(memory_model, goldens_dir):
    network, inputs = memory_model
    golden = np.load(goldens_dir / "sampling_dmd.npz", allow_pickle=False)
    sampler = make_sampler(network, dmd_schedule(), dmd)
    conditions = {**inputs, "condition": channels_last(golden["cond"])}
    found = sampler(conditions, channels_last(golden["lat0"]))
    assert relative_error(found, golden) < 1e-5
