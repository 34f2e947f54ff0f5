"""Clip after clip through one memory: where the memories and the model meet.

A clip is made in three stages, each a pure function that can be jitted alone:
`gather_conditions` (read the memories), `generate_clip` (denoise and decode) and
`write_back` (estimate depth and update the memories). `make_rollout` joins them into one jitted
function for notebooks: `clip, memory = rollout(params, memory, cameras, key)`.
"""

import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from worldstereo_jax.array_types import Array, Float, Key
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.geometry.depth_alignment import align_depth
from worldstereo_jax.geometry.frame_check import check_cameras
from worldstereo_jax.memory.masks import TOKEN
from worldstereo_jax.models.vae_tiny import decode_frames
from worldstereo_jax.sampling.conditions import Conditions, Guidance, anchor, gather_conditions
from worldstereo_jax.sampling.denoise import denoise
from worldstereo_jax.sampling.detail import calm_guesses, restore_detail
from worldstereo_jax.sampling.loop import VelocityFn, sample
from worldstereo_jax.sampling.noise import unit_noise
from worldstereo_jax.sampling.prediction import anchored_source, anchored_velocity
from worldstereo_jax.sampling.schedules import Schedule, flow_schedule
from worldstereo_jax.sampling.solvers import euler
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    World,
    WorldMemory,
    WorldParams,
    generated_confidence,
    next_clip,
    remember,
)


@struct.dataclass
@typing.no_type_check
class Clip:
    """A finished clip.

    Attributes:
        video: frames in [-1, 1], [f, h, w, 3].
        depth: camera z of every pixel in world units, [f, h, w].
        cameras: the path it was made along.
        guidance: what the memories showed of it beforehand.
        inherited: where `depth` is the memories' own, its confidence; 0 where it was estimated
            [f, h, w]. What was only read tells the memories nothing new when it is written back.
    """

    video: jax.Array
    depth: jax.Array
    cameras: Cameras
    guidance: Guidance
    inherited: jax.Array


def generate_clip(
    world: World,
    params: WorldParams,
    conditions: Conditions,
    guidance: Guidance,
    key: Key[Array, ""],
) -> Float[Array, "f h w 3"]:
    """One clip: `denoise_clip` and `finish_clip`.

    Args:
        world: networks and sizes.
        params: their parameters.
        conditions, guidance: what `gather_conditions` read, without a batch axis.
        key: random key of the noise; the same key gives the same clip.

    Returns:
        Frames in [-1, 1].
    """
    decoded = denoise_clip(world, params, conditions, key)
    return finish_clip(conditions, guidance, *decoded)


def finish_clip(
    conditions: Conditions,
    guidance: Guidance,
    video: Float[Array, "f h w 3"],
    coded_warp: Float[Array, "f h w 3"],
) -> Float[Array, "f h w 3"]:
    """Frames in [-1, 1] of what was decoded, with the warp's own texture where it is enabled.

    See `with_memory_pixels`.

    Args:
        conditions, guidance: what the clip was made from.
        video, coded_warp: from `denoise_clip`.
    """
    detailed = with_memory_pixels(video, coded_warp, guidance)
    return jnp.where(conditions.stereo_enabled, detailed, video).clip(-1, 1)


def with_memory_pixels(
    video: Float[Array, "f h w 3"], coded_warp: Float[Array, "f h w 3"], guidance: Guidance
) -> Float[Array, "f h w 3"]:
    """Decoded frames with the warp's texture where it was seen, and calm where nothing was.

    A latent cannot hold the finest texture (`restore_detail`), and guesses at what was never seen
    show the tokens' grid (`calm_guesses`).

    Args:
        video, coded_warp: from `denoise_clip`.
        guidance: what the memories show of the path.
    """
    warp, hole = guidance.warped_image, guidance.warped_mask
    detailed = restore_detail(video, warp, coded_warp, hole)
    return calm_guesses(detailed, warp, coded_warp, hole * guidance.render_mask)


def denoise_clip(
    world: World, params: WorldParams, conditions: Conditions, key: Key[Array, ""]
) -> tuple[Float[Array, "f h w 3"], Float[Array, "f h w 3"]]:
    """Denoise one clip from its noised anchor under its conditions and decode it.

    Args as in `generate_clip`.

    Returns:
        The decoded frames, and the stereo memory's warp as the autoencoder shows it.
    """
    velocity = clip_velocity(world, params, conditions)
    latent = sample(velocity, noised_anchor(conditions, key), clip_schedule(world), euler)
    return decode_clip(world, params, conditions, latent)


def noised_anchor(conditions: Conditions, key: Key[Array, ""]) -> Float[Array, "1 f lh lw z"]:
    """The latent that a clip is denoised from.

    Args:
        conditions: without a batch axis.
        key: random key of the noise.
    """
    base = anchor(_batched(conditions))
    return anchored_source(base, unit_noise(key, base.shape))


def clip_velocity(world: World, params: WorldParams, conditions: Conditions) -> VelocityFn:
    """The denoiser under a clip's conditions, without a batch axis."""
    batched = _batched(conditions)
    base = anchor(batched)

    def velocity(x: Array, timestep: Array, sigma: Array) -> Array:
        output = denoise(
            world.denoiser, params.denoiser, x, timestep[None], batched, reading=world.reading
        )
        return anchored_velocity(output, x, sigma, base)

    return velocity


def clip_schedule(world: World) -> Schedule:
    """The noise levels of a world's clips."""
    return flow_schedule(world.rollout.steps, world.rollout.shift)


def decode_clip(
    world: World,
    params: WorldParams,
    conditions: Conditions,
    latent: Float[Array, "1 f lh lw z"],
) -> tuple[Float[Array, "f h w 3"], Float[Array, "f h w 3"]]:
    """Frames of a denoised latent, and of the stereo memory's warp; see `denoise_clip`."""
    warped_latent = conditions.warped_features[..., 0, :16]
    video, coded_warp = decode_frames(world.vae, params.vae, jnp.stack([latent[0], warped_latent]))
    return video, coded_warp


def _batched(conditions: Conditions) -> Conditions:
    return jax.tree.map(lambda a: a[None], conditions)


def complete_depth(
    world: World,
    params: WorldParams,
    video: Float[Array, "f h w 3"],
    known: Float[Array, "f h w"],
) -> Float[Array, "f h w"]:
    """Depth of generated frames: the memories' where they know it, else estimated.

    The estimate of the depth network is brought to the scale of what is known in each frame by
    `align_depth`, so that new surfaces join the old ones.

    Args:
        world: networks and sizes.
        params: their parameters.
        video: frames in [-1, 1].
        known: camera z, 0 where unknown.

    Returns:
        Camera z of every pixel in world units.
    """
    estimate = typing.cast(jax.Array, world.depth.apply({"params": params.depth}, video))
    aligned = jax.vmap(align_depth)(estimate, known, known > 0).depth
    return jnp.where(known > 0, known, aligned)


def write_back(
    world: World,
    memory: WorldMemory,
    clip: Clip,
) -> WorldMemory:
    """Let `keyframes` frames of a finished clip into both memories, spread as officially."""
    config, number = world.rollout, next_clip(memory)
    images, depth, cameras, inherited = keyframes_of(config, clip)
    sure = generated_confidence(depth, cameras, inherited)
    return remember(
        config, memory, images, depth, cameras, number, confidence=sure, inherited=inherited
    )


def keyframes_of(config: RolloutConfig, clip: Clip) -> tuple[Array, Array, Cameras, Array]:
    """Images, depth, cameras and `inherited` of a clip's frames that enter the memories."""
    chosen = jnp.asarray(keyframe_indices(config.frames, config.keyframes))
    cameras = Cameras(w2c=clip.cameras.w2c[chosen], intrinsics=clip.cameras.intrinsics[chosen])
    return clip.video[chosen], clip.depth[chosen], cameras, clip.inherited[chosen]


def make_rollout(
    world: World,
) -> Callable[[WorldParams, WorldMemory, Cameras, Array], tuple[Clip, WorldMemory]]:
    """One jitted function that makes a clip and updates the memory with it.

    Args:
        world: networks and sizes.

    Returns:
        `rollout(params, memory, cameras, key) -> (clip, memory)`; `cameras` must have the
        `frames` of the rollout's config, and `memory` its image size, or an `InputError` says so.
        A second call with other values compiles nothing. Differentiable backwards in the parameters
        alone: looking into the memories takes loops of unknown length.
    """

    @jax.jit
    def rollout(
        params: WorldParams, memory: WorldMemory, cameras: Cameras, key: Array
    ) -> tuple[Clip, WorldMemory]:
        _check_fit(world.rollout, params, memory, cameras, key)
        conditions, guidance = gather_conditions(world, params.vae, memory, cameras)
        video = generate_clip(world, params, conditions, guidance, key)
        depth = complete_depth(world, params, video, guidance.depth)
        clip = Clip(video, depth, cameras, guidance, inherited=guidance.confidence)
        return clip, write_back(world, memory, clip)

    return rollout


def _check_fit(
    config: RolloutConfig, params: object, memory: object, cameras: object, key: object
) -> None:
    for name, value, kind in (
        ("params", params, WorldParams),
        ("memory", memory, WorldMemory),
        ("cameras", cameras, Cameras),
    ):
        if not isinstance(value, kind):
            raise InputError(f"{name} must be a {kind.__name__}, got a {type(value).__name__}")
    assert isinstance(memory, WorldMemory)
    assert isinstance(cameras, Cameras)
    is_key = isinstance(key, jax.Array) and (
        jnp.issubdtype(key.dtype, jax.dtypes.prng_key) or key.dtype == jnp.uint32
    )
    if not is_key:
        raise InputError("key must be a random key, such as jax.random.key(0)")
    if config.height % TOKEN or config.width % TOKEN:
        raise InputError(
            f"height and width of the rollout must be multiples of {TOKEN}, got "
            f"{config.height}x{config.width}"
        )
    check_cameras(cameras.w2c, cameras.intrinsics, leading=(config.frames,))
    size = memory.stereo.images.shape[1:3]
    if size != (config.height, config.width):
        raise InputError(
            f"memory holds views of {size[0]}x{size[1]} pixels, but the rollout is for "
            f"{config.height}x{config.width}"
        )
