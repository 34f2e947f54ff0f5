"""From posed frames to what an official model is told about a clip, and the clip's latent.

The memory is built as a rollout builds it (the clip's first frame, then views of another part of
the scene) and read by the rollout's own functions, so that training and sampling cannot drift
apart.
"""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import struct

from worldstereo_jax.array_types import Array, Float, Int, Key, PyTree
from worldstereo_jax.sampling.official_conditions import encode_video, point_confidence
from worldstereo_jax.sampling.official_rollout import OfficialRollout, make_official_rollout
from worldstereo_jax.sampling.official_world import OfficialParams, OfficialWorld
from worldstereo_jax.sampling.precision import autoencoder_precision, jit_at
from worldstereo_jax.sampling.world import (
    Cameras,
    WorldMemory,
    empty_memory,
    generated_confidence,
    remember_frames,
)
from worldstereo_jax.training.official_objective import TrainingClip
from worldstereo_jax.training.reference_augmentation import Reference, augment_reference


@struct.dataclass
@typing.no_type_check
class PosedFrames:
    """Frames whose cameras are known.

    Attributes:
        images: [n, h, w, 3] in [-1, 1].
        depth: camera z in world units [n, h, w], 0 = unknown.
        cameras: n of them.
        inherited: confidence of depth that was read from the memory, 0 elsewhere [n, h, w]; None
            where none was.
    """

    images: jax.Array
    depth: jax.Array
    cameras: Cameras
    inherited: jax.Array | None = None


@dataclasses.dataclass(frozen=True)
class Preparation:
    """Makes training clips of a world; its parts are compiled when first called.

    Attributes:
        rollout: the stages that read memories.
        encode: true frames to the latent.
        augment: a view to a worse one.
    """

    rollout: OfficialRollout
    encode: Callable[[PyTree, Array], Array]
    augment: Callable[[Reference, Array], Reference]

    def clip(
        self,
        params: OfficialParams,
        video: PosedFrames,
        references: PosedFrames,
        text: Float[Array, "l ct"],
        key: Key[Array, ""],
    ) -> TrainingClip:
        """One training clip, without a batch axis.

        Args:
            params: of the world's networks; the transformer's are not read.
            video: the clip; of its depth that of the first frame is read.
            references: views of another part of the scene, or none. Those that become stored
                views are drawn, put in a random order and augmented.
            text: text encoder's output for the clip's prompt.
            key: random key of all that.
        """
        choice_key, damage_key = jax.random.split(key)
        first = jax.tree.map(lambda a: a[:1], video)
        memory = self.begin(params, first)
        chosen = draw_views(choice_key, len(references.images))
        views = self.completed(params, memory, references, chosen)
        memory = self.remember(memory, self.augmented(views, damage_key))
        return self.told(params, memory, video, text)

    def begin(self, params: OfficialParams, first: PosedFrames) -> WorldMemory:
        """The memory of a clip's first frame (n = 1), its depth completed by the depth network."""
        config = self.rollout.world.rollout
        depth = self.rollout.complete_depth(params.depth, first.images, first.depth)
        return remember_frames(config, empty_memory(config), first.images, depth, first.cameras, 0)

    def completed(
        self,
        params: OfficialParams,
        memory: WorldMemory,
        references: PosedFrames,
        chosen: Int[Array, "r"],
    ) -> PosedFrames:
        """Some of the references with depth, as a rollout gives it to the frames it made.

        What is not given is estimated, at the scale of what the memory knows there. Without a
        depth network it stays unknown.
        """
        views = jax.tree.map(lambda a: a[chosen], references)
        if self.rollout.world.depth is None:
            return views
        depth, inherited = [], []
        for number in range(len(views.images)):
            image, own = views.images[number], views.depth[number][None]
            camera = jax.tree.map(lambda a, number=number: a[number : number + 1], views.cameras)
            known, read = own, jnp.zeros_like(own)
            if not bool((own > 0).any()):
                known = self.rollout.draw(memory, camera, image).depth
                read = point_confidence(known)
            inherited.append(read)
            depth.append(self.rollout.complete_depth(params.depth, image[None], known))
        if not depth:
            return views
        found = jnp.concatenate(depth), jnp.concatenate(inherited)
        return PosedFrames(views.images, found[0], views.cameras, found[1])

    def augmented(self, views: PosedFrames, key: Key[Array, ""]) -> PosedFrames:
        """Views made worse, each in its own way; see `reference_augmentation`."""
        inherited = views.inherited
        inherited = jnp.zeros_like(views.depth) if inherited is None else inherited
        parts = zip(views.images, views.depth, views.cameras.intrinsics, inherited, strict=True)
        worse = [
            self.augment(Reference(*part), jax.random.fold_in(key, number))
            for number, part in enumerate(parts)
        ]
        if not worse:
            return views
        images, depth, intrinsics, inherited = (
            jnp.stack(part) for part in zip(*worse, strict=True)
        )
        cameras = dataclasses.replace(views.cameras, intrinsics=intrinsics)
        return PosedFrames(images, depth, cameras, inherited)

    def remember(self, memory: WorldMemory, views: PosedFrames) -> WorldMemory:
        """The memory with views of an earlier clip, if there are any, as if that had been made."""
        if len(views.images) == 0:
            return memory
        config, number = self.rollout.world.rollout, memory.stereo.count
        inherited = jnp.zeros_like(views.depth) if views.inherited is None else views.inherited
        sure = generated_confidence(views.depth, views.cameras, inherited)
        frames = views.images, views.depth, views.cameras, number
        return remember_frames(config, memory, *frames, confidence=sure, inherited=inherited)

    def told(
        self,
        params: OfficialParams,
        memory: WorldMemory,
        video: PosedFrames,
        text: Float[Array, "l ct"],
    ) -> TrainingClip:
        """What a rollout with this memory would hand to the model, and the true latent."""
        told = self.rollout.read(params, memory, video.cameras, video.images[0])
        target = self.encode(params.vae, video.images)
        return TrainingClip(told.conditions, text, told.image, target)


def make_preparation(world: OfficialWorld) -> Preparation:
    """The preparation of a world's training clips."""

    def encode(params: PyTree, video: Array) -> Array:
        return encode_video(world, params, video)

    return Preparation(
        rollout=make_official_rollout(world),
        encode=jit_at(autoencoder_precision(world.denoiser.dtype), encode),
        augment=jax.jit(augment_reference),
    )


def draw_views(key: Key[Array, ""], count: int) -> Int[Array, "r"]:
    """At least one of `count` views, any number of them being as likely, in random order."""
    if count == 0:
        return jnp.zeros((0,), jnp.int32)
    number_key, order_key = jax.random.split(key)
    number = int(jax.random.randint(number_key, (), 1, count + 1))
    return jax.random.permutation(order_key, count)[:number]
