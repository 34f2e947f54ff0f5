"""Depth maps to points: contraction of far depth, depth edges, unprojection, normals.

All arrays keep the image's shape; what is dropped is marked in a validity mask, so everything
runs inside jit. ``compact`` leaves jit for export.
"""

import typing

import flax.struct
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers, pixel_grid, unproject
from worldstereo_jax.geometry.smooth import length

# Depth beyond this many medians is contracted.
CONTRACTION_MEDIANS = 8.0
# Edge score below which a pixel is dropped, and how fast the score falls with the gradient.
EDGE_THRESHOLD = 0.35
_EDGE_SHARPNESS = 10.0
_DISPARITY_EPS = 1e-7
# A surface is continuous through a pixel when its disparity bends by less than this share.
_NORMAL_BEND = 0.02

INVALID_DEPTH = ("zero", "excluded", "as_given")


@typing.no_type_check
@flax.struct.dataclass
class PointCloud:
    """The points of one image, one per pixel in row-major order.

    points: [n, 3] world positions, in depth's unit; arbitrary where not valid.
    colors: [n, 3] in the image's range; arbitrary where not valid.
    valid:  [n] bool, True for the pixels that were kept.
    """

    points: Array
    colors: Array
    valid: Array


def valid_depth(depth: Float[Array | ndarray, "*shape"]) -> Bool[Array, "*shape"]:
    """Where a depth is known: finite and above zero."""
    depth = jnp.asarray(depth)
    return jnp.isfinite(depth) & (depth > 0)


def lower_median(values: Float[Array, "*shape"], where: Bool[Array, "*shape"]) -> Float[Array, ""]:
    """The lower of the two middle values among those selected; 0 when none is selected."""
    ordered = jnp.sort(jnp.where(where, values, jnp.inf).ravel())
    count = jnp.sum(where)
    return jnp.where(count > 0, ordered[jnp.maximum(count - 1, 0) // 2], 0.0)


def contract_depth(
    depth: Float[Array | ndarray, "h w"],
    *,
    where: Bool[Array | ndarray, "h w"] | None = None,
    medians: float = CONTRACTION_MEDIANS,
) -> Float[Array, "h w"]:
    """Draw far depth in: d -> 2 m - m^2 / d beyond m = ``medians`` x the lower median.

    Continuous with slope 1 at m, and never beyond 2 m.

    Args:
        depth: camera z in world units, 0 where unknown.
        where: pixels whose depth enters the median; those with depth above 0 when None.
        medians: how many medians stay as they are; ``math.inf`` contracts nothing.

    Returns:
        Contracted depth, same shape and unit.
    """
    depth = jnp.asarray(depth, jnp.float32)
    known = valid_depth(depth)
    if where is not None:
        known = known & jnp.asarray(where)
    limit = medians * lower_median(depth, known)
    contracted = (depth > limit) & (limit > 0) & jnp.isfinite(limit)
    # Where nothing is contracted the branch not taken must have a finite derivative too.
    safe, edge = jnp.where(contracted, depth, 1.0), jnp.where(contracted, limit, 1.0)
    return jnp.where(contracted, 2.0 * edge - edge * edge / safe, depth)


def _neighbour(values: Array, dy: int, dx: int) -> Array:
    """Value of the pixel at (row + dy, column + dx), the border replicated."""
    height, width = values.shape[:2]
    pad = [(1, 1), (1, 1)] + [(0, 0)] * (values.ndim - 2)
    padded = jnp.pad(values, pad, mode="edge")
    return padded[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]


def depth_edges(
    depth: Float[Array | ndarray, "h w"],
    *,
    where: Bool[Array | ndarray, "h w"] | None = None,
    threshold: float = EDGE_THRESHOLD,
) -> Bool[Array, "h w"]:
    """Pixels that do not lie on a depth edge.

    Kept where exp(-10 |g|) >= threshold, g the unnormalised 3x3 Sobel gradient of the disparity
    1 / (depth + 1e-7), scaled to [0, 1] over the image; borders are replicated.

    Args:
        depth: camera z, contracted, world units.
        where: pixels that take part. Others neither enter the scaling nor make an edge: a
            neighbour that takes no part counts as equal to the pixel itself. All when None.
        threshold: edge score below which a pixel is dropped.

    Returns:
        True for the pixels kept; pixels outside ``where`` are False.
    """
    depth = jnp.asarray(depth, jnp.float32)
    known = jnp.ones(depth.shape, bool) if where is None else jnp.asarray(where)
    disparity = 1.0 / (depth + _DISPARITY_EPS)
    low = jnp.min(jnp.where(known, disparity, jnp.inf))
    high = jnp.max(jnp.where(known, disparity, -jnp.inf))
    spread = high - low
    # A constant disparity has no edges; it must not divide by zero.
    scaled = (disparity - low) / jnp.where(spread > 0, spread, 1.0)
    scaled = jnp.where(known, scaled, 0.0)

    def near(dy: int, dx: int) -> Array:
        return jnp.where(_neighbour(known, dy, dx), _neighbour(scaled, dy, dx), scaled)

    across = (near(-1, 1) + 2.0 * near(0, 1) + near(1, 1)) - (
        near(-1, -1) + 2.0 * near(0, -1) + near(1, -1)
    )
    down = (near(1, -1) + 2.0 * near(1, 0) + near(1, 1)) - (
        near(-1, -1) + 2.0 * near(-1, 0) + near(-1, 1)
    )
    score = jnp.exp(-_EDGE_SHARPNESS * jnp.sqrt(across * across + down * down))
    return (score >= threshold) & known


def depth_to_points(
    depth: Float[Array | ndarray, "h w"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
) -> Float[Array, "h w 3"]:
    """World points of a depth map (camera z, world units), through pixel centres at +0.5."""
    depth = jnp.asarray(depth, jnp.float32)
    return unproject(pixel_grid(*depth.shape), depth, w2c, intrinsics)


def unproject_image(
    image: Float[Array | ndarray, "h w 3"],
    depth: Float[Array | ndarray, "h w"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
    *,
    valid: Bool[Array | ndarray, "h w"] | None = None,
    invalid_depth: str = "zero",
    medians: float = CONTRACTION_MEDIANS,
    edge_threshold: float = EDGE_THRESHOLD,
) -> PointCloud:
    """Points and colours of an image with depth; depth edges and invalid pixels are dropped.

    Far depth is contracted first (``contract_depth``), then edges are found
    (``depth_edges``), then the kept pixels are unprojected.

    Args:
        image: colours, kept as they are.
        depth: camera z in world units; not finite or not above 0 counts as invalid.
        w2c: world-to-camera, OpenCV axes.
        intrinsics: in pixels of this image.
        valid: further pixels to drop where False.
        invalid_depth: what invalid pixels do to the others. "zero" (the official caller): their
            depth is set to 0, whose disparity of 1e7 swamps the scaling, so real edges survive
            whenever any pixel is invalid. "excluded" (ours): they take no part. "as_given" (the
            official function alone): the depth there is used as it stands.
        medians: contraction starts at this many medians.
        edge_threshold: see ``depth_edges``; 0 keeps every edge.

    Returns:
        PointCloud of height x width entries in row-major order.

    Raises:
        InputError: when invalid_depth is none of the three names.
    """
    if invalid_depth not in INVALID_DEPTH:
        names = ", ".join(INVALID_DEPTH)
        raise InputError(f"invalid_depth must be one of {names}, got {invalid_depth!r}")
    depth = jnp.asarray(depth, jnp.float32)
    known = valid_depth(depth)
    if valid is not None:
        known = known & jnp.asarray(valid)
    # Depth that is no number cannot be used as it stands either.
    depth = jnp.where(valid_depth(depth), depth, 0.0)
    if invalid_depth == "zero":
        depth = jnp.where(known, depth, 0.0)
    taking_part = known if invalid_depth == "excluded" else None
    depth = contract_depth(depth, where=taking_part, medians=medians)
    keep = depth_edges(depth, where=taking_part, threshold=edge_threshold) & known
    points = depth_to_points(depth, w2c, intrinsics)
    return PointCloud(
        points=points.reshape(-1, 3),
        colors=jnp.asarray(image, jnp.float32).reshape(-1, 3),
        valid=keep.ravel(),
    )


def compact(cloud: PointCloud) -> tuple[Float[ndarray, "n 3"], Float[ndarray, "n 3"]]:
    """Positions and colours of the valid points only, in order, as numpy arrays for export."""
    keep = np.asarray(cloud.valid)
    return np.asarray(cloud.points)[keep], np.asarray(cloud.colors)[keep]


def normals_from_depth(
    depth: Float[Array | ndarray, "h w"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
) -> Float[Array, "h w 3"]:
    """Unit surface normals in the world frame, facing the camera that saw them (row S4).

    The cross product of the surface's tangents along the two image axes. Exact on planes, up to
    their border: differences are taken on the pixel's own side of a depth edge.

    Args:
        depth: camera z in world units, 0 where unknown.
        w2c: world-to-camera, OpenCV axes.
        intrinsics: in pixels.

    Returns:
        Normals; 0 where depth is unknown or a pixel has no known neighbour along an axis.
    """
    depth = jnp.asarray(depth, jnp.float32)
    known = valid_depth(depth)
    depth = jnp.where(known, depth, 0.0)
    points = depth_to_points(depth, w2c, intrinsics)
    disparity = jnp.where(known, 1.0 / jnp.where(known, depth, 1.0), 0.0)
    across, has_across = _tangent(points, disparity, known, 0, 1)
    down, has_down = _tangent(points, disparity, known, 1, 0)
    normal = jnp.cross(across, down)
    size = length(normal, keepdims=True)
    defined = (has_across & has_down & known)[..., None] & (size > 0)
    normal = jnp.where(defined, normal / jnp.where(size > 0, size, 1.0), 0.0)
    to_camera = camera_centers(w2c)[None, None, :] - points
    facing = jnp.sum(normal * to_camera, axis=-1, keepdims=True)
    return jnp.where(facing < 0, -normal, normal)


def _tangent(
    points: Array, disparity: Array, known: Array, dy: int, dx: int
) -> tuple[Array, Array]:
    """Difference of points along one image axis, and whether there is one.

    Disparity is linear in the pixel over any plane, so a bend of it tells two surfaces apart
    whatever their slant. Central where it does not bend, else from the side that changes less.
    """
    inner = jnp.pad(known, 1)
    height, width = known.shape
    has_ahead = inner[1 + dy : 1 + dy + height, 1 + dx : 1 + dx + width]
    has_behind = inner[1 - dy : 1 - dy + height, 1 - dx : 1 - dx + width]
    ahead = _neighbour(points, dy, dx) - points
    behind = points - _neighbour(points, -dy, -dx)
    rise = jnp.where(has_ahead, _neighbour(disparity, dy, dx) - disparity, jnp.inf)
    fall = jnp.where(has_behind, disparity - _neighbour(disparity, -dy, -dx), jnp.inf)
    both = has_ahead & has_behind
    smooth = both & (jnp.abs(rise - fall) <= _NORMAL_BEND * disparity)
    one_side = jnp.where((jnp.abs(rise) <= jnp.abs(fall))[..., None], ahead, behind)
    return jnp.where(smooth[..., None], ahead + behind, one_side), has_ahead | has_behind
