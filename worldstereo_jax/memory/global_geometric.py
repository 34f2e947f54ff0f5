"""Global-geometric memory: one bank of coloured points in the world frame.

It holds coarse geometry and steers the camera: rendered along a path it becomes the control
branch's input (row S26). A frame adds only what the bank does not show yet from that frame's
camera, so overlapping frames do not pile up, and the same frame twice adds nothing.
"""

import dataclasses
import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers, project
from worldstereo_jax.geometry.frame_check import check_cameras, check_frame
from worldstereo_jax.geometry.points import (
    CONTRACTION_MEDIANS,
    PointCloud,
    depth_to_points,
    normals_from_depth,
    unproject_image,
)
from worldstereo_jax.geometry.splat import (
    OFFICIAL_POINTS_PER_PIXEL,
    OFFICIAL_RADIUS_NDC,
    Render,
    render_path,
    render_points,
)
from worldstereo_jax.memory.surface import between_surfaces, inverse_depth

EDGES = ("surface", "official")
# Surfaces seen at more than 85 degrees are smears of a depth edge more often than surfaces.
_GRAZING_COSINE = 0.0872


@typing.no_type_check
@flax.struct.dataclass
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
    return dataclasses.replace(
        memory,
        positions=memory.positions.at[place].set(points, mode="drop"),
        colors=memory.colors.at[place].set(colors, mode="drop"),
        valid=memory.valid.at[place].set(True, mode="drop"),
        count=memory.count + stored,
        overflow=memory.overflow + jnp.sum(new, dtype=jnp.int32) - stored,
    )


def _surface_pixels(depth: Array, w2c: Array, intrinsics: Array) -> Array:
    """Pixels that lie on a surface, not between two, and are not seen edge-on."""
    points = depth_to_points(depth, w2c, intrinsics)
    normals = normals_from_depth(depth, w2c, intrinsics)
    to_camera = camera_centers(w2c)[None, None, :] - points
    distance = jnp.linalg.norm(to_camera, axis=-1)
    frontal = jnp.sum(normals * to_camera, axis=-1) > _GRAZING_COSINE * distance
    return frontal & ~between_surfaces(inverse_depth(depth))


def _frame_points(
    image: Array, depth: Array, w2c: Array, intrinsics: Array, edges: str, medians: float
) -> PointCloud:
    if edges not in EDGES:
        raise InputError(f"edges must be one of {', '.join(EDGES)}, got {edges!r}")
    if edges == "official":
        return unproject_image(image, depth, w2c, intrinsics, medians=medians)
    return unproject_image(
        image,
        depth,
        w2c,
        intrinsics,
        valid=_surface_pixels(depth, w2c, intrinsics),
        invalid_depth="excluded",
        medians=medians,
        edge_threshold=0.0,
    )


@functools.partial(
    jax.jit, static_argnames=("radius_ndc", "edges", "medians", "min_cover", "depth_tolerance")
)
def update_global_memory(
    memory: GlobalGeometricMemory,
    image: Float[Array | ndarray, "h w 3"],
    depth: Float[Array | ndarray, "h w"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
    *,
    radius_ndc: float = OFFICIAL_RADIUS_NDC,
    edges: str = "surface",
    medians: float = CONTRACTION_MEDIANS,
    min_cover: float = 0.8,
    depth_tolerance: float = 0.05,
) -> GlobalGeometricMemory:
    """Add what a frame shows and the bank does not.

    The frame is unprojected, its depth edges and invalid pixels dropped. Of the rest a pixel is
    stored where the bank's own render of this view has a hole, covers it thinly, or shows only
    what lies behind it (a wall, say, through the side of a box that was never seen). An empty
    bank renders nothing but holes and so takes them all; the same frame again adds nothing,
    because every stored pixel covers itself. Runs inside jit and lax.scan; no host round trip.

    Args:
        memory: the bank; may be donated by the caller's jit.
        image: the frame, [-1, 1].
        depth: camera z in world units, 0 = invalid.
        w2c: world-to-camera, OpenCV axes.
        intrinsics: in pixels of this frame.
        radius_ndc: disc radius of the bank's render, static. Discs under a pixel leave seams in a
            moved view, which count as new: give ``splat.pixel_radius(height, width, 1.2)`` or so
            for small images.
        edges: which pixels are dropped as depth edges, static. "surface" (default): those that
            hang between two surfaces or are seen at more than 85 degrees. "official": the
            gradient rule of ``points.unproject_image`` with its quirk, made for images of 480
            rows or more; on small ones it drops whole floors.
        medians: depth beyond this many medians is contracted, static; see
            ``points.contract_depth``.
        min_cover: bank alpha below which a pixel counts as thinly covered, in [0, 1], static; 0
            stores at holes only.
        depth_tolerance: the bank shows what lies behind when its depth exceeds the frame's by
            more than this share, static; ``math.inf`` turns this off.

    Raises:
        InputError: when edges is none of the two names, an array has another shape, or does not
            hold floats.
    """
    check_frame(image, depth, w2c, intrinsics)
    image, depth = jnp.asarray(image, jnp.float32), jnp.asarray(depth, jnp.float32)
    w2c, intrinsics = jnp.asarray(w2c, jnp.float32), jnp.asarray(intrinsics, jnp.float32)
    height, width = depth.shape
    cloud = _frame_points(image, depth, w2c, intrinsics, edges, medians)
    # Colour 1 everywhere composites to the alpha itself. What is new is a choice: no derivative.
    seen = render_points(
        jax.lax.stop_gradient(memory.positions),
        jnp.ones((memory.capacity, 1), jnp.float32),
        memory.valid,
        *jax.lax.stop_gradient((w2c, intrinsics)),
        height=height,
        width=width,
        radius_ndc=radius_ndc,
    )
    _, own_depth = project(cloud.points, w2c, intrinsics)
    behind = seen.depth.ravel() > own_depth * (1.0 + depth_tolerance)
    uncovered = (seen.mask.ravel() > 0.5) | (seen.image.ravel() < min_cover)
    return insert_points(memory, cloud.points, cloud.colors, cloud.valid & (uncovered | behind))


def render_global_memory(
    memory: GlobalGeometricMemory,
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    *,
    height: int,
    width: int,
    radius_ndc: float = OFFICIAL_RADIUS_NDC,
    points_per_pixel: int = OFFICIAL_POINTS_PER_PIXEL,
) -> Render:
    """The bank as seen along a path; semantics and arguments of ``splat.render_path``.

    Returns:
        Render with image [f, height, width, 3], mask (1 = hole) and depth [f, height, width].

    Raises:
        InputError: when the cameras have another shape, or do not hold floats.
    """
    check_cameras(w2c, intrinsics, leading=("f",))
    return render_path(
        memory.positions,
        memory.colors,
        memory.valid,
        jnp.asarray(w2c, jnp.float32),
        jnp.asarray(intrinsics, jnp.float32),
        height=height,
        width=width,
        radius_ndc=radius_ndc,
        points_per_pixel=points_per_pixel,
    )
