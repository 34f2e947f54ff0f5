"""The clips of a scene by an official model, one after the other through one memory."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from worldstereo_jax.array_types import Array, Float, PyTree
from worldstereo_jax.cli.camera_paths import Job, cameras_of
from worldstereo_jax.cli.clip_store import ClipStore
from worldstereo_jax.cli.memory_input import starting_views
from worldstereo_jax.cli.scene_input import AnyScene
from worldstereo_jax.data.scene_folders import Trajectory, continues_a_clip, read_renders
from worldstereo_jax.data.scene_shortcuts import belonging_bonus
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import evenly_spaced
from worldstereo_jax.geometry.scene_unit import depth_for_paths
from worldstereo_jax.memory.spatial_stereo import keyframes_at
from worldstereo_jax.sampling.official_conditions import Renders
from worldstereo_jax.sampling.official_rollout import OfficialClip, OfficialRollout
from worldstereo_jax.sampling.official_world import OfficialParams, OfficialWorld, Prompt
from worldstereo_jax.sampling.world import (
    Cameras,
    WorldMemory,
    empty_memory,
    next_clip,
    remember_frames,
)


@dataclasses.dataclass
class ClipMaker:
    """Makes the clips of a scene one after the other; knows which were made before.

    Attributes:
        rollout: the compiled stages.
        params: parameters of the networks.
        key: random key of the run.
        trajectories: a panorama's own, by the names of their jobs.
        renders_from_files: take their point renders from their files.
        store: where finished clips are kept; those found there are not made again.
        clips: number of each clip made, by view and trajectory, as the stored views hold it.
        last: the last frame of each.
    """

    rollout: OfficialRollout
    params: OfficialParams
    key: Array
    trajectories: Mapping[str, Trajectory]
    renders_from_files: bool
    store: ClipStore | None = None
    clips: dict[tuple[str, str], int] = dataclasses.field(default_factory=dict)
    last: dict[tuple[str, str], Array] = dataclasses.field(default_factory=dict)

    def make(
        self, number: int, job: Job, prompt: Prompt, memory: WorldMemory
    ) -> tuple[OfficialClip, WorldMemory]:
        """One clip, and the memory after it."""
        clip = None if self.store is None else self.store.read(job.name)
        if clip is None:
            clip = self._make_new(number, job, prompt, memory)
            if self.store is not None:
                self.store.write(job.name, clip)
        clip = placed(clip, self.rollout.world)
        trajectory = self.trajectories.get(job.name)
        if trajectory is not None:
            key = trajectory.view, trajectory.name
            self.clips[key] = int(next_clip(memory))
            self.last[key] = clip.video[-1]
        return clip, self.rollout.remember(memory, clip)

    def _make_new(self, number: int, job: Job, prompt: Prompt, memory: WorldMemory) -> OfficialClip:
        world = self.rollout.world
        config = world.rollout
        cameras = placed(cameras_of(job, memory, config.frames), world)
        trajectory = self.trajectories.get(job.name)
        renders, bonus = None, None
        if trajectory is None:
            image = _stored_view_at(cameras, memory, job)
        else:
            image = jnp.asarray(trajectory.start_frame)
            if continues_a_clip(trajectory.view, trajectory.name):
                image = self.last[trajectory.view, "traj0"]
            if self.renders_from_files:
                renders = _renders_from_files(trajectory, image, config.frames)
            source = np.where(memory.stereo.valid, memory.stereo.source, -1)
            bonus = jnp.asarray(
                belonging_bonus(
                    trajectory.view,
                    trajectory.name,
                    self.clips,
                    source,
                    world.latent_frames,
                )
            )
        return self.rollout.clip(
            self.params,
            memory,
            cameras,
            prompt,
            image,
            jax.random.fold_in(self.key, number),
            bonus=bonus,
            renders=renders,
        )


def begin_official_memory(
    rollout: OfficialRollout,
    params: OfficialParams,
    scene: AnyScene,
    known_depth: Float[np.ndarray, "h w"] | None,
    jobs: Sequence[Job],
) -> WorldMemory:
    """The memory that a scene starts with; see `memory_input.begin_memory`."""
    world = rollout.world
    images, w2c, intrinsics = starting_views(scene)
    if known_depth is not None:
        depth = jnp.asarray(known_depth)[None]
    else:
        depth = rollout.estimate_depth(params.depth, jnp.asarray(images))
        if world.depth is not None:
            paths = [job.path.w2c for job in jobs if isinstance(job.path, Cameras)]
            depth = depth_for_paths(depth, w2c, intrinsics, paths)
    cameras = Cameras(w2c=jnp.asarray(w2c), intrinsics=jnp.asarray(intrinsics))
    begun = empty_memory(world.rollout), jnp.asarray(images), depth, cameras, jnp.int32(0)
    return remember_frames(world.rollout, *placed(begun, world))


def placed(tree: PyTree, world: OfficialWorld) -> PyTree:
    """Arrays where the model's are, or each stage is compiled again for another placement."""
    if world.mesh is None:
        return jax.device_put(tree, jax.devices()[0])
    return jax.device_put(tree, NamedSharding(world.mesh, PartitionSpec()))


def _stored_view_at(cameras: Cameras, memory: WorldMemory, job: Job) -> Float[Array, "h w 3"]:
    """The stored view that a clip starts from: the official model needs its first frame."""
    stereo = memory.stereo
    found = np.asarray(keyframes_at(stereo, cameras.w2c[0], cameras.intrinsics[0]))
    if not found.any():
        raise InputError(
            f"the path of {job.name or 'the clip'} starts where no stored view stands, but an "
            "official model needs the clip's first frame; start it at a view of the scene"
        )
    return stereo.images[int(found.argmax())]


def _renders_from_files(
    trajectory: Trajectory, first_image: Float[Array, "h w 3"], frames: int
) -> Renders:
    """A trajectory's point renders from its files; depth, which they lack, is 0."""
    images, masks = read_renders(trajectory)
    chosen = evenly_spaced(len(images), frames)
    render = jnp.asarray(images[chosen]).at[0].set(first_image)
    mask = jnp.asarray(masks[chosen, ..., 0])
    return Renders(render_image=render, render_mask=mask, depth=jnp.zeros_like(mask))
