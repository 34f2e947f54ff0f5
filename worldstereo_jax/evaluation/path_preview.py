"""What the memories already know along a camera path, before a clip is made of it.

Both memories are drawn from every camera of the path, nearer surfaces before farther ones, so that
what counts as known is visible and unoccluded. Every pixel with a surface is then asked which
stored views show that surface, and from how far. Whether the path runs through surfaces is found in
space, from the entries, since no picture shows it.

Large memories are previewed at a fraction of their size: points keep their radius, so shares mean
the same.
"""

import dataclasses
import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Bool, Float, Int, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.path_clearance import PathClearance, path_clearance
from worldstereo_jax.evaluation.view_distance import nearest_view
from worldstereo_jax.geometry.cameras import camera_centers, resize_intrinsics, strided_intrinsics
from worldstereo_jax.geometry.splat import (
    OFFICIAL_RADIUS_NDC,
    pixel_radius,
    render_points,
    solid_image,
)
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_appearance import appearance_change
from worldstereo_jax.memory.entry_points import entry_colors
from worldstereo_jax.memory.entry_warp import warp_entries
from worldstereo_jax.memory.global_geometric import GlobalGeometricMemory
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory
from worldstereo_jax.sampling.world import Cameras, WorldMemory

_Bank = typing.TypeVar("_Bank")

MOST_PIXELS = 32_768
"""Pixels of a previewed frame at most; frames of larger memories are halved until they fit."""


class PathPreview(typing.NamedTuple):
    """What both memories show from each of f cameras, at h x w pixels; colours in [-1, 1].

    points [f, h, w, 3], points_seen [f, h, w]: the global memory, 0 where it shows nothing.
    entries [f, h, w, 3], entries_seen [f, h, w]: the surface entries, likewise. behind [f, h, w]:
    the entry there is seen from its back. views_seen [f, h, w]: a stored view shows this side of
    the surface.
    angle [f, h, w]: radians at that surface between the rays to the camera and to the nearest such
    view; infinite where there is none. distance [f, h, w]: between those cameras, world units,
    likewise. view [f, h, w]: number of the view at that angle, -1 likewise.
    clearance: of the path from the surfaces.
    """

    points: Float[ndarray, "f h w 3"]
    points_seen: Bool[ndarray, "f h w"]
    entries: Float[ndarray, "f h w 3"]
    entries_seen: Bool[ndarray, "f h w"]
    behind: Bool[ndarray, "f h w"]
    views_seen: Bool[ndarray, "f h w"]
    angle: Float[ndarray, "f h w"]
    distance: Float[ndarray, "f h w"]
    view: Int[ndarray, "f h w"]
    clearance: PathClearance


class FrameFigures(typing.NamedTuple):
    """The figures of one frame.

    points, entries, views, known: shares of its pixels, 0 to 1, that the global memory, the surface
    entries, a stored view, or either memory shows. behind: share that shows entries from their
    back. angle: median over the pixels that a view shows, degrees; distance: likewise, world units;
    NaN where there are none. view: the one that is nearest for most pixels, -1 for none. through:
    the way from the frame before runs through a surface. nearest: distance of the camera from the
    nearest surface, world units, infinite where there is none.
    """

    points: float
    entries: float
    views: float
    known: float
    behind: float
    angle: float
    distance: float
    view: int
    through: bool
    nearest: float


def preview_path(
    memory: WorldMemory, cameras: Cameras, *, on_frame: Callable[[int], None] | None = None
) -> PathPreview:
    """What the memories know along a path.

    Frames are drawn one after the other by one program, whatever the length of the path.

    Args:
        memory: of any size, small model's or official; at least one view must be stored.
        cameras: the path; intrinsics in pixels of the memory's views.
        on_frame: told the number of each frame once it is done.

    Raises:
        InputError: when no view is stored.
    """
    height, width = memory.stereo.images.shape[1:3]
    stride = preview_stride(height, width)
    size = height // stride, width // stride
    views = previewed_views(memory.stereo, stride)
    intrinsics = resize_intrinsics(cameras.intrinsics, (height, width), size)
    # As both kinds of rollouts draw them: the official radius, or a pixel where that is less.
    official = OFFICIAL_RADIUS_NDC * min(height, width) / 2
    radius = pixel_radius(height, width, max(1.0, official))
    points = _held_slots(memory.points, int(memory.points.count))
    entries = _held_slots(memory.entries, int(memory.entries.count))
    frames = []
    for number, camera in enumerate(zip(cameras.w2c, intrinsics, strict=True)):
        frame = _preview_frame(points, views, entries, *camera, size=size, radius_ndc=radius)
        frames.append(jax.tree.map(np.asarray, frame))
        if on_frame is not None:
            on_frame(number)
    stacked = [np.stack(field) for field in zip(*frames, strict=True)]
    centres = np.asarray(camera_centers(cameras.w2c))
    return PathPreview(*stacked, clearance=path_clearance(entries, centres))


def frame_figures(preview: PathPreview) -> list[FrameFigures]:
    """The figures of each frame of a preview."""
    found = []
    for i, seen in enumerate(preview.views_seen):
        asked = seen.any()
        found.append(
            FrameFigures(
                points=float(preview.points_seen[i].mean()),
                entries=float(preview.entries_seen[i].mean()),
                views=float(seen.mean()),
                known=float((preview.points_seen[i] | preview.entries_seen[i]).mean()),
                behind=float(preview.behind[i].mean()),
                angle=float(np.degrees(np.median(preview.angle[i][seen]))) if asked else np.nan,
                distance=float(np.median(preview.distance[i][seen])) if asked else np.nan,
                view=int(np.bincount(preview.view[i][seen]).argmax()) if asked else -1,
                through=bool(preview.clearance.through[i]),
                nearest=float(preview.clearance.nearest[i]),
            )
        )
    return found


def preview_stride(height: int, width: int) -> int:
    """How many pixels of a memory's views, along each axis, become one of the preview.

    A power of two that divides both sides, the least that leaves `MOST_PIXELS`.
    """
    stride = 1
    while height * width > MOST_PIXELS * stride**2 and not (height | width) & (2 * stride - 1):
        stride *= 2
    return stride


def previewed_views(stereo: SpatialStereoMemory, stride: int) -> SpatialStereoMemory:
    """The stored views without empty slots, of every `stride`-th pixel along both axes.

    Raises:
        InputError: when there are none.
    """
    held = np.flatnonzero(np.asarray(stereo.valid))
    if len(held) == 0:
        raise InputError("the memory holds no views, so nothing can be told of a path")
    first = stride // 2

    def take(field: Array) -> Array:
        return jnp.asarray(np.asarray(field)[held, first::stride, first::stride])

    return dataclasses.replace(
        stereo,
        images=take(stereo.images),
        depth=take(stereo.depth),
        confidence=take(stereo.confidence),
        measured=take(stereo.measured),
        intrinsics=strided_intrinsics(jnp.asarray(np.asarray(stereo.intrinsics)[held]), stride),
        valid=jnp.ones(len(held), bool),
        w2c=jnp.asarray(np.asarray(stereo.w2c)[held]),
        source=jnp.asarray(np.asarray(stereo.source)[held]),
    )


def _held_slots(bank: _Bank, count: int) -> _Bank:
    """A bank without most of its room, which costs as much to draw as what it holds.

    A power of two is left, so that memories of like sizes share their compiled programs.
    """
    slots = 1 << max(count - 1, 0).bit_length()
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[:slots]) if jnp.ndim(x) else x, bank)


@functools.partial(jax.jit, static_argnames=("size", "radius_ndc"))
def _preview_frame(
    points: GlobalGeometricMemory,
    views: SpatialStereoMemory,
    entries: EntryBank,
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
    *,
    size: tuple[int, int],
    radius_ndc: float,
) -> tuple[Array, ...]:
    """The fields of `PathPreview`, but the last, of one frame."""
    height, width = size
    render = render_points(
        points.positions,
        points.colors,
        points.valid,
        w2c,
        intrinsics,
        height=height,
        width=width,
        radius_ndc=radius_ndc,
    )
    eye = camera_centers(w2c)
    # An entry is no wider than a pixel or so, and has one colour here.
    colours = jnp.clip(entry_colors(entries) + appearance_change(entries, eye), -1.0, 1.0)
    back = (entries.normal * (eye[None] - entries.position)).sum(-1, keepdims=True) < 0
    drawn = warp_entries(
        entries,
        w2c,
        intrinsics,
        height=height,
        width=width,
        values=jnp.concatenate([colours, back.astype(jnp.float32)], -1),
    )
    is_entry = drawn.mask < 0.5
    behind = is_entry & (drawn.features[..., 3] > 0.5)
    # Of a surface seen from its back the views show the other side.
    depth = jnp.where(behind, 0.0, jnp.where(is_entry, drawn.depth, render.depth))
    shown = nearest_view(
        depth[None], w2c[None], intrinsics[None], views.depth, views.w2c, views.intrinsics
    )
    return (
        solid_image(render),
        render.mask < 0.5,
        drawn.features[..., :3],
        is_entry,
        behind,
        shown.seen[0],
        shown.angle[0],
        shown.distance[0],
        shown.view[0],
    )
