"""Clip after clip of an official model through one memory, a compiled program per stage.

The stages differ in the weights they need, and a 14B model leaves no room to spare: each is its
own program, with its network's parameters as arguments.
"""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.geometry.depth_alignment import align_depth
from worldstereo_jax.models.depth_anything import metric_depth
from worldstereo_jax.models.dinov2 import retrieval_features
from worldstereo_jax.sampling.official_clip import decode_latent, image_tokens, make_denoiser
from worldstereo_jax.sampling.official_conditions import (
    ChosenViews,
    OfficialConditions,
    Renders,
    StereoRead,
    choose_views,
    draw_renders,
    encode_conditions,
    latent_cameras,
    point_confidence,
    read_stereo,
)
from worldstereo_jax.sampling.official_world import OfficialParams, OfficialWorld, Prompt
from worldstereo_jax.sampling.precision import (
    EXACT,
    autoencoder_precision,
    jit_at,
)
from worldstereo_jax.sampling.world import (
    Cameras,
    WorldMemory,
    generated_confidence,
    next_clip,
    remember_frames,
)


@struct.dataclass
@typing.no_type_check
class OfficialClip:
    """A finished clip.

    Attributes:
        video: frames in [-1, 1], [f, h, w, 3].
        depth: camera z of every pixel in world units, [f, h, w], 0 = unknown.
        cameras: the path it was made along.
        guidance: what the global memory showed of it beforehand.
        views: the stored views that it attended to.
        inherited: where `depth` is the memory's own, its confidence; 0 elsewhere [f, h, w]. What
            was only read tells the memory nothing new when it is written back.
    """

    video: jax.Array
    depth: jax.Array
    cameras: Cameras
    guidance: Renders
    views: ChosenViews
    inherited: jax.Array


class Told(typing.NamedTuple):
    """What a clip's model is told, and what of the memory that came from.

    Attributes:
        conditions: the transformer's, without a batch axis.
        image: tokens of the first image [m, ci], None for models without.
        renders: what the global memory shows of the path.
        views: the stored views that the clip attends to.
    """

    conditions: OfficialConditions
    image: jax.Array | None
    renders: Renders
    views: ChosenViews


@dataclasses.dataclass(frozen=True)
class OfficialRollout:
    """The stages of a world's clips, each compiled when it is first called.

    Each is a jitted function, but `denoise`, whose steps are run from the host. `read` says what a
    clip's model is told, `clip` makes one, `remember` writes it into the memory.
    """

    world: OfficialWorld
    draw: Callable[..., Renders]
    describe: Callable[..., Array]
    choose: Callable[..., ChosenViews]
    look: Callable[..., StereoRead]
    encode: Callable[..., typing.Any]
    see: Callable[..., Array]
    denoise: Callable[..., Array]
    decode: Callable[..., Array]
    estimate: Callable[..., Array]
    align: Callable[..., Array]

    def read(
        self,
        params: OfficialParams,
        memory: WorldMemory,
        cameras: Cameras,
        first_image: Float[Array, "h w 3"],
        *,
        bonus: Float[Array, "t v"] | None = None,
        renders: Renders | None = None,
    ) -> Told:
        """What the memories say of a path, as the transformer takes it; for training too.

        Args:
            params: of the world's networks; the transformer's are not read.
            memory: both memories; at least one view must be stored.
            cameras: the path, `world.rollout.frames` cameras.
            first_image: the clip's first frame, in [-1, 1].
            bonus: for views known to belong, see `choose_views`.
            renders: renders made elsewhere, in place of the global memory's own; their depth is
                not read.
        """
        world = self.world
        drawn = self.draw(memory, cameras, first_image)
        if renders is not None:
            drawn = dataclasses.replace(renders, depth=drawn.depth, points=drawn.points)
        features = self.describe(params.dinov2, memory.stereo.images)
        if bonus is None:
            bonus = jnp.zeros((world.latent_frames - 1, memory.stereo.capacity), jnp.float32)
        views = self.choose(memory.stereo, features, cameras, bonus)
        seen = self.look(memory, cameras, drawn, views)
        conditions = self.encode(params.vae, memory.stereo, cameras, drawn, views, seen)
        # Read; a clip's guidance is kept.
        drawn = dataclasses.replace(drawn, points=None)
        image = None
        if world.image_encoder is not None:
            image = self.see(params.image_encoder, first_image)
        return Told(conditions, image, drawn, views)

    def clip(
        self,
        params: OfficialParams,
        memory: WorldMemory,
        cameras: Cameras,
        prompt: Prompt,
        first_image: Float[Array, "h w 3"],
        key: Array,
        *,
        bonus: Float[Array, "t v"] | None = None,
        renders: Renders | None = None,
    ) -> OfficialClip:
        """One clip.

        Args:
            params: of the world's networks.
            memory, cameras, first_image: see `read`.
            prompt: text encoder's output.
            key: random key of the noise.
            bonus, renders: see `read`.
        """
        conditions, image, drawn, views = self.read(
            params, memory, cameras, first_image, bonus=bonus, renders=renders
        )
        latent = self.denoise(params.denoiser, conditions, prompt, image, key)
        video = self.decode(params.vae, latent)
        depth = self.complete_depth(params.depth, video, drawn.depth)
        inherited = point_confidence(drawn.depth)
        return OfficialClip(video, depth, cameras, drawn, views, inherited)

    def estimate_depth(
        self, depth_params: PyTree, images: Float[Array, "n h w 3"]
    ) -> Float[Array, "n h w"]:
        """Camera z of images by the depth network, metres; zeros, unknown, without a network."""
        if self.world.depth is None:
            return jnp.zeros(images.shape[:-1], jnp.float32)
        # One by one: the same small program for a scene's views and a clip's frames.
        return jnp.stack([self.estimate(depth_params, image) for image in images])

    def complete_depth(
        self,
        depth_params: PyTree,
        video: Float[Array, "f h w 3"],
        known: Float[Array, "f h w"],
    ) -> Float[Array, "f h w"]:
        """Depth of generated frames: the memory's where it knows it, else estimated.

        The estimate is brought to the scale of what is known in each frame by `align_depth`.
        Without a depth network the rest stays 0, unknown.

        Args:
            depth_params: parameters of the world's depth network, None without one.
            video: frames in [-1, 1].
            known: camera z, 0 where unknown.
        """
        if self.world.depth is None:
            return known
        return self.align(self.estimate_depth(depth_params, video), known)

    def remember(self, memory: WorldMemory, clip: OfficialClip) -> WorldMemory:
        """The memory after a clip: the official choice of its frames enters both memories."""
        config = self.world.rollout
        chosen = jnp.asarray(keyframe_indices(config.frames, config.keyframes))
        cameras = Cameras(w2c=clip.cameras.w2c[chosen], intrinsics=clip.cameras.intrinsics[chosen])
        depth, inherited = jnp.asarray(clip.depth[chosen]), jnp.asarray(clip.inherited[chosen])
        sure = generated_confidence(depth, cameras, inherited)
        frames = clip.video[chosen], depth, cameras, next_clip(memory)
        return remember_frames(config, memory, *frames, confidence=sure, inherited=inherited)


def make_official_rollout(
    world: OfficialWorld, *, on_step: Callable[[int], None] | None = None
) -> OfficialRollout:
    """The jitted stages of a world.

    Where the transformer computes in float32 every stage multiplies exactly; see `precision` for
    what happens beside one of fewer bits. The networks for image tokens, retrieval and depth, and
    all geometry, are exact beside any.

    Args:
        world: networks and choices.
        on_step: called on the host with the index of each finished denoising step.
    """

    def describe(params: PyTree, images: Array) -> Array:
        if world.dinov2 is None:
            # Never read: no more views are stored than are attended to, or coverage chooses.
            return jnp.zeros((images.shape[0], 1), jnp.float32)
        return retrieval_features(params, images, world.dinov2)

    def choose(stereo, features, cameras: Cameras, bonus: Array) -> ChosenViews:
        if not world.has_references:
            nothing = jnp.zeros((1,), jnp.int32)
            return ChosenViews(index=nothing, position=nothing, valid=nothing > 0)
        return choose_views(world, stereo, features, latent_cameras(world, cameras), bonus)

    def see(params: PyTree, image: Array) -> Array:
        assert world.image_encoder is not None
        return image_tokens(params, image, world.image_encoder, world.choices.quirks.clip_pixels)

    def draw(memory: WorldMemory, cameras: Cameras, first_image: Array) -> Renders:
        return draw_renders(world, memory, cameras, first_image)

    def look(memory: WorldMemory, cameras: Cameras, renders: Renders, views: ChosenViews):
        return read_stereo(world, memory, cameras, renders, views)

    def encode(
        params: PyTree, stereo, cameras: Cameras, renders: Renders, views: ChosenViews, seen
    ):
        return encode_conditions(world, params, stereo, cameras, renders, views, seen)

    def decode(params: PyTree, latent: Array) -> Array:
        return decode_latent(world, params, latent)

    def estimate(params: PyTree, image: Array) -> Array:
        assert world.depth is not None
        return metric_depth(params, image[None], world.depth)[0]

    def align(estimated: Array, known: Array) -> Array:
        aligned = jax.vmap(align_depth)(estimated, known, known > 0).depth
        return jnp.where(known > 0, known, aligned)

    autoencoder = autoencoder_precision(world.denoiser.dtype)
    return OfficialRollout(
        world=world,
        draw=jit_at(EXACT, draw),
        describe=jit_at(EXACT, describe),
        choose=jit_at(EXACT, choose),
        look=jit_at(EXACT, look),
        encode=jit_at(autoencoder, encode),
        see=jit_at(EXACT, see),
        denoise=make_denoiser(world, on_step=on_step),
        decode=jit_at(autoencoder, decode),
        estimate=jit_at(EXACT, estimate),
        align=jit_at(EXACT, align),
    )
