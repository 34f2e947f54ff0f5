"""Spatial-stereo memory: the bank of views that fine detail is copied from (row S7).

First form of the memory: whole keyframes with depth and a confidence per pixel. Correspondences
are computed from this geometry when asked for (rows S8, S14), never stored. Capacity is fixed and
there is no ring: what finds no room is counted, and nothing stored is overwritten.
"""

import typing

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.geometry.frame_check import check_frame, check_shape
from worldstereo_jax.geometry.points import (
    PointCloud,
    depth_to_points,
    normals_from_depth,
    valid_depth,
)
from worldstereo_jax.geometry.smooth import length
from worldstereo_jax.memory.surface import (
    between_surfaces,
    farthest_around,
    inverse_depth,
    nearest_around,
)

# Two cameras are one when rotations, and intrinsics by their size, differ by less than this, and
# centres by less than this share of the depth in view.
_SAME_CAMERA = 1e-4
_EDGE_JUMP = 0.1  # a step of this share of inverse depth between neighbours is a depth edge
_EDGE_CONFIDENCE = 0.25  # silhouette pixels mix two surfaces' colours


@typing.no_type_check
@flax.struct.dataclass
class SpatialStereoMemory:
    """At most v keyframes; slots below `count` were filled in order of arrival.

    images [v, h, w, 3]: in [-1, 1]. depth [v, h, w]: camera z, world units, 0 = unknown. confidence
    [v, h, w]: 0 .. 1 (row S6). measured [v, h, w]: False where depth was read from the memory
    itself, which repeats what other views say (True in empty slots). w2c [v, 4, 4]: world to
    camera. intrinsics [v, 3, 3]: pixels. valid [v]: the slot holds a view. source [v]: int32,
    number of the clip that the view comes from. count []: int32, slots used. overflow []: int32,
    keyframes that found no room.
    """

    images: Float[Array, "v h w 3"]
    depth: Float[Array, "v h w"]
    confidence: Float[Array, "v h w"]
    measured: Bool[Array, "v h w"]
    w2c: Float[Array, "v 4 4"]
    intrinsics: Float[Array, "v 3 3"]
    valid: Bool[Array, "v"]
    source: Int[Array, "v"]
    count: Int[Array, ""]
    overflow: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """Most keyframes the bank can hold."""
        return self.images.shape[0]


def init_spatial_memory(capacity: int, height: int, width: int) -> SpatialStereoMemory:
    """Allocate a bank for `capacity` keyframes of height x width pixels, holding nothing.

    Raises:
        InputError: when a size is not positive.
    """
    if min(capacity, height, width) < 1:
        raise InputError(
            "capacity, height and width of the spatial-stereo memory must be at least 1, got "
            f"{capacity}, {height} and {width}"
        )
    return SpatialStereoMemory(
        images=jnp.zeros((capacity, height, width, 3), jnp.float32),
        depth=jnp.zeros((capacity, height, width), jnp.float32),
        confidence=jnp.zeros((capacity, height, width), jnp.float32),
        measured=jnp.ones((capacity, height, width), bool),
        # Copies: a donated bank must own each of its buffers.
        w2c=jnp.tile(jnp.eye(4, dtype=jnp.float32)[None], (capacity, 1, 1)),
        intrinsics=jnp.tile(jnp.eye(3, dtype=jnp.float32)[None], (capacity, 1, 1)),
        valid=jnp.zeros((capacity,), bool),
        source=jnp.zeros((capacity,), jnp.int32),
        count=jnp.zeros((), jnp.int32),
        overflow=jnp.zeros((), jnp.int32),
    )


def depth_confidence(
    depth: Float[Array, "h w"], w2c: Float[Array, "4 4"], intrinsics: Float[Array, "3 3"]
) -> Float[Array, "h w"]:
    """Confidence of one depth map, 0 .. 1 (row S6, first form).

    The cosine between the surface normal and the viewing ray; a quarter of it next to a depth
    edge; 0 where depth is unknown or hangs between a near and a far surface.

    Args:
        depth: camera z, 0 = unknown.
        w2c: world to camera.
        intrinsics: pixels.
    """
    inverse = inverse_depth(depth)
    edge = nearest_around(inverse) > (1.0 + _EDGE_JUMP) * farthest_around(inverse)
    value = _viewing_cosine(depth, w2c, intrinsics) * jnp.where(edge, _EDGE_CONFIDENCE, 1.0)
    return jnp.where((inverse > 0) & ~between_surfaces(inverse), value, 0.0)


def frontal_confidence(
    confidence: Float[Array, "h w"],
    depth: Float[Array, "h w"],
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
) -> Float[Array, "h w"]:
    """Confidence as in `depth_confidence`, at most 1, without the cosine of the viewing angle.

    For who counts the angle by himself.

    Args:
        confidence: of the depth, with that cosine in it.
        depth: camera z, 0 = unknown.
        w2c: world to camera.
        intrinsics: pixels.
    """
    return jnp.minimum(confidence / _viewing_cosine(depth, w2c, intrinsics), 1.0)


def _viewing_cosine(
    depth: Float[Array, "h w"], w2c: Float[Array, "4 4"], intrinsics: Float[Array, "3 3"]
) -> Float[Array, "h w"]:
    # Depth that is no number would make NaN of a derivative, though no one reads the cosine there.
    depth = jnp.where(valid_depth(depth), depth, 0.0)
    points = depth_to_points(depth, w2c, intrinsics)
    normals = normals_from_depth(depth, w2c, intrinsics)
    ray = points - camera_centers(w2c)[None, None, :]
    ray = ray / jnp.maximum(length(ray, keepdims=True), 1e-12)
    cosine = jnp.abs((normals * ray).sum(-1))
    # Where no normal can be told the surface is taken to be moderately slanted.
    cosine = jnp.where(jnp.abs(normals).sum(-1) > 0, cosine, 0.5)
    return jnp.clip(cosine, 0.05, 1.0)


@jax.jit
def insert_keyframes(
    memory: SpatialStereoMemory,
    images: Float[Array | ndarray, "f h w 3"],
    depth: Float[Array | ndarray, "f h w"],
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    *,
    confidence: Float[Array, "f h w"] | None = None,
    measured: Bool[Array, "f h w"] | None = None,
    source: Int[Array, ""] | Int[Array, " f"] | int = 0,
    wanted: Bool[Array, " f"] | None = None,
) -> SpatialStereoMemory:
    """Add frames with their depth and cameras to the bank, in one scatter per field (row S11).

    A frame whose camera a stored view of the same source already has is not added again, so the
    same insertion twice changes nothing (row S12). Frames beyond the capacity are counted in
    `overflow`. Scannable, and every buffer can be donated.

    Args:
        memory: the bank.
        images: in [-1, 1].
        depth: camera z in world units, 0 = unknown; what is negative, infinite or no number is
            stored as 0.
        w2c: world to camera.
        intrinsics: pixels.
        confidence: 0 .. 1 per pixel; from `depth_confidence` when not given.
        measured: False where depth was read from the memory; all was measured when not given.
        source: number of the clip the frames come from, one for all or one each.
        wanted: False for frames to be passed over; all are added when not given.

    Raises:
        InputError: when an array has another shape, or does not hold floats.
    """
    check_shape("w2c", w2c, ("f", 4, 4))
    frames = w2c.shape[0]
    check_frame(images, depth, w2c, intrinsics, frames=frames, size=memory.images.shape[1:3])
    images, depth, w2c, intrinsics = (
        jnp.asarray(value, jnp.float32) for value in (images, depth, w2c, intrinsics)
    )
    # One word for unknown: readers of the bank ask for 0.
    depth = jnp.where(valid_depth(depth), depth, 0.0)
    if confidence is None:
        confidence = jax.vmap(depth_confidence)(depth, w2c, intrinsics)
    measured = jnp.ones(depth.shape, bool) if measured is None else measured
    source = jnp.broadcast_to(jnp.asarray(source, jnp.int32), (frames,))
    wanted = jnp.ones((frames,), bool) if wanted is None else wanted
    scale = jax.vmap(scene_scale)(depth)
    stored = same_cameras(w2c, intrinsics, memory.w2c, memory.intrinsics, scale)
    stored &= memory.valid[None, :] & (memory.source[None, :] == source[:, None])
    repeated = same_cameras(w2c, intrinsics, w2c, intrinsics, scale)
    repeated &= jnp.tril(wanted[None, :] & (source[None, :] == source[:, None]), -1)
    new = wanted & ~stored.any(1) & ~repeated.any(1)
    slot = memory.count + jnp.cumsum(new, dtype=jnp.int32) - 1
    fits = new & (slot < memory.capacity)
    # Out of range on purpose: the scatter drops those.
    slot = jnp.where(fits, slot, memory.capacity)
    added = fits.sum(dtype=jnp.int32)

    def put(field: Array, value: Array) -> Array:
        return field.at[slot].set(value.astype(field.dtype), mode="drop")

    return SpatialStereoMemory(
        images=put(memory.images, images),
        depth=put(memory.depth, depth),
        confidence=put(memory.confidence, confidence),
        measured=put(memory.measured, measured),
        w2c=put(memory.w2c, w2c),
        intrinsics=put(memory.intrinsics, intrinsics),
        valid=put(memory.valid, fits),
        source=put(memory.source, source),
        count=memory.count + added,
        overflow=memory.overflow + new.sum(dtype=jnp.int32) - added,
    )


def bank_points(memory: SpatialStereoMemory, *, least_confidence: float = 0.1) -> PointCloud:
    """The bank's surface points in the world frame, v h w of them (row S26: entries are points).

    Args:
        memory: the bank.
        least_confidence: pixels below it, and those of empty slots, are not valid.
    """
    points = jax.vmap(depth_to_points)(memory.depth, memory.w2c, memory.intrinsics)
    keep = (memory.depth > 0) & (memory.confidence >= least_confidence)
    keep &= memory.valid[:, None, None]
    return PointCloud(
        points=jnp.where(keep[..., None], points, 0.0).reshape(-1, 3),
        colors=jnp.where(keep[..., None], memory.images, 0.0).reshape(-1, 3),
        valid=keep.reshape(-1),
    )


def scene_scale(depth: Float[Array, "h w"]) -> Float[Array, ""]:
    """Harmonic mean of the known depth: what camera centres are compared with (row S38).

    1, the world's unit, where none is known.
    """
    inverse = inverse_depth(depth)
    known = (inverse > 0).sum(dtype=jnp.float32)
    return jnp.where(known > 0, known / jnp.maximum(inverse.sum(), 1e-20), 1.0)


def same_cameras(
    w2c: Float[Array, "a 4 4"],
    intrinsics: Float[Array, "a 3 3"],
    others_w2c: Float[Array, "b 4 4"],
    others_intrinsics: Float[Array, "b 3 3"],
    scale: Float[Array, "a"],
) -> Bool[Array, "a b"]:
    """Which cameras of two sets are one, rounding apart.

    Args:
        w2c, intrinsics: one set, pixels; others_w2c, others_intrinsics: the other.
        scale: depth in view of each of the first, world units: see `scene_scale`.
    """
    turn = jnp.abs(w2c[:, None, :3, :3] - others_w2c[None, :, :3, :3]).max((-2, -1))
    centre, other = camera_centers(w2c), camera_centers(others_w2c)
    move = jnp.linalg.norm(centre[:, None] - other[None], axis=-1)
    lens = jnp.abs(intrinsics[:, None] - others_intrinsics[None]).max((-2, -1))
    lens = lens / intrinsics[:, 0, 0][:, None]
    same = (turn < _SAME_CAMERA) & (lens < _SAME_CAMERA)
    return same & (move <= _SAME_CAMERA * scale[:, None])


def keyframes_at(
    memory: SpatialStereoMemory, w2c: Float[Array, "4 4"], intrinsics: Float[Array, "3 3"]
) -> Bool[Array, "v"]:
    """Which stored views were taken by this camera, rounding apart; in any unit (row S38).

    Args:
        memory: the bank.
        w2c, intrinsics: the camera, pixels.
    """
    scale = jax.vmap(scene_scale)(memory.depth)
    same = same_cameras(memory.w2c, memory.intrinsics, w2c[None], intrinsics[None], scale)
    return memory.valid & same[:, 0]
