"""What a rollout is made of: sizes, networks, parameters, cameras and the two memories."""

import dataclasses
import functools
import typing

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jax.core import Tracer

from worldstereo_jax.array_types import Array, Float, Int, PyTree, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.frame_check import check_frame, check_shape, check_values
from worldstereo_jax.geometry.splat import Render, pixel_radius
from worldstereo_jax.memory.entries import EntryBank, EntryConfig, init_entries
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_scope import update_in_view
from worldstereo_jax.memory.entry_update import DEFAULT_RULE, EntryRule
from worldstereo_jax.memory.global_geometric import (
    GlobalGeometricMemory,
    init_global_memory,
    render_global_memory,
    update_global_memory,
)
from worldstereo_jax.memory.keyframe_edit import next_number
from worldstereo_jax.memory.spatial_stereo import (
    SpatialStereoMemory,
    depth_confidence,
    init_spatial_memory,
    insert_keyframes,
    same_cameras,
    scene_scale,
)
from worldstereo_jax.models.depth_tiny import TinyDepth
from worldstereo_jax.models.vae_tiny import TinyVae
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.reading import READING, Reading

ESTIMATED = 0.25
"""Confidence of depth that was estimated for a generated picture, as a share of a measurement's:
what a clip makes up is overruled by any view of what is really there."""

_LEAST = {"frames": 2, "entry_tokens": 0, "candidates": 0}
"""Of a rollout's counts; 1 of any other."""


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Static sizes of a rollout; every array's shape follows from them.

    Attributes:
        frames: frames of one clip.
        height, width: image pixels, multiples of 16.
        references: bank views the model attends to.
        warp_views: bank views that are warped into the clip.
        entry_tokens: most surface entries the model attends to beside the views; 0 for none.
        candidates: single views kept apart beside their fusion as aligned keys and values.
        keyframes: most frames of a finished clip that enter the memories; its first is known.
        bank_capacity: keyframes the stereo memory holds.
        point_capacity: points the global memory holds.
        entry_capacity: surface entries the stereo memory holds.
        entry_rule: how frames become such entries.
        entry_candidates: entries in view that are looked at alone. Where more are in view, or where
            there is room for no more, all are: what comes out is the same.
        point_radius: radius of a rendered point in pixels.
        point_edges: which depth edges the global memory drops, see `update_global_memory`.
        steps: denoising steps.
        shift: flow shift of the noise schedule.

    Raises InputError for counts below what a clip needs.
    """

    frames: int = 9
    height: int = 96
    width: int = 160
    references: int = 4
    warp_views: int = 6
    entry_tokens: int = 256
    candidates: int = 1
    keyframes: int = 4
    bank_capacity: int = 24
    point_capacity: int = 196_608
    entry_capacity: int = 98_304
    entry_rule: EntryRule = DEFAULT_RULE
    entry_candidates: int = 131_072
    point_radius: float = 1.0
    point_edges: str = "surface"
    steps: int = 1
    shift: float = 3.0

    def __post_init__(self):
        for name, value in vars(self).items():
            least = _LEAST.get(name, 1)
            if isinstance(value, int) and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")

    @property
    def point_radius_ndc(self) -> float:
        """`point_radius` in normalised device coordinates (1 = half the shorter side)."""
        return pixel_radius(self.height, self.width, self.point_radius)

    @property
    def entry_config(self) -> EntryConfig:
        """Sizes of the bank of surface entries; every keyframe of the bank has a bit in it."""
        return EntryConfig(self.entry_capacity, views=max(64, self.bank_capacity))


@dataclasses.dataclass(frozen=True)
class World:
    """The networks of one preset, the sizes they roll out at, and how clips read the memory."""

    name: str
    rollout: RolloutConfig
    denoiser: WorldStereo
    vae: TinyVae
    depth: TinyDepth
    reading: Reading = READING


@struct.dataclass
@typing.no_type_check
class WorldParams:
    """Parameters of a `World`'s three networks, one pytree each."""

    denoiser: PyTree
    vae: PyTree
    depth: PyTree


@struct.dataclass
@typing.no_type_check
class Cameras:
    """A camera path: `w2c` [f, 4, 4] world to camera, `intrinsics` [f, 3, 3] in pixels."""

    w2c: jax.Array
    intrinsics: jax.Array


@struct.dataclass
@typing.no_type_check
class WorldMemory:
    """Both memories of one world, in one world frame (row S26).

    Attributes:
        points: the global-geometric memory.
        stereo: keyframes of the spatial-stereo memory (row S7).
        entries: its surface entries, fused from the same frames (rows S1 to S6).
    """

    points: GlobalGeometricMemory
    stereo: SpatialStereoMemory
    entries: EntryBank


@functools.partial(jax.jit, static_argnames="config")
def empty_memory(config: RolloutConfig) -> WorldMemory:
    """Allocate both memories at their full capacity, holding nothing."""
    return WorldMemory(
        points=init_global_memory(config.point_capacity),
        stereo=init_spatial_memory(config.bank_capacity, config.height, config.width),
        entries=init_entries(config.entry_config),
    )


def remember(
    config: RolloutConfig,
    memory: WorldMemory,
    images: Float[Array, "f h w 3"],
    depth: Float[Array, "f h w"],
    cameras: Cameras,
    source: Int[Array, ""] | int,
    *,
    confidence: Float[Array, "f h w"] | None = None,
    inherited: Float[Array, "f h w"] | None = None,
) -> WorldMemory:
    """Write frames into both memories, one after the other (row S26: one rollout updates both).

    For use inside jit, as one scan; `remember_frames` is for plain Python.

    Args:
        config: the rollout's sizes.
        memory: the memories to extend.
        images: frames in [-1, 1].
        depth: camera z of every pixel in world units, 0 where unknown.
        cameras: the frames' cameras.
        source: number of the clip the frames come from, kept with each keyframe.
        confidence: of the depth, 0 .. 1; that of a measurement, `depth_confidence`, when None.
        inherited: where depth was read from the memory itself, the confidence of what it was read
            from, above 0: so much it has at most, and to what is known already it adds pictures
            alone. 0 where it was measured or estimated on its own, as all was when None.

    Returns:
        The extended memories; what no longer fits is counted in their `overflow`.

    Raises:
        InputError: when an array has another shape, or does not hold floats.
    """
    frames = _told_frames(memory, images, depth, cameras, confidence, inherited)

    def add(memory: WorldMemory, frame: _Frames) -> tuple[WorldMemory, None]:
        return _remember_frame(config, memory, frame, jnp.asarray(source, jnp.int32)), None

    return jax.lax.scan(add, memory, frames)[0]


def remember_frames(
    config: RolloutConfig,
    memory: WorldMemory,
    images: Float[Array, "f h w 3"],
    depth: Float[Array, "f h w"],
    cameras: Cameras,
    source: Int[Array, ""] | int,
    *,
    confidence: Float[Array, "f h w"] | None = None,
    inherited: Float[Array, "f h w"] | None = None,
) -> WorldMemory:
    """`remember`, frame by frame from plain Python: one small program for any number of frames.

    Args and what is raised as in `remember`, and, since values are known here, InputError where
    they break the conventions: see `check_values`; `confidence` and `inherited` must lie between 0
    and 1.
    """
    frames = _told_frames(memory, images, depth, cameras, confidence, inherited)
    # Looked at on the host: every operation on the device by itself is compiled by itself.
    told = (images, depth, cameras.w2c, cameras.intrinsics)
    for frame in zip(*map(_on_host, told), strict=True):
        check_values(*frame)
    for name in ("confidence", "inherited"):
        value = _on_host(getattr(frames, name))
        if isinstance(value, np.ndarray) and not ((value >= 0) & (value <= 1)).all():
            raise InputError(f"{name} must hold confidences between 0 and 1")
    for i in range(len(images)):
        frame = _frame_at(frames, np.int32(i))
        memory = _remember_frame(config, memory, frame, jnp.asarray(source, jnp.int32))
    return memory


def _on_host(value: Array) -> Array | ndarray:
    """Values that are known; a tracer as it is."""
    return value if isinstance(value, Tracer) else np.asarray(value)


@jax.jit
def measured_confidence(depth: Float[Array, "f h w"], cameras: Cameras) -> Float[Array, "f h w"]:
    """`depth_confidence` of frames."""
    return jax.vmap(depth_confidence)(depth, cameras.w2c, cameras.intrinsics)


@jax.jit
def generated_confidence(
    depth: Float[Array, "f h w"], cameras: Cameras, inherited: Float[Array, "f h w"]
) -> Float[Array, "f h w"]:
    """Confidence of the depth of generated frames, 0 .. 1 (row S6): see `ESTIMATED`.

    Args:
        depth: camera z, 0 where unknown.
        cameras: of the frames.
        inherited: as in `remember`; where it is 0 the depth was estimated.
    """
    sure = measured_confidence(depth, cameras)
    return jnp.where(inherited > 0, sure, ESTIMATED * sure)


class _Frames(typing.NamedTuple):
    """Frames as `remember` takes them; without a leading axis, one."""

    images: Array
    depth: Array
    cameras: Cameras
    confidence: Array
    inherited: Array


def _told_frames(
    memory: WorldMemory,
    images: Array,
    depth: Array,
    cameras: Cameras,
    confidence: Array | None,
    inherited: Array | None,
) -> _Frames:
    """The frames with all that is told of their depth, once all fit each other and the memory."""
    check_shape("cameras.w2c", cameras.w2c, ("f", 4, 4))
    size, frames = memory.stereo.images.shape[1:3], cameras.w2c.shape[0]
    check_frame(images, depth, cameras.w2c, cameras.intrinsics, size=size, frames=frames)
    # Told here and not where it is used: a replay, which tells what is stored, is the same program.
    confidence = measured_confidence(depth, cameras) if confidence is None else confidence
    # On the depth's devices: beside arrays that are bound to theirs it would be another program.
    inherited = jnp.zeros_like(depth, jnp.float32) if inherited is None else inherited
    check_shape("confidence", confidence, depth.shape)
    check_shape("inherited", inherited, depth.shape)
    told = jnp.asarray(confidence, jnp.float32), jnp.asarray(inherited, jnp.float32)
    return _Frames(images, depth, cameras, *told)


@jax.jit
def _frame_at(frames: _Frames, index: Int[Array, ""]) -> _Frames:
    return jax.tree.map(lambda a: a[index], frames)


@jax.jit
def _as_frames(*frame: Array) -> tuple[Array, ...]:
    """Arrays of one frame as of several, float32."""
    return tuple(jnp.asarray(value, jnp.float32)[None] for value in frame)


@jax.jit
def next_clip(memory: WorldMemory) -> Int[Array, ""]:
    """Number of the clip that comes next: greater than that of every keyframe's clip.

    The number of keyframes is, unless the memory was selected from a larger one: its keyframes keep
    their clips' numbers, so that undoing gives back what was there before, bit by bit.
    """
    stereo = memory.stereo
    latest = jnp.max(jnp.where(stereo.valid, stereo.source, -1))
    return jnp.maximum(stereo.count, latest + 1)


@functools.partial(jax.jit, static_argnames="config")
def _remember_frame(
    config: RolloutConfig,
    memory: WorldMemory,
    told: _Frames,
    source: Int[Array, ""],
) -> WorldMemory:
    stereo, image, depth = memory.stereo, told.images, told.depth
    w2c, intrinsics = told.cameras.w2c, told.cameras.intrinsics
    # A view's number in the entries' bitsets is its slot among the keyframes, also when the same
    # view comes again; those without room have numbers beyond.
    scale = scene_scale(depth)[None]
    same = same_cameras(w2c[None], intrinsics[None], stereo.w2c, stereo.intrinsics, scale)[0]
    known = same & stereo.valid & (stereo.source == source)
    slot = jnp.where(known.any(), jnp.argmax(known), next_number(stereo, memory.entries))
    frame = make_entry_frame(
        image,
        depth,
        w2c,
        intrinsics,
        view=slot.astype(jnp.int32),
        source=source,
        confidence=told.confidence,
        inherited=told.inherited,
    )
    return WorldMemory(
        points=update_global_memory(
            memory.points,
            image,
            depth,
            w2c,
            intrinsics,
            radius_ndc=config.point_radius_ndc,
            edges=config.point_edges,
        ),
        stereo=insert_keyframes(
            stereo,
            image[None],
            depth[None],
            w2c[None],
            intrinsics[None],
            confidence=frame.confidence[None],
            measured=frame.measured[None],
            source=source,
        ),
        entries=update_in_view(
            memory.entries, frame, rule=config.entry_rule, most=config.entry_candidates
        ),
    )


def init_memory(
    config: RolloutConfig,
    image: Float[Array | ndarray, "h w 3"],
    depth: Float[Array | ndarray, "h w"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
) -> WorldMemory:
    """Both memories, begun from one image with its depth and camera.

    Args:
        config: the rollout's sizes; `image` must have its height and width.
        image: the input image in [-1, 1].
        depth: camera z in world units, 0 where unknown.
        w2c: world to camera of the image.
        intrinsics: pixels.

    Raises:
        InputError: naming the argument that has another shape or type, or (outside of jit, where
            values are known) breaks these conventions: see `check_values`.
    """
    check_frame(image, depth, w2c, intrinsics, size=(config.height, config.width))
    check_values(image, depth, w2c, intrinsics)
    images, depths, paths, lenses = _as_frames(image, depth, w2c, intrinsics)
    cameras = Cameras(w2c=paths, intrinsics=lenses)
    return remember_frames(config, empty_memory(config), images, depths, cameras, 0)


def render_points(
    config: RolloutConfig,
    points: GlobalGeometricMemory,
    cameras: Cameras,
    first_image: Float[Array, "h w 3"],
) -> Render:
    """The global memory along a path, in the official form: frame 0 is the image, without holes."""
    render = render_global_memory(
        points,
        cameras.w2c,
        cameras.intrinsics,
        height=config.height,
        width=config.width,
        radius_ndc=config.point_radius_ndc,
    )
    return Render(
        image=render.image.at[0].set(first_image),
        alpha=render.alpha.at[0].set(1.0),
        mask=render.mask.at[0].set(0.0),
        depth=render.depth,
    )
