"""Retrieval of stored views by the surface they really show along a path (row S26).

Unlike the overlap of frustum boxes, this knows about occlusion and distance: stored surface points
are z-buffered into coarse cells of every target frame, a view earns a cell by showing the cell's
front surface, the more the finer it resolves it, and views are chosen greedily for what they add.
"""

import typing

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.geometry.cameras import pixel_grid, project, unproject
from worldstereo_jax.geometry.frame_check import check_cameras
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory


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
        0 where a view does not show the cell, else its resolution there over the target's, at
        most 1.
    """
    check_cameras(w2c, intrinsics, leading=("f",))
    views, height, width = memory.depth.shape
    rows, columns = -(-height // cell), -(-width // cell)
    grid = pixel_grid(height, width)[stride // 2 :: stride, stride // 2 :: stride]
    depth = memory.depth[:, stride // 2 :: stride, stride // 2 :: stride]
    points = jax.vmap(unproject, in_axes=(None, 0, 0, 0))(
        grid, depth, memory.w2c, memory.intrinsics
    ).reshape(-1, 3)
    usable = ((depth > 0) & memory.valid[:, None, None]).reshape(-1)
    view = jnp.repeat(jnp.arange(views), depth.shape[1] * depth.shape[2])
    scale = (memory.intrinsics[:, 0, 0][:, None, None] / jnp.where(depth > 0, depth, 1.0)).ravel()

    def one_frame(camera: tuple[Array, Array]) -> Array:
        frame_w2c, frame_intrinsics = camera
        pixels, z = project(points, frame_w2c, frame_intrinsics)
        inside = usable & (z > 0) & (pixels >= 0).all(-1)
        inside &= (pixels[:, 0] < width) & (pixels[:, 1] < height)
        place = jnp.where(inside[:, None], pixels, 0.0).astype(jnp.int32) // cell
        place = place[:, 1] * columns + place[:, 0]
        z = jnp.where(inside, z, jnp.inf)
        front = jnp.full((rows * columns,), jnp.inf).at[place].min(z)
        is_front = inside & (z <= front[place] * (1 + tolerance))
        fineness = jnp.minimum(scale * jnp.where(inside, z, 1.0) / frame_intrinsics[0, 0], 1.0)
        table = jnp.zeros((views, rows * columns))
        return table.at[view, place].max(jnp.where(is_front, fineness, 0.0))

    return jax.lax.map(one_frame, (w2c, intrinsics))


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
        bonus = jnp.zeros(stored.shape).at[0].set(2.0 * shown[0].size)
    else:
        bonus = jnp.zeros(stored.shape)

    def choose(state: tuple[Array, Array], _: None):
        best, taken = state
        gain = jnp.maximum(shown - best[None], 0.0).sum((1, 2)) + bonus
        gain = jnp.where(taken | ~stored, -1.0, gain)
        view = jnp.argmax(gain)
        found = gain[view] > 0
        best = jnp.where(found, jnp.maximum(best, shown[view]), best)
        return (best, taken.at[view].set(taken[view] | found)), (view.astype(jnp.int32), found)

    start = (jnp.zeros(shown.shape[1:]), jnp.zeros(shown.shape[0], bool))
    _, (index, valid) = jax.lax.scan(choose, start, None, length=count)
    frame = jnp.argmax(shown[index].sum(-1), axis=-1).astype(jnp.int32)
    # A place that holds no choice repeats the best one, so that what is read there is harmless.
    return Retrieved(index=jnp.where(valid, index, index[0]), valid=valid, frame=frame)
