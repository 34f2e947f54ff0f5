"""The memory a run starts with: begun from a scene, or read from an earlier run."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.cli.scene_input import AnyScene, image_size
from worldstereo_jax.data.scene_folders import SingleViewScene
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.scene_unit import depth_for_paths
from worldstereo_jax.memory.entries import EntryBank, init_entries
from worldstereo_jax.memory.entry_codec import QuantisedEntries, restore_entries
from worldstereo_jax.memory.entry_folder import entries_from_fields
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_update import update_entries
from worldstereo_jax.memory.folder import (
    is_memory,
    load_memory,
    load_optional_fields,
    model_of_memory,
)
from worldstereo_jax.memory.global_geometric import init_global_memory
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory, init_spatial_memory
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    World,
    WorldMemory,
    WorldParams,
    empty_memory,
    remember_frames,
)

# Mean difference, of colours in [-1, 1], up to which a stored view counts as the scene's image.
_SAME_IMAGE = 0.02
# Entries per pixel of all views together.
_NEW_SHARE = 0.5


def read_memory(folder: Path, model: str, scene: AnyScene) -> WorldMemory:
    """A saved memory of this model that was begun from this scene.

    Raises:
        InputError: naming what does not fit, and as `load_memory` does.
    """
    memory = open_memory(folder, model=model).memory
    stereo = memory.stereo
    size = image_size(scene)
    found = tuple(stereo.images.shape[1:3])
    if found != size:
        raise InputError(
            f"--memory {folder} holds views of {found[0]}x{found[1]} pixels (height x width), "
            f"but this scene's are {size[0]}x{size[1]}"
        )
    image = scene.image if isinstance(scene, SingleViewScene) else scene.bank.images[0]
    stored = np.asarray(stereo.images)[np.asarray(stereo.valid)]
    if not any(np.abs(view - image).mean() < _SAME_IMAGE for view in stored):
        raise InputError(
            f"--memory {folder} was begun from another image than {scene.name}'s, or holds its "
            "view no more"
        )
    return memory


A_MEMORY: Mapping[str, Any] = {
    "type": Path,
    "metavar": "DIR",
    "help": "a run's results, or their memory/ folder",
}
"""The argument of a command that names a memory; `memory_folder` tells which is meant."""


class StoredMemory(NamedTuple):
    """A saved memory: the folder it lies in, the model it belongs to, and what it holds."""

    folder: Path
    model: str
    memory: WorldMemory


def open_memory(folder: Path, *, model: str | None = None) -> StoredMemory:
    """The memory of a folder, whatever it was begun from.

    Args:
        folder: the memory's own, or that of a run's results: see `memory_folder`.
        model: whose memory it must be; None for any.

    Raises:
        InputError: as `load_memory` does.
    """
    found = memory_folder(folder)
    model = model_of_memory(found) if model is None else model
    points, stereo = load_memory(found, model=model)
    memory = WorldMemory(points=points, stereo=stereo, entries=_read_entries(found, stereo))
    return StoredMemory(found, model, memory)


def memory_folder(folder: Path) -> Path:
    """The memory of a folder: itself, or the memory/ of a run's results."""
    inside = folder / "memory"
    return inside if not is_memory(folder) and is_memory(inside) else folder


def _read_entries(folder: Path, stereo: SpatialStereoMemory) -> EntryBank:
    """The stored entries; of a folder that has none, entries built from its keyframes."""
    stored = load_optional_fields(folder)
    if "position" in stored:
        capacity = max(len(stored["position"]), RolloutConfig().entry_capacity)
        found = entries_from_fields(stored, capacity=capacity)
        return restore_entries(found) if isinstance(found, QuantisedEntries) else found
    height, width = stereo.images.shape[1:3]
    views = int(stereo.count)
    config = with_capacity(RolloutConfig(height=height, width=width), views, 0, 0)
    return _entries_of_views(config, stereo, views)


@functools.partial(jax.jit, static_argnames=("config", "views"))
def _entries_of_views(config: RolloutConfig, stereo: SpatialStereoMemory, views: int) -> EntryBank:
    def add(bank: EntryBank, number: Array) -> tuple[EntryBank, None]:
        frame = make_entry_frame(
            stereo.images[number],
            stereo.depth[number],
            stereo.w2c[number],
            stereo.intrinsics[number],
            view=number,
            source=stereo.source[number],
            confidence=stereo.confidence[number],
            inherited=jnp.where(stereo.measured[number], 0.0, stereo.confidence[number]),
        )
        return update_entries(bank, frame), None

    numbers = jnp.arange(views, dtype=jnp.int32)
    return jax.lax.scan(add, init_entries(config.entry_config), numbers)[0]


def begin_memory(
    world: World,
    params: WorldParams,
    scene: AnyScene,
    known_depth: Float[ndarray, "h w"] | None,
    paths: Sequence[Cameras],
) -> WorldMemory:
    """The memory that a scene starts with: its image, or the panorama's views.

    The image of a single view stands at the first camera of its path, or, without a path in the
    scene's world, at the world's origin with assumed intrinsics. Depth that is not given is
    estimated: views of one centre are made to agree, and all is brought to the unit of `paths`, the
    cameras to come that are given in the scene's world.
    """
    images, w2c, intrinsics = starting_views(scene)
    if known_depth is None:
        estimate = estimate_depth(world, params, images)
        depth = depth_for_paths(estimate, w2c, intrinsics, [path.w2c for path in paths])
    else:
        depth = jnp.asarray(known_depth)[None]
    cameras = Cameras(w2c=jnp.asarray(w2c), intrinsics=jnp.asarray(intrinsics))
    empty = empty_memory(world.rollout)
    return remember_frames(world.rollout, empty, jnp.asarray(images), depth, cameras, source=0)


def starting_views(
    scene: AnyScene,
) -> tuple[Float[ndarray, "v h w 3"], Float[ndarray, "v 4 4"], Float[ndarray, "v 3 3"]]:
    """Images, cameras and intrinsics that a scene starts with; see `begin_memory`."""
    if not isinstance(scene, SingleViewScene):
        return scene.bank.images, scene.bank.w2c, scene.bank.intrinsics
    w2c = np.eye(4, dtype=np.float32)[None] if scene.w2c is None else scene.w2c[:1]
    return scene.image[None], w2c, scene.intrinsics[:1]


def estimate_depth(
    world: World, params: WorldParams, images: Float[ndarray, "v h w 3"]
) -> Float[Array, "v h w"]:
    """Depth of images by the world's depth network, in metres."""
    estimate = jax.jit(lambda params, image: world.depth.apply({"params": params}, image))
    # One by one: a panorama's views at once would take much memory.
    return jnp.concatenate([estimate(params.depth, image[None]) for image in jnp.asarray(images)])


def views_before(scene: AnyScene, memory: WorldMemory | None) -> int:
    """Views that are stored before the first clip: those of the memory it goes on from, if any."""
    if memory is not None:
        return int(memory.stereo.count)
    return 1 if isinstance(scene, SingleViewScene) else len(scene.bank.names)


def roomy(
    config: RolloutConfig, scene: AnyScene, memory: WorldMemory | None, clips: int
) -> RolloutConfig:
    """`with_capacity` for clips of a scene, with at least the capacities of the memory, if any."""
    views = views_before(scene, memory)
    if memory is None:
        return with_capacity(config, views, views * config.height * config.width, clips)
    held = dataclasses.replace(
        config,
        bank_capacity=max(config.bank_capacity, memory.stereo.capacity),
        point_capacity=max(config.point_capacity, memory.points.capacity),
        entry_capacity=max(config.entry_capacity, memory.entries.capacity),
    )
    return with_capacity(held, views, int(memory.points.count), clips)


def with_capacity(config: RolloutConfig, views: int, points: int, clips: int) -> RolloutConfig:
    """The config with memories so large that no view or point of `clips` clips can be lost.

    Surface entries are shared by views, so room is made for half of the pixels; those beyond it
    are counted. Capacities grow in steps of a half or a third, so that a memory which goes on clip
    by clip seldom needs programs of other sizes than those that are compiled already.

    Args:
        config: its capacities are kept where they suffice.
        views: views that are, or will be, stored before the first clip.
        points: points that are, or may be, stored before the first clip.
        clips: clips to be made.
    """
    views += clips * config.keyframes
    entries = round(_NEW_SHARE * views * config.height * config.width)
    points += clips * config.keyframes * config.height * config.width
    return dataclasses.replace(
        config,
        bank_capacity=_stepped(config.bank_capacity, views),
        point_capacity=_stepped(config.point_capacity, points),
        entry_capacity=_stepped(config.entry_capacity, entries),
    )


def _stepped(capacity: int, wanted: int) -> int:
    """The capacity while it suffices, else the next above of 1, 2, 3, 4, 6, 8, 12, 16, ..."""
    if wanted <= capacity:
        return capacity
    power = 1 << (wanted - 1).bit_length()
    return power * 3 // 4 if wanted <= power * 3 // 4 else power


def with_room(memory: WorldMemory, config: RolloutConfig) -> WorldMemory:
    """The same memory with at least the capacities of `config`."""
    height, width = memory.stereo.images.shape[1:3]
    points = init_global_memory(max(config.point_capacity, memory.points.positions.shape[0]))
    stereo = init_spatial_memory(max(config.bank_capacity, memory.stereo.capacity), height, width)
    wanted, held = config.entry_config, memory.entries.config
    entries = init_entries(
        dataclasses.replace(
            held,
            capacity=max(wanted.capacity, held.capacity),
            views=max(wanted.views, held.views),
        )
    )

    def extend(old: Array, empty: Array) -> Array:
        return empty.at[tuple(slice(size) for size in old.shape)].set(old)

    return jax.tree.map(extend, memory, WorldMemory(points=points, stereo=stereo, entries=entries))
