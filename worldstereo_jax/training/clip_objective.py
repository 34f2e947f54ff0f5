"""The loss of the small video model: the latent residual on what the memories already show."""

import dataclasses

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, Key, PyTree
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.conditions import Conditions, anchor
from worldstereo_jax.sampling.denoise import denoise
from worldstereo_jax.sampling.prediction import add_noise, anchored_source, anchored_target
from worldstereo_jax.sampling.reading import READING, Reading
from worldstereo_jax.sampling.schedules import TRAIN_TIMESTEPS, shift_sigmas

# How often a training clip sees only the global memory, and how often no memory at all.
DROP_STEREO = 0.15
DROP_BOTH = 0.1
# How often the entries' tokens are missing on their own.
DROP_ENTRIES = 0.1
# Share of the clips taken at sigma 1, where sampling starts and nearly all that is unknown is
# decided; later levels mostly repeat it.
AT_START = 0.5


def drop_memories(conditions: Conditions, key: Key[Array, ""]) -> Conditions:
    """Per clip of a batch, remove the stereo memory or both at random, or the entries' tokens.

    So the same parameters are also a model without the one or without either, which makes
    comparisons between them fair.
    """
    u = jax.random.uniform(key, conditions.stereo_enabled.shape)
    entries = jax.random.uniform(jax.random.fold_in(key, 1), u.shape) > DROP_ENTRIES
    return dataclasses.replace(
        conditions,
        stereo_enabled=conditions.stereo_enabled & (u > DROP_STEREO + DROP_BOTH),
        global_enabled=conditions.global_enabled & (u > DROP_BOTH),
        entries_enabled=conditions.entries_enabled & entries,
    )


def clip_loss(
    model: WorldStereo,
    params: PyTree,
    conditions: Conditions,
    target: Float[Array, "b f lh lw 16"],
    key: Key[Array, ""],
    *,
    channel_weights: Float[Array, "16"],
    shift: float = 3.0,
    reading: Reading = READING,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Weighted squared error of the predicted clean latent at a random noise level.

    Args:
        model: the transformer.
        params: its parameters.
        conditions: of a batch of clips.
        target: their true latents.
        key: random key of noise level, noise and dropped memories.
        channel_weights: weight of each latent channel's error, mean 1. An error in a channel
            counts in the image by the channel's scale, which normalised latents hide.
        shift: flow shift of the noise levels drawn.
        reading: what builds the masks of references and entries.

    Returns:
        The loss and figures to log: the error of the anchor alone beside the model's; over all
        clips, over those with the stereo memory, and of these over those at sigma 1.
    """
    drop_key, sigma_key, noise_key = jax.random.split(key, 3)
    conditions = drop_memories(conditions, drop_key)
    batch = target.shape[0]
    # One noise level per stratum of the batch: less variance from step to step.
    u = (jnp.arange(batch) + jax.random.uniform(sigma_key, (batch,))) / batch
    is_start = u >= 1 - AT_START
    sigma = jnp.where(is_start, 1.0, shift_sigmas(u / (1 - AT_START), shift))
    noise = jax.random.normal(noise_key, target.shape)
    base = anchor(conditions)
    x = add_noise(target, anchored_source(base, noise), sigma)
    output = denoise(model, params, x, sigma * TRAIN_TIMESTEPS, conditions, reading=reading)
    truth = anchored_target(target, base)
    weights = channel_weights[None, None, None, None, :]
    error = (weights * (output - truth) ** 2).mean((1, 2, 3, 4))
    still = (weights * truth**2).mean((1, 2, 3, 4))
    stereo = conditions.stereo_enabled
    return error.mean(), {
        "anchor_error": still.mean(),
        **{
            f"{name}_{kind}": jnp.where(chosen, value, 0).sum() / jnp.maximum(chosen.sum(), 1)
            for name, chosen in (("stereo", stereo), ("start", stereo & is_start))
            for kind, value in (("error", error), ("anchor_error", still))
        },
    }
