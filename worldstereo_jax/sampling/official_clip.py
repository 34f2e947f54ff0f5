"""A clip of an official model: the transformer's inputs, the guided loop, the decoder."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, Key, PyTree
from worldstereo_jax.models.clip_vision import CLIPVision, CLIPVisionConfig, clip_pixels
from worldstereo_jax.models.wan_vae_clips import decode_frames
from worldstereo_jax.models.wan_vae_tiles import decode_frames_sharded
from worldstereo_jax.sampling.guidance import ConditionedVelocityFn
from worldstereo_jax.sampling.guided_loop import SOLVERS, guided_velocity, sample_guided
from worldstereo_jax.sampling.latent_clips import decode_clips
from worldstereo_jax.sampling.loop import make_stepped_sampler
from worldstereo_jax.sampling.official_conditions import OfficialConditions
from worldstereo_jax.sampling.official_denoise import (
    denoise_official,
    reading_pattern,
    without_geometry,
)
from worldstereo_jax.sampling.official_world import (
    MODEL_AXIS,
    OfficialWorld,
    Prompt,
    on_all_devices,
)
from worldstereo_jax.sampling.precision import jit_at, transformer_precision
from worldstereo_jax.sampling.token_reading import Pattern


def image_tokens(
    params: PyTree, image: Float[Array, "h w 3"], config: CLIPVisionConfig, pixel_range: str
) -> Float[Array, "m ci"]:
    """What the transformer receives of the input image: CLIP's second-to-last hidden state."""
    pixels = clip_pixels(image[None], config, pixel_range=pixel_range)
    states = CLIPVision(config).apply({"params": params}, pixels)
    return typing.cast(typing.Any, states).penultimate[0]


def attention_pattern(world: OfficialWorld, conditions: OfficialConditions) -> Pattern:
    """The masks of the correspondence pattern, built once for all evaluations of a clip.

    Args:
        world: networks and choices.
        conditions: of one clip, without a batch axis.
    """
    pattern = reading_pattern(_repeat(conditions, 1), reading=world.reading)
    # Whole on every device: split over them, the words of the mask would have to be joined by an
    # "or" across devices, which not every backend has.
    return on_all_devices(pattern, world.mesh)


def velocity_function(
    world: OfficialWorld,
    params: PyTree,
    conditions: OfficialConditions,
    image: Float[Array, "m ci"] | None,
    pattern: Pattern | None = None,
) -> ConditionedVelocityFn:
    """The transformer under a clip's conditions, as (text, x, timestep, sigma) -> velocity.

    Text and x have a batch axis; all else is the same for every sample, since the two passes of
    guidance differ in the text alone.

    Args:
        world: networks and choices.
        params: parameters of the transformer.
        conditions: of one clip, without a batch axis.
        image: tokens of the input image, for models that take them.
        pattern: of `attention_pattern`, of which the geometry in the conditions is then not read;
            built here when None.
    """
    if pattern is None:
        pattern = attention_pattern(world, conditions)
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


def sample_latent(
    world: OfficialWorld,
    params: PyTree,
    conditions: OfficialConditions,
    prompt: Prompt,
    image: Float[Array, "m ci"] | None,
    noise: Float[Array, "1 f lh lw 16"],
) -> Float[Array, "1 f lh lw 16"]:
    """Denoise a clip's latent from given noise, all of it in one program.

    Args:
        world: networks and choices.
        params: parameters of the transformer.
        conditions: of one clip.
        prompt: text encoder's output; the negative one is read with guidance only.
        image: tokens of the input image, for models that take them.
        noise: of unit variance.

    Returns:
        The normalised latent.
    """
    velocity = velocity_function(world, params, conditions, image)
    text, negative = prompt.text[None], prompt.negative[None]
    return sample_guided(world.choices, velocity, text, negative, noise)


def make_denoiser(
    world: OfficialWorld, *, on_step: Callable[[int], None] | None = None
) -> Callable[..., Float[Array, "f lh lw 16"]]:
    """`sample_latent` in steps that the host runs, by programs that jax's persistent cache keeps.

    Args:
        world: networks and choices.
        on_step: called with the index of each finished step; see `loop.make_stepped_sampler`.

    Returns:
        (params, conditions, prompt, image, key) -> latent; the arguments of `sample_latent`, and
        the random key of the noise. The same key gives the same clip.
    """
    choices = world.choices
    precision = transformer_precision(world.denoiser.dtype)

    def prepare(conditions: OfficialConditions, key: Key[Array, ""]) -> tuple[Array, Pattern]:
        noise = jax.random.normal(key, (1, *world.latent_shape), jnp.float32)
        return noise, attention_pattern(world, conditions)

    def velocity(context: typing.Any, x: Array, timestep: Array, sigma: Array) -> Array:
        params, conditions, prompt, image, pattern, scale = context
        under_text = velocity_function(world, params, conditions, image, pattern)
        text, negative = prompt.text[None], prompt.negative[None]
        guided = guided_velocity(choices.guidance, under_text, text, negative, scale)
        return guided(x, timestep, sigma)

    preparing = jit_at(precision, prepare)
    sampler = make_stepped_sampler(
        velocity,
        choices.schedule,
        SOLVERS[choices.solver],
        on_step=on_step,
        precision=precision,
        settle=lambda state: on_all_devices(state, world.mesh),
    )

    def denoise(
        params: PyTree,
        conditions: OfficialConditions,
        prompt: Prompt,
        image: Float[Array, "m ci"] | None,
        key: Key[Array, ""],
    ) -> Float[Array, "f lh lw 16"]:
        noise, pattern = preparing(conditions, key)
        told = without_geometry(conditions)
        scale = np.float32(choices.guidance_scale)
        return sampler((params, told, prompt, image, pattern, scale), noise)[0]

    return denoise


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
