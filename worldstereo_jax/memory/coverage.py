"""Retrieval of stored views by the surface they really show along a path (row S26).

Unlike the overlap of frustum boxes, this knows about occlusion and distance: stored surface points
are z-buffered into coarse cells of every target frame, a view earns a cell by showing the cell's
front surface, the more the finer it resolves it and the surer its depth is, and views are chosen
greedily for what they add. A point covers as many cells as it appears wide, or what is behind a
wall would show between the wall's points when a target comes close to it. Points that other views
refute are left out here as in the warp: they would hide what the target sees, and earn their view
what it does not show.
"""

import functools
import itertools
import typing

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.geometry.frame_check import check_cameras
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory
from worldstereo_jax.memory.surface import pixel_transfer
from worldstereo_jax.memory.transfer import (
    carry,
    determinant,
    grid_parts,
    stretches,
    surface_jacobian,
)
from worldstereo_jax.memory.visibility import DepthViews, refuted_points, thin_surfaces

_LEVELS = 5  # points up to 16 cells wide; a surface nearer than that shows what is behind it
_SAME = 0.02  # share of depth within which two views show one surface, as in `warping.warp_views`

# What a view shows with depth that it read from the memory counts this much: of equals the one that
# measured comes first, since only such views vote against each other's errors.
_READ = 0.9


class Retrieved(typing.NamedTuple):
    """Chosen views, best first.

    index [k]: int32 places in the bank. valid [k]: False where no further view adds anything (then
    index repeats a stored view). frame [k]: int32, the target frame that sees most of the view.
    """

    index: Int[Array, "k"]
    valid: Bool[Array, "k"]
    frame: Int[Array, "k"]


def view_coverage(
    memory: SpatialStereoMemory,
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
    *,
    cell: int = 8,
    stride: int = 4,
    tolerance: float = 0.05,
) -> Float[Array, "f v cells"]:
    """How well each stored view shows the front surface in each coarse cell of each target frame.

    Args:
        memory: the bank; targets have its image size.
        w2c: target cameras, world to camera.
        intrinsics: target intrinsics in pixels.
        cell: side of a cell in pixels.
        stride: every `stride`-th stored pixel is projected, along both axes.
        tolerance: relative depth behind the front surface that still counts as that surface.

    Returns:
        0 where a view does not show the cell, or only the back of its surface, or what other views
        refute as they do for the warp (row S12); else the view's resolution there over the
        target's, at most 1, times its confidence, a little less where its depth was read from the
        memory. Resolution is that along the direction in which it is least: of what is seen at a
        slant, along the slant.
    """
    check_cameras(w2c, intrinsics, leading=("f",))
    views, height, width = memory.depth.shape
    rows, columns = -(-height // cell), -(-width // cell)
    told = depth_views(memory)
    refuted = refuted_points(told, tolerance=_SAME, start=stride // 2, step=stride)
    thin = (..., slice(stride // 2, None, stride), slice(stride // 2, None, stride))
    grid = [part[thin] for part in grid_parts(height, width)]
    inverse, *slope = thin_surfaces(told, start=stride // 2, step=stride)
    confidence = memory.confidence[thin] * jnp.where(memory.measured[thin], 1.0, _READ)
    usable = (inverse > 0) & (confidence > 0) & ~refuted
    view = jnp.broadcast_to(jnp.arange(views)[:, None, None], inverse.shape)

    # The levels' cells, one level after the other.
    shapes = [(-(-rows // 2**i), -(-columns // 2**i)) for i in range(_LEVELS)]
    ends = list(itertools.accumulate(a * b for a, b in shapes))
    cells, starts = ends[-1], jnp.asarray([0, *ends[:-1]], jnp.int32)
    widths = jnp.asarray([b for _, b in shapes], jnp.int32)

    def layers(table: Float[Array, "*v n"]) -> list[Float[Array, "*v rows columns"]]:
        """Every level's cells, each value for all the cells of the finest level it stands for."""
        parts = jnp.split(table, ends[:-1], axis=-1)
        wide = [
            jnp.repeat(jnp.repeat(part.reshape(*table.shape[:-1], *shape), 2**i, -2), 2**i, -1)
            for i, (part, shape) in enumerate(zip(parts, shapes, strict=True))
        ]
        return [part[..., :rows, :columns] for part in wide]

    def one_frame(camera: tuple[Array, Array]) -> Array:
        matrix, vector = jax.vmap(pixel_transfer, in_axes=(0, 0, None, None))(
            memory.w2c, memory.intrinsics, *camera
        )
        q = carry(matrix, vector, grid, inverse)
        seen = usable & (q[2] > 0)
        qz = jnp.where(seen, q[2], 1.0)
        x, y = q[0] / qz, q[1] / qz
        inside = seen & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        found = jnp.where(inside, inverse / qz, 0.0)
        jacobian = surface_jacobian(matrix, vector, slope, (x, y), qz)
        # Target pixels per pixel of the view, along the direction in which they are most.
        largest = stretches(jacobian)[1]
        shown = confidence / jnp.maximum(largest, 1.0)
        level = jnp.ceil(jnp.log2(jnp.maximum(largest * (stride / cell), 1.0)))
        level = jnp.clip(level, 0, _LEVELS - 1).astype(jnp.int32)
        column, row = (jnp.where(inside, a, 0.0).astype(jnp.int32) // cell >> level for a in (x, y))
        place = starts[level] + row * widths[level] + column
        front = jnp.zeros((cells,), jnp.float32).at[place].max(found)
        is_front = inside & (found * (1 + tolerance) >= front[place]) & (determinant(jacobian) > 0)
        table = jnp.zeros((views, cells), jnp.float32)
        table = table.at[view, place].max(jnp.where(is_front, shown, 0.0))
        fronts, tables = layers(front), layers(table)
        nearest = functools.reduce(jnp.maximum, fronts)
        earned = [
            jnp.where((front * (1 + tolerance) >= nearest)[None], table, 0.0)
            for front, table in zip(fronts, tables, strict=True)
        ]
        return functools.reduce(jnp.maximum, earned).reshape(views, -1)

    return jax.lax.map(one_frame, (w2c, intrinsics))


def depth_views(memory: SpatialStereoMemory) -> DepthViews:
    """What the bank's views tell of depth."""
    return DepthViews(
        depth=memory.depth,
        confidence=memory.confidence,
        measured=memory.measured,
        w2c=memory.w2c,
        intrinsics=memory.intrinsics,
        valid=memory.valid,
    )


def refuted_pixels(memory: SpatialStereoMemory, index: Int[Array, "k"]) -> Bool[Array, "k h w"]:
    """Pixels of some views whose depth the bank's views refute (row S12).

    For who reads a few views only: among those a wrong one may have nobody against it, or only
    copies of itself about it.

    Args:
        memory: the bank.
        index: the views' places in it.
    """
    return refuted_points(depth_views(memory), tolerance=_SAME, asked=index)


def retrieve_by_coverage(
    memory: SpatialStereoMemory,
    w2c: Float[Array, "f 4 4"],
    intrinsics: Float[Array, "f 3 3"],
    *,
    count: int,
    protect_first: bool = False,
) -> Retrieved:
    """The `count` stored views that together show most of what a path sees, chosen greedily.

    Each choice adds the view with the greatest gain over what the chosen ones show already, which
    is within 1 - 1/e of the best set (Nemhauser et al. 1978).

    Args:
        memory: the bank.
        w2c: target cameras, world to camera.
        intrinsics: target intrinsics in pixels.
        count: number of views to choose.
        protect_first: choose the first stored view first, whatever it adds (row S30: the input
            image is protected).
    """
    shown = jnp.moveaxis(view_coverage(memory, w2c, intrinsics), 1, 0)

    stored = memory.valid
    if protect_first:
        # Nothing can be shown better than fully, so this bonus decides the first choice.
        bonus = jnp.zeros(stored.shape, jnp.float32).at[0].set(2.0 * shown[0].size)
    else:
        bonus = jnp.zeros(stored.shape, jnp.float32)

    def choose(state: tuple[Array, Array], _: None):
        best, taken = state
        gain = jnp.maximum(shown - best[None], 0.0).sum((1, 2)) + bonus
        gain = jnp.where(taken | ~stored, -1.0, gain)
        view = jnp.argmax(gain)
        found = gain[view] > 0
        best = jnp.where(found, jnp.maximum(best, shown[view]), best)
        return (best, taken.at[view].set(taken[view] | found)), (view.astype(jnp.int32), found)

    start = (jnp.zeros(shown.shape[1:], jnp.float32), jnp.zeros(shown.shape[0], bool))
    _, (index, valid) = jax.lax.scan(choose, start, None, length=count)
    frame = jnp.argmax(shown[index].sum(-1), axis=-1).astype(jnp.int32)
    # A place that holds no choice repeats the best one, so that what is read there is harmless.
    return Retrieved(index=jnp.where(valid, index, index[0]), valid=valid, frame=frame)
