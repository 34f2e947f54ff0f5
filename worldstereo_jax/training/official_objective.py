"""The loss of the official models: flow matching under a clip's conditions, and what trains when.

The path is that of Lipman et al. 2023 ("Flow Matching"), as for sampling (`prediction.py` there):
the network is told the noise level as a timestep 0 .. 1000 and predicts noise - x0.
"""

import dataclasses
import typing
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import struct

from worldstereo_jax.array_types import Array, Float, Key, PyTree
from worldstereo_jax.errors import InputError, nearest_hint
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.official_conditions import OfficialConditions
from worldstereo_jax.sampling.official_denoise import denoise_official, reading_pattern
from worldstereo_jax.sampling.prediction import add_noise, flow_target
from worldstereo_jax.sampling.reading import READING, Reading
from worldstereo_jax.sampling.schedules import TRAIN_TIMESTEPS, shift_sigmas
from worldstereo_jax.training.state import all_but, any_of, only

# Which shift the official models were trained with is not published; this is that of the base
# model's sampler at 480 x 832.
SHIFT = 3.0
# How often a clip has no text, for guidance without a classifier (Ho and Salimans 2022), and how
# often no stored views, so that the model still works on the first clip of a scene.
DROP_TEXT = 0.1
DROP_REFERENCES = 0.1
# How often surface entries are missing on their own.
DROP_ENTRIES = 0.1

STAGES: Mapping[str, Callable[[PyTree], PyTree]] = {
    # The control branch alone, over the video model as it is.
    "camera": lambda params: only(params, "control", "residual"),
    # From clips to keyframes: everything but the backbone's cross-attention and feed-forward part.
    "keyframes": lambda params: all_but(params, "backbone/cross_attention", "backbone/ffn"),
    # Attending to stored views: everything but cross-attention.
    "memory": lambda params: all_but(params, "backbone/cross_attention"),
    # Not a published one: what reads warped views and entries (`interop.memory_slots`), over the
    # model as it is. In the stages above these train with the rest, but for "camera".
    "stereo": lambda params: any_of(params, "warped_entry", "warped_attention", "entry_attention"),
}
"""What of a model trains in each stage: its parameters to a tree of booleans."""


def stage_parameters(params: PyTree, stage: str) -> PyTree:
    """Which parameters train in a stage: a tree of booleans, for `split`.

    Raises:
        InputError: for an unknown stage, or a model without the parts that it trains or freezes.
    """
    if stage not in STAGES:
        raise InputError(f"unknown stage {stage!r}: {nearest_hint(stage, STAGES)}")
    return STAGES[stage](params)


@struct.dataclass
@typing.no_type_check
class TrainingClip:
    """What a training step reads of clips; each array with a leading batch axis.

    Attributes:
        conditions: what the memories say of them.
        text: text encoder's output [b, l, ct].
        image: tokens of the first images [b, m, ci], None for models without.
        target: true latents [b, f, lh, lw, 16].
    """

    conditions: OfficialConditions
    text: jax.Array
    image: jax.Array | None
    target: jax.Array


def drop_inputs(
    clip: TrainingClip,
    null_text: Float[Array, "l ct"],
    key: Key[Array, ""],
    *,
    drop_text: float | Array = DROP_TEXT,
    drop_references: float | Array = DROP_REFERENCES,
) -> TrainingClip:
    """Per clip of a batch and independently, take away the text, or all stored views.

    With the views goes all else that is read of the spatial-stereo memory: warps and entries. Where
    there are entries, they are also taken away alone, for `DROP_ENTRIES` of the clips.

    Args:
        clip: a batch.
        null_text: text encoder's output of the empty prompt, which stands for no text.
        key: random key.
        drop_text, drop_references: how often.
    """
    text_key, view_key = jax.random.split(key)
    batch = clip.text.shape[:1]
    silent = jax.random.bernoulli(text_key, drop_text, batch)
    alone = jax.random.bernoulli(view_key, drop_references, batch)
    told = clip.conditions
    warped, entries = told.warped, told.entries
    if warped is not None:
        off = alone[:, None, None, None, None]
        warped = dataclasses.replace(warped, log_weight=jnp.where(off, -jnp.inf, warped.log_weight))
    if entries is not None:
        # A key that is neither of those above: the first two may equal what they were split into.
        missing = jax.random.bernoulli(jax.random.fold_in(key, 2), DROP_ENTRIES, batch)
        entries = dataclasses.replace(entries, valid=entries.valid & ~(alone | missing)[:, None])
    conditions = dataclasses.replace(
        told,
        reference_valid=told.reference_valid & ~alone[:, None],
        warped=warped,
        entries=entries,
    )
    text = jnp.where(silent[:, None, None], null_text[None].astype(clip.text.dtype), clip.text)
    return dataclasses.replace(clip, conditions=conditions, text=text)


def stratified_sigmas(
    key: Key[Array, ""], batch: int, shift: float, *, within: tuple[float, float] = (0.0, 1.0)
) -> Float[Array, "b"]:
    """Noise levels of a batch, one in each of the equal strata of an interval, then shifted.

    Strata leave less variance from step to step than independent draws.
    """
    low, high = within
    u = (jnp.arange(batch, dtype=jnp.float32) + jax.random.uniform(key, (batch,))) / batch
    return shift_sigmas(low + (high - low) * u, shift)


def velocity_error(
    model: WorldStereo,
    params: PyTree,
    clip: TrainingClip,
    sigma: Float[Array, "b"],
    noise: Float[Array, "b f lh lw 16"],
    *,
    reading: Reading = READING,
) -> Float[Array, "b"]:
    """Mean squared error of the predicted velocity of each clip, in float32.

    Args:
        model: the transformer; its type, rematerialisation and sharding are the caller's choice.
        params: its parameters.
        clip: a batch.
        sigma: noise levels, 0 .. 1.
        noise: standard normal.
        reading: what builds the masks of references and entries.
    """
    target = clip.target.astype(jnp.float32)
    x = add_noise(target, noise, sigma)
    told = clip.conditions
    output = denoise_official(
        model,
        model.config,
        params,
        x,
        sigma * TRAIN_TIMESTEPS,
        told,
        clip.text,
        clip.image,
        reading_pattern(told, model.sharding, reading=reading),
    )
    error = output.astype(jnp.float32) - flow_target(target, noise)
    return (error**2).mean((1, 2, 3, 4))


def official_loss(
    model: WorldStereo,
    params: PyTree,
    clip: TrainingClip,
    null_text: Float[Array, "l ct"],
    key: Key[Array, ""],
    *,
    shift: float = SHIFT,
    drop_text: float = DROP_TEXT,
    drop_references: float = DROP_REFERENCES,
    reading: Reading = READING,
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """Flow-matching loss of a batch at random noise levels.

    Args:
        model, params, clip: see `velocity_error`.
        null_text: see `drop_inputs`.
        key: random key of noise levels, noise and what is taken away.
        shift: flow shift of the noise levels.
        drop_text, drop_references: how often text and stored views are taken away.
        reading: see `velocity_error`.

    Returns:
        The loss, and for each third of the noise levels what it adds to the loss (`error_low` ..)
        and its share of the clips (`share_low` ..). A third may be empty in one batch, so their
        ratio is taken of means over many steps: the mean error there.
    """
    drop_key, sigma_key, noise_key = jax.random.split(key, 3)
    clip = drop_inputs(
        clip, null_text, drop_key, drop_text=drop_text, drop_references=drop_references
    )
    sigma = stratified_sigmas(sigma_key, clip.target.shape[0], shift)
    noise = jax.random.normal(noise_key, clip.target.shape, jnp.float32)
    error = velocity_error(model, params, clip, sigma, noise, reading=reading)
    third = jnp.minimum(jnp.floor(3 * sigma), 2)
    metrics = {}
    for number, name in enumerate(("low", "middle", "high")):
        inside = third == number
        metrics[f"error_{name}"] = jnp.where(inside, error, 0.0).mean()
        metrics[f"share_{name}"] = inside.mean(dtype=jnp.float32)
    return error.mean(), metrics


def in_compute_type(params: PyTree, dtype: jax.typing.DTypeLike) -> PyTree:
    """Parameters brought into the type that is computed in, once before all layers.

    The model then holds them as sampling does; their gradients arrive in the type of `params`.
    """
    return jax.tree.map(
        lambda x: x.astype(dtype) if jnp.issubdtype(x.dtype, jnp.floating) else x, params
    )
