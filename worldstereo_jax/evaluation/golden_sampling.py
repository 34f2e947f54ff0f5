"""Recorded denoising loops of the official memory model, compared with ours from end to end."""

import typing

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import PyTree
from worldstereo_jax.evaluation.golden_arrays import GoldenArrays, channels_last, relative_error
from worldstereo_jax.evaluation.golden_models import Errors, model_config, model_inputs
from worldstereo_jax.interop.official import params_from_official
from worldstereo_jax.interop.safetensors_io import SafetensorsFile
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling import (
    dmd,
    dmd_schedule,
    guide_two_pass,
    make_sampler,
    unipc,
    unipc_schedule,
)
from worldstereo_jax.sampling.guidance import ConditionedVelocityFn

DMD_START, DMD_END, DMD_SHIFT = 250.0, 1000.0, 5.0


def official_network(
    weights: SafetensorsFile, model_arrays: GoldenArrays
) -> tuple[ConditionedVelocityFn, dict[str, PyTree]]:
    """The recorded model as (velocity function, its conditions without "condition").

    The function takes (conditions, x, timestep, sigma); x is the 16 noisy channels, and
    conditions["condition"] the channels behind them.
    """
    config = model_config(weights, model_arrays)
    params = jax.tree.map(
        jnp.asarray, params_from_official(weights, config, source=str(weights.path))
    )

    def network(conditions, x, timestep, sigma):
        del sigma
        given = dict(conditions)
        latent = jnp.concatenate([x, given.pop("condition")], axis=-1)
        time = jnp.broadcast_to(timestep, (x.shape[0],))
        out = WorldStereo(config).apply({"params": params}, latent, time, **given)
        return typing.cast(jax.Array, out)

    inputs = model_inputs(model_arrays)
    return network, inputs


def check_unipc(
    weights: SafetensorsFile, model_arrays: GoldenArrays, arrays: GoldenArrays
) -> Errors:
    """The loop of many steps with guidance: its schedule and its result."""
    network, inputs = official_network(weights, model_arrays)
    schedule = unipc_schedule(arrays.number("steps"), float(arrays["shift"]))
    scale = float(arrays["scale"])
    positive = {**inputs, "condition": channels_last(arrays["cond"])}
    negative = {**positive, "text": jnp.asarray(arrays["neg"])}

    def velocity(conditions, x, timestep, sigma):
        given, unwanted = conditions
        return guide_two_pass(network, given, unwanted, scale)(x, timestep, sigma)

    sampler = make_sampler(velocity, schedule, unipc)
    found = sampler((positive, negative), channels_last(arrays["lat0"]))
    return {
        "timesteps": relative_error(schedule.timesteps, arrays["timesteps"].astype(np.float32)),
        "sigmas": relative_error(schedule.sigmas, arrays["sigmas"]),
        "out": relative_error(found, np.moveaxis(arrays["out"], 1, -1)),
    }


def check_dmd(weights: SafetensorsFile, model_arrays: GoldenArrays, arrays: GoldenArrays) -> Errors:
    """The loop of few steps: its schedule and its result."""
    network, inputs = official_network(weights, model_arrays)
    schedule = dmd_schedule(arrays["timesteps"].size, DMD_START, DMD_END, DMD_SHIFT)
    sampler = make_sampler(network, schedule, dmd)
    conditions = {**inputs, "condition": channels_last(arrays["cond"])}
    found = sampler(conditions, channels_last(arrays["lat0"]))
    return {
        "timesteps": relative_error(schedule.timesteps, arrays["timesteps"]),
        "out": relative_error(found, np.moveaxis(arrays["out"], 1, -1)),
    }
