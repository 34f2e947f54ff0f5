"""A clip of an official model: the transformer's inputs, the guided loop, the decoder."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from worldstereo_jax.array_types import Array, Float, Key, PyTree
from worldstereo_jax.models.clip_vision import CLIPVision, CLIPVisionConfig, clip_pixels
from worldstereo_jax.models.wan_vae_clips import decode_frames
from worldstereo_jax.models.wan_vae_tiles import decode_frames_sharded
from worldstereo_jax.sampling.guided_loop import sample_guided
from worldstereo_jax.sampling.latent_clips import decode_clips
from worldstereo_jax.sampling.official_conditions import OfficialConditions
from worldstereo_jax.sampling.official_denoise import (
    denoise_official,
    reading_pattern,
    without_geometry,
)
from worldstereo_jax.sampling.official_world import MODEL_AXIS, OfficialWorld, Prompt


def image_tokens(
    params: PyTree, image: Float[Array, "h w 3"], config: CLIPVisionConfig, pixel_range: str
) -> Float[Array, "m ci"]:
    """What the transformer receives of the input image: CLIP's second-to-last hidden state."""
    pixels = clip_pixels(image[None], config, pixel_range=pixel_range)
    states = CLIPVision(config).apply({"params": params}, pixels)
    return typing.cast(typing.Any, states).penultimate[0]


def velocity_function(
    world: OfficialWorld,
    params: PyTree,
    conditions: OfficialConditions,
    image: Float[Array, "m ci"] | None,
) -> Callable[[Float[Array, "b l ct"], Array, Array, Array], Array]:
    """The transformer under a clip's conditions, as (text, x, timestep, sigma) -> velocity.

    Text and x have a batch axis; all else is the same for every sample, since the two passes of
    guidance differ in the text alone. The mask of the correspondence pattern is built here, once.

    Args:
        world: networks and choices.
        params: parameters of the transformer.
        conditions: of one clip, without a batch axis.
        image: tokens of the input image, for models that take them.
    """
    clip = _repeat(conditions, 1)
    pattern = reading_pattern(clip, reading=world.reading)
    if world.mesh is not None:
        # Whole on every device: split over them, the words of the mask would have to be joined by
        # an "or" across devices, which not every backend has.
        everywhere = NamedSharding(world.mesh, PartitionSpec())
        pattern = jax.lax.with_sharding_constraint(pattern, everywhere)
    model = world.transformer
    told = without_geometry(conditions)
    # The official choice takes some view for every frame: a single slot is never empty, and
    # attention without a mask is faster.
    only_slot = conditions.reference_valid.shape[0] == 1
    if only_slot and world.choices.retrieval == "official":
        told = dataclasses.replace(told, reference_valid=None)

    def velocity(text: Array, x: Array, timestep: Array, sigma: Array) -> Array:
        del sigma
        batch = x.shape[0]
        return denoise_official(
            model,
            world.denoiser,
            params,
            x,
            jnp.broadcast_to(timestep, (batch,)),
            _repeat(told, batch),
            text,
            None if image is None else _repeat(image, batch),
            pattern,
        )

    return velocity


def denoise_clip(
    world: OfficialWorld,
    params: PyTree,
    conditions: OfficialConditions,
    prompt: Prompt,
    image: Float[Array, "m ci"] | None,
    key: Key[Array, ""],
    *,
    on_step: Callable[[int], None] | None = None,
) -> Float[Array, "f lh lw 16"]:
    """Denoise a clip's latent from pure noise.

    Args:
        world: networks and choices.
        params: parameters of the transformer.
        conditions: of one clip.
        prompt: text encoder's output; the negative one is read with guidance only.
        image: tokens of the input image, for models that take them.
        key: random key of the noise; the same key gives the same clip.
        on_step: called on the host with the index of each finished step.

    Returns:
        The normalised latent.
    """
    noise = jax.random.normal(key, (1, *world.latent_shape), jnp.float32)
    return sample_latent(world, params, conditions, prompt, image, noise, on_step=on_step)[0]


def sample_latent(
    world: OfficialWorld,
    params: PyTree,
    conditions: OfficialConditions,
    prompt: Prompt,
    image: Float[Array, "m ci"] | None,
    noise: Float[Array, "1 f lh lw 16"],
    *,
    on_step: Callable[[int], None] | None = None,
) -> Float[Array, "1 f lh lw 16"]:
    """`denoise_clip` from given noise."""
    velocity = velocity_function(world, params, conditions, image)
    text, negative = prompt.text[None], prompt.negative[None]
    return sample_guided(world.choices, velocity, text, negative, noise, on_step=on_step)


def decode_latent(
    world: OfficialWorld, vae_params: PyTree, latent: Float[Array, "f lh lw 16"]
) -> Float[Array, "F h w 3"]:
    """Frames in [-1, 1] of a clip's latent: each alone for keyframes, else as one clip.

    With a mesh its devices share the frames of keyframes and the tiles of either kind; a causal
    clip that is not cut into tiles is decoded by every device.
    """
    tile, at_once = world.choices.vae_tile, world.choices.vae_frames
    if tile is not None or world.frame_stride > 1:
        clips = latent[None] if world.frame_stride > 1 else latent[:, None]
        frames = decode_clips(vae_params, clips, world.vae, tile=tile, mesh=world.mesh)
        return frames.reshape(-1, *frames.shape[2:])
    if world.mesh is None:
        return decode_frames(vae_params, latent[None], world.vae, at_once=at_once)[0]
    return decode_frames_sharded(
        vae_params, latent[None], world.vae, world.mesh, axis=MODEL_AXIS, at_once=at_once
    )[0]


def _repeat(tree: typing.Any, batch: int) -> typing.Any:
    """A leading batch axis before every array."""
    return jax.tree.map(lambda a: jnp.broadcast_to(a[None], (batch, *a.shape)), tree)
