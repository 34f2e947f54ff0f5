"""Global-geometric memory: one bank of coloured points in the world frame.

It holds coarse geometry and steers the camera: rendered along a path it becomes the control
branch's input (row S26). A frame adds only what the bank does not show yet from that frame's
camera, so overlapping frames do not pile up, and the same frame twice adds nothing.
"""

import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.points import (
    CONTRACTION_MEDIANS,
    EDGE_THRESHOLD,
    InvalidDepth,
    PointCloud,
    unproject_image,
)
from worldstereo_jax.geometry.splat import (
    OFFICIAL_POINTS_PER_PIXEL,
    OFFICIAL_RADIUS_NDC,
    Render,
    render_path,
    render_points,
)


@flax.struct.dataclass
@typing.no_type_check
class GlobalGeometricMemory:
    """A bank of at most n points; entries below ``count`` are held, in order of arrival.

    positions: [n, 3] world positions, metres (or the scene's unit), float32; 0 where not valid.
    colors:    [n, 3] in [-1, 1], float32; 0 where not valid.
    valid:     [n] bool, True for points that are held.
    count:     [] int32, points ever stored; the next one goes to this place.
    overflow:  [] int32, points that found no room since the bank was made.
    """

    positions: Array
    colors: Array
    valid: Array
    count: Array
    overflow: Array

    @property
    def capacity(self) -> int:
        """Most points the bank can hold."""
        return self.positions.shape[0]


def init_global_memory(capacity: int) -> GlobalGeometricMemory:
    """An empty bank with room for ``capacity`` points.

    Raises:
        InputError: when capacity is not positive.
    """
    if capacity < 1:
        raise InputError(f"capacity of the global memory must be at least 1, got {capacity}")
    return GlobalGeometricMemory(
        positions=jnp.zeros((capacity, 3), jnp.float32),
        colors=jnp.zeros((capacity, 3), jnp.float32),
        valid=jnp.zeros((capacity,), bool),
        count=jnp.zeros((), jnp.int32),
        overflow=jnp.zeros((), jnp.int32),
    )


def insert_points(
    memory: GlobalGeometricMemory,
    points: Float[Array, "m 3"],
    colors: Float[Array, "m 3"],
    new: Bool[Array, " m"],
) -> GlobalGeometricMemory:
    """Append the points marked ``new``, in order, in one scatter; what finds no room is counted.

    Args:
        memory: the bank.
        points: world positions.
        colors: [-1, 1].
        new: which of them to store.
    """
    place = memory.count + jnp.cumsum(new, dtype=jnp.int32) - 1
    fits = new & (place < memory.capacity)
    # Out of range on purpose: the scatter drops those.
    place = jnp.where(fits, place, memory.capacity)
    stored = jnp.sum(fits, dtype=jnp.int32)
    return memory.replace(
        positions=memory.positions.at[place].set(points, mode="drop"),
        colors=memory.colors.at[place].set(colors, mode="drop"),
        valid=memory.valid.at[place].set(True, mode="drop"),
        count=memory.count + stored,
        overflow=memory.overflow + jnp.sum(new, dtype=jnp.int32) - stored,
    )


@functools.partial(
    jax.jit,
    static_argnames=("radius_ndc", "invalid_depth", "medians", "edge_threshold"),
)
def update_global_memory(
    memory: GlobalGeometricMemory,
    image: Float[Array, "h w 3"],
    depth: Float[Array, "h w"],
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
    *,
    valid: Bool[Array, "h w"] | None = None,
    radius_ndc: float = OFFICIAL_RADIUS_NDC,
    invalid_depth: InvalidDepth = "excluded",
    medians: float = CONTRACTION_MEDIANS,
    edge_threshold: float = EDGE_THRESHOLD,
) -> GlobalGeometricMemory:
    """Add what a frame shows and the bank does not.

    The frame is unprojected, its depth edges and invalid pixels dropped; of the rest, the pixels
    that are holes in the bank's own render of this view are stored. An empty bank renders
    nothing but holes and so takes them all. Runs inside jit and lax.scan; no host round trip.

    Args:
        memory: the bank; may be donated by the caller's jit.
        image: the frame, [-1, 1].
        depth: camera z in world units, 0 = invalid.
        w2c: world-to-camera, OpenCV axes.
        intrinsics: in pixels of this frame.
        valid: further pixels to leave out where False.
        radius_ndc: disc radius of the bank's render, static. Below half a pixel's diagonal a
            pixel's own point may miss its neighbours, and seams of a moved view count as new:
            give ``splat.pixel_radius(height, width, 1.0)`` or more for small images.
        invalid_depth: see ``points.unproject_image``, static.
        medians: see ``points.contract_depth``, static.
        edge_threshold: see ``points.depth_edges``, static.
    """
    height, width = depth.shape
    cloud = unproject_image(
        image,
        depth,
        w2c,
        intrinsics,
        valid=valid,
        invalid_depth=invalid_depth,
        medians=medians,
        edge_threshold=edge_threshold,
    )
    seen = render_points(
        memory.positions,
        memory.colors,
        memory.valid,
        w2c,
        intrinsics,
        height=height,
        width=width,
        radius_ndc=radius_ndc,
        points_per_pixel=1,
    )
    new = cloud.valid & (seen.mask.ravel() > 0.5)
    return insert_points(memory, cloud.points, cloud.colors, new)


def render_global_memory(
    memory: GlobalGeometricMemory,
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
    *,
    height: int,
    width: int,
    radius_ndc: float = OFFICIAL_RADIUS_NDC,
    points_per_pixel: int = OFFICIAL_POINTS_PER_PIXEL,
) -> Render:
    """The bank as seen along a path; semantics and arguments of ``splat.render_path``.

    Returns:
        Render with image [f, height, width, 3], mask (1 = hole) and depth [f, height, width].
    """
    return render_path(
        memory.positions,
        memory.colors,
        memory.valid,
        w2c,
        intrinsics,
        height=height,
        width=width,
        radius_ndc=radius_ndc,
        points_per_pixel=points_per_pixel,
    )


def memory_points(memory: GlobalGeometricMemory) -> PointCloud:
    """The bank as a point cloud, for ``points.compact`` and export."""
    return PointCloud(points=memory.positions, colors=memory.colors, valid=memory.valid)
