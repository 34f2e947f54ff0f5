"""Video from a prompt, or from a prompt and an image, by a plain Wan 2.1 model: no memory, no path.

What WanPipeline and WanImageToVideoPipeline of diffusers compute, from pure functions. A stage is
a program of its own, with its network's parameters as arguments, as in `official_rollout`:

    sampler = make_video_sampler(world)
    video = sampler(params, prompt, key)          # [F, h, w, 3] in [-1, 1]
"""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.sharding import Mesh

from worldstereo_jax.array_types import Array, Float, Key, PyTree
from worldstereo_jax.config import ModelConfig
from worldstereo_jax.errors import InputError
from worldstereo_jax.models.clip_vision import CLIPVisionConfig
from worldstereo_jax.models.control import LATENT_STRIDE
from worldstereo_jax.models.wan_vae import WanVAEConfig
from worldstereo_jax.sampling.guided_loop import SOLVERS, LoopChoices, guided_velocity
from worldstereo_jax.sampling.latent_clips import (
    decode_clips,
    encode_clips,
    first_frame_condition,
)
from worldstereo_jax.sampling.loop import make_stepped_sampler
from worldstereo_jax.sampling.official_clip import image_tokens
from worldstereo_jax.sampling.official_world import (
    LATENT_CHANNELS,
    OfficialParams,
    Prompt,
    check_networks,
    on_all_devices,
    video_transformer,
)
from worldstereo_jax.sampling.precision import (
    EXACT,
    autoencoder_precision,
    jit_at,
    transformer_precision,
)

WITH_IMAGE = 2 * LATENT_CHANNELS + 4
"""Channels that a transformer takes of a clip that starts from an image."""


@dataclasses.dataclass(frozen=True)
class VideoWorld:
    """The networks of a plain video model with the size of its clips; holds no arrays.

    Attributes:
        name: of the model.
        frames, height, width: of the video.
        choices: schedule, solver and guidance.
        denoiser: the video transformer.
        vae: the autoencoder.
        image_encoder: None for a transformer without image tokens.
        vae_tile: rows and columns, in latent pixels, of the tiles that the autoencoder works in;
            None for whole frames.
        weights: "int8" or "float8", the type that the transformer's matrices are kept in; None for
            that of its files.
        mesh: devices that share the work along its axis `MODEL_AXIS`, None for one.

    Raises:
        InputError: when the networks do not fit each other or the size.
    """

    name: str
    frames: int
    height: int
    width: int
    choices: LoopChoices
    denoiser: ModelConfig
    vae: WanVAEConfig
    image_encoder: CLIPVisionConfig | None = None
    vae_tile: int | None = None
    weights: str | None = None
    mesh: Mesh | None = None

    def __post_init__(self) -> None:
        model, stride = self.denoiser, self.vae.temporal_stride
        if model.control is not None or model.camera_width is not None:
            raise InputError(
                f"{self.name}: a WorldStereo model takes a camera path; a plain video model was "
                "expected"
            )
        if model.in_channels not in (LATENT_CHANNELS, WITH_IMAGE):
            raise InputError(
                f"{self.name}: the transformer takes {model.in_channels} channels, expected "
                f"{LATENT_CHANNELS} (from text) or {WITH_IMAGE} (from an image)"
            )
        size = (self.height, self.width)
        check_networks(self.name, model, self.vae, self.image_encoder, size)
        if self.frames < 1 or (self.frames - 1) % stride:
            raise InputError(
                f"{self.name}: clips of {self.frames} frames, expected 1 + a multiple of {stride}"
            )

    @property
    def takes_image(self) -> bool:
        """Whether a clip starts from an image."""
        return self.denoiser.in_channels == WITH_IMAGE

    @property
    def transformer(self) -> nn.Module:
        """The module of the denoiser's parameters."""
        return video_transformer(self.denoiser, self.weights, self.mesh)

    @property
    def latent_shape(self) -> tuple[int, int, int, int]:
        """Frames, rows, columns and channels of a clip's latent."""
        frames = (self.frames - 1) // self.vae.temporal_stride + 1
        return frames, self.height // LATENT_STRIDE, self.width // LATENT_STRIDE, LATENT_CHANNELS


def image_condition(
    world: VideoWorld, vae_params: PyTree, image: Float[Array, "h w 3"]
) -> Float[Array, "f lh lw 20"]:
    """4 mask channels, 1 on frame 0 only, and the latent of the image followed by mid-grey.

    Args:
        world: networks and sizes.
        vae_params: parameters of its autoencoder.
        image: the clip's first frame, in [-1, 1].
    """
    clip = jnp.zeros((world.frames, *image.shape), jnp.float32).at[0].set(image)
    found = encode_clips(vae_params, clip[None], world.vae, tile=world.vae_tile, mesh=world.mesh)
    return first_frame_condition(found[0])


def make_video_denoiser(
    world: VideoWorld, *, on_step: Callable[[int], None] | None = None
) -> Callable[..., Float[Array, "1 f lh lw 16"]]:
    """Denoises a clip's latent in steps that the host runs; see `loop.make_stepped_sampler`.

    Args:
        world: networks and choices.
        on_step: called with the index of each finished step.

    Returns:
        (params, prompt, noise, condition, tokens) -> the normalised latent. Parameters of the
        transformer; text encoder's output, of which the negative one is read with guidance only;
        noise of unit variance; of `image_condition` [f, lh, lw, 20], for a model that takes an
        image, else None; image encoder's output [m, ci], for a model with image tokens, else None.
    """
    choices = world.choices

    def velocity(context: typing.Any, x: Array, timestep: Array, sigma: Array) -> Array:
        params, prompt, condition, tokens, scale = context
        model = world.transformer

        def under_text(text: Array, x: Array, timestep: Array, sigma: Array) -> Array:
            del sigma
            batch = x.shape[0]

            def each(a: Array) -> Array:
                return jnp.broadcast_to(a[None], (batch, *a.shape))

            latent = x if condition is None else jnp.concatenate([x, each(condition)], axis=-1)
            image = None if tokens is None else each(tokens)
            times = jnp.broadcast_to(timestep, (batch,))
            return typing.cast(Array, model.apply({"params": params}, latent, times, text, image))

        text, negative = prompt.text[None], prompt.negative[None]
        guided = guided_velocity(choices.guidance, under_text, text, negative, scale)
        return guided(x, timestep, sigma)

    sampler = make_stepped_sampler(
        velocity,
        choices.schedule,
        SOLVERS[choices.solver],
        on_step=on_step,
        precision=transformer_precision(world.denoiser.dtype),
        settle=lambda state: on_all_devices(state, world.mesh),
    )

    def denoise(
        params: PyTree,
        prompt: Prompt,
        noise: Float[Array, "1 f lh lw 16"],
        condition: Float[Array, "f lh lw 20"] | None = None,
        tokens: Float[Array, "m ci"] | None = None,
    ) -> Float[Array, "1 f lh lw 16"]:
        scale = np.float32(choices.guidance_scale)
        return sampler((params, prompt, condition, tokens, scale), noise)

    return denoise


@dataclasses.dataclass(frozen=True)
class VideoSampler:
    """The stages of a plain model's clips, each compiled when it is first called.

    Attributes:
        world: networks and sizes.
        encode: (VAE's parameters, image) -> condition.
        see: (image encoder's parameters, image) -> image tokens.
        denoise: (transformer's parameters, prompt, noise, condition, tokens) -> latent.
        decode: (VAE's parameters, latent) -> video.
    """

    world: VideoWorld
    encode: Callable[..., Array]
    see: Callable[..., Array]
    denoise: Callable[..., Array]
    decode: Callable[..., Array]

    def __call__(
        self,
        params: OfficialParams,
        prompt: Prompt,
        key: Key[Array, ""],
        image: Float[Array, "h w 3"] | None = None,
    ) -> Float[Array, "F h w 3"]:
        """A video in [-1, 1].

        Args:
            params: of the world's networks.
            prompt: text encoder's output.
            key: random key of the noise; the same key gives the same video.
            image: the first frame in [-1, 1], for a model that takes one.

        Raises:
            InputError: when an image is missing, or given to a model that takes none.
        """
        noise = jax.random.normal(key, (1, *self.world.latent_shape), jnp.float32)
        return self.from_noise(params, prompt, noise, image)

    def from_noise(
        self,
        params: OfficialParams,
        prompt: Prompt,
        noise: Float[Array, "1 f lh lw 16"],
        image: Float[Array, "h w 3"] | None = None,
    ) -> Float[Array, "F h w 3"]:
        """The video of given noise; the rest as in `__call__`."""
        world = self.world
        if (image is not None) != world.takes_image:
            raise InputError(
                f"{world.name}: makes video from "
                + ("an image and a prompt; no image was given" if image is None else "text alone")
            )
        condition = tokens = None
        if image is not None:
            condition = self.encode(params.vae, image)
            if world.image_encoder is not None:
                tokens = self.see(params.image_encoder, image)
        latent = self.denoise(params.denoiser, prompt, noise, condition, tokens)
        return self.decode(params.vae, latent)


def make_video_sampler(
    world: VideoWorld, *, on_step: Callable[[int], None] | None = None
) -> VideoSampler:
    """The jitted stages of a world; products are as exact as in `make_official_rollout`.

    Args:
        world: networks, sizes and choices.
        on_step: called on the host with the index of each finished denoising step.
    """

    def encode(params: PyTree, image: Array) -> Array:
        return image_condition(world, params, image)

    def see(params: PyTree, image: Array) -> Array:
        assert world.image_encoder is not None
        # The slip of the official WorldStereo code is not one of Wan's own pipeline.
        return image_tokens(params, image, world.image_encoder, "unit")

    def decode(params: PyTree, latent: Array) -> Array:
        return decode_clips(params, latent, world.vae, tile=world.vae_tile, mesh=world.mesh)[0]

    autoencoder = autoencoder_precision(world.denoiser.dtype)
    return VideoSampler(
        world=world,
        encode=jit_at(autoencoder, encode),
        see=jit_at(EXACT, see),
        denoise=make_video_denoiser(world, on_step=on_step),
        decode=jit_at(autoencoder, decode),
    )
