"""A frame as the entry bank reads it: feature maps, depth, camera, and the surface they show.

Any share of the depth may be missing (row S36): what is 0, infinite or no number is no surface, and
says nothing for or against an entry.
"""

import typing

import flax.struct
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int, ndarray
from worldstereo_jax.geometry.cameras import camera_centers, project, unproject
from worldstereo_jax.geometry.frame_check import check_frame, check_shape
from worldstereo_jax.geometry.points import normals_from_depth
from worldstereo_jax.geometry.smooth import length
from worldstereo_jax.memory.entry_features import PYRAMID, Level, feature_pyramid, pyramid_widths
from worldstereo_jax.memory.spatial_stereo import depth_confidence
from worldstereo_jax.memory.surface import (
    beside_jump,
    between_surfaces,
    inverse_depth,
    nearest_around,
    tangent_planes,
)

_SIDE = 8  # pixels along blocks whose mean normal tells which side of a surface is seen


@typing.no_type_check
@flax.struct.dataclass
class EntryFrame:
    """One frame to be put into an entry bank; with a leading axis on every field, several.

    features: tuple over levels of maps [lh, lw, c] that each cover the whole picture. depth [h, w]:
    camera z, world units, 0 = unknown. confidence [h, w]: of the depth, 0 .. 1. measured [h, w]:
    False where the depth was read from the memory itself. w2c [4, 4], intrinsics [3, 3]: pixels of
    the depth map. view []: int32, number of the view, of which no two frames of one bank have the
    same. source []: int32, number of its clip. colours: static, how many channels of each level are
    colours; learned ones follow them.
    """

    features: tuple[Float[Array, "lh lw c"], ...]
    depth: Float[Array, "h w"]
    confidence: Float[Array, "h w"]
    measured: Bool[Array, "h w"]
    w2c: Float[Array, "4 4"]
    intrinsics: Float[Array, "3 3"]
    view: Int[Array, ""]
    source: Int[Array, ""]
    colours: tuple[int, ...] = flax.struct.field(pytree_node=False)


def make_entry_frame(
    image: Float[Array | ndarray, "h w 3"],
    depth: Float[Array | ndarray, "h w"],
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
    *,
    view: Int[Array, ""] | int,
    source: Int[Array, ""] | int = 0,
    confidence: Float[Array, "h w"] | None = None,
    inherited: Float[Array, "h w"] | None = None,
    learned: Float[Array, "lh lw c"] | None = None,
    levels: tuple[Level, ...] = PYRAMID,
) -> EntryFrame:
    """Read the features of a frame (row S9) and put it together with its depth and camera.

    Args:
        image: in [-1, 1].
        depth: camera z, world units, 0 = unknown.
        w2c: world to camera.
        intrinsics: pixels of the depth map.
        view: number of the view.
        source: number of the clip.
        confidence: of the depth, 0 .. 1; from `depth_confidence` when not given.
        inherited: where depth was read from the memory, the confidence of what it was read from,
            above 0; the depth has no more. 0 where it was measured or estimated on its own, as all
            of it was when not given.
        learned: a learned map over the picture at any resolution (row S2).
        levels: of the pyramid.

    Raises:
        InputError: when an array has another shape, or does not hold floats.
    """
    check_frame(image, depth, w2c, intrinsics)
    # Banks hold float32: wider or narrower input must not change what a scan carries.
    image, depth, w2c, intrinsics = (
        jnp.asarray(value, jnp.float32) for value in (image, depth, w2c, intrinsics)
    )
    if confidence is None:
        confidence = depth_confidence(depth, w2c, intrinsics)
    check_shape("confidence", confidence, depth.shape)
    confidence = jnp.asarray(confidence, jnp.float32)
    measured = jnp.ones(depth.shape, bool)
    if inherited is not None:
        check_shape("inherited", inherited, depth.shape)
        inherited = jnp.asarray(inherited, jnp.float32)
        # What has no confidence says nothing, wherever it comes from.
        measured = (inherited <= 0) | (confidence <= 0)
        confidence = jnp.where(measured, confidence, jnp.minimum(confidence, inherited))
    return EntryFrame(
        features=feature_pyramid(image, learned, levels=levels),
        depth=depth,
        confidence=confidence,
        measured=measured,
        w2c=w2c,
        intrinsics=intrinsics,
        view=jnp.asarray(view, jnp.int32),
        source=jnp.asarray(source, jnp.int32),
        colours=pyramid_widths(levels),
    )


@typing.no_type_check
@flax.struct.dataclass
class FrameSurface:
    """What the look-ups read of a frame's depth.

    inverse [h, w]: inverse depth, 0 where no surface is known. confidence [h, w]: 0 there too.
    table [h * w, 10]: side by side the tangent plane (3 numbers, see `surface`), the confidence,
    the largest inverse depth around, the unit normal, 1 beside a jump of depth, else 0, and 1 where
    the depth was measured, 0 where it was read from the memory. sides [h / 8, w / 8, 3], rounded
    up: mean normals of blocks of pixels, which noise turns less, unit; 0 = unknown. w2c,
    intrinsics, and centre [3], the camera's place. focal []: geometric mean of both focal lengths,
    pixels.
    """

    inverse: Float[Array, "h w"]
    confidence: Float[Array, "h w"]
    table: Float[Array, "p 10"]
    sides: Float[Array, "bh bw 3"]
    w2c: Float[Array, "4 4"]
    intrinsics: Float[Array, "3 3"]
    centre: Float[Array, "3"]
    focal: Float[Array, ""]


@typing.no_type_check
@flax.struct.dataclass
class SurfaceSample:
    """The frame's surface where n points project; confidence 0 where none is known.

    pixel [n, 2], depth [n]: of the points themselves. inverse [n]: of the surface on their rays,
    at sub-pixel position. confidence [n]. nearest [n]: largest inverse depth around.
    normal [n, 3]: of the surface, side [n, 3]: mean of those around; 0 = unknown. edge [n]: 1
    beside a jump of depth, else 0. measured [n]: not read from the memory. inside [n]: in front of
    the camera, in the picture.
    """

    pixel: Float[Array, "n 2"]
    depth: Float[Array, "n"]
    inverse: Float[Array, "n"]
    confidence: Float[Array, "n"]
    nearest: Float[Array, "n"]
    normal: Float[Array, "n 3"]
    side: Float[Array, "n 3"]
    edge: Float[Array, "n"]
    measured: Bool[Array, "n"]
    inside: Bool[Array, "n"]

    @property
    def ratio(self) -> Float[Array, "n"]:
        """Depth of the point over depth of the surface: above 1 it lies behind; 0 = unknown."""
        return jnp.where(self.confidence > 0, self.depth * self.inverse, 0.0)


def frame_surface(frame: EntryFrame, *, jump: float = 0.02) -> FrameSurface:
    """Prepare a frame's depth for look-ups; pixels that hang between two surfaces are left out.

    `jump` is the share of depth by which a neighbour off the tangent plane makes an edge.
    """
    inverse = inverse_depth(frame.depth)
    keep = (inverse > 0) & (frame.confidence > 0) & ~between_surfaces(inverse)
    confidence = jnp.where(keep, frame.confidence, 0.0)
    tangent = tangent_planes(inverse)
    planes = jnp.where(keep[..., None], tangent, 0.0)
    normal = normals_from_depth(frame.depth, frame.w2c, frame.intrinsics)
    edge = beside_jump(inverse, tangent, tolerance=jump).astype(jnp.float32)
    parts = [planes, confidence[..., None], nearest_around(inverse)[..., None], normal]
    parts += [edge[..., None], frame.measured[..., None].astype(jnp.float32)]
    k = frame.intrinsics
    return FrameSurface(
        inverse=jnp.where(keep, inverse, 0.0),
        confidence=confidence,
        table=jnp.concatenate(parts, -1).reshape(-1, 10),
        sides=_block_means(normal),
        w2c=frame.w2c,
        intrinsics=k,
        centre=camera_centers(frame.w2c),
        focal=jnp.sqrt(jnp.abs(k[0, 0] * k[1, 1])),
    )


def _block_means(normal: Float[Array, "h w 3"]) -> Float[Array, "bh bw 3"]:
    height, width, _ = normal.shape
    whole = jnp.pad(normal, ((0, -height % _SIDE), (0, -width % _SIDE), (0, 0)))
    rows, columns = whole.shape[0] // _SIDE, whole.shape[1] // _SIDE
    mean = whole.reshape(rows, _SIDE, columns, _SIDE, 3).sum((1, 3))
    size = length(mean, keepdims=True)
    return mean / jnp.where(size > 0, size, 1.0)


def sample_surface_at(surface: FrameSurface, points: Float[Array, "n 3"]) -> SurfaceSample:
    """Look the frame's surface up on the rays through world `points`."""
    height, width = surface.inverse.shape
    pixel, depth = project(points, surface.w2c, surface.intrinsics)
    x, y = pixel[:, 0], pixel[:, 1]
    inside = (depth > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    pixel = jnp.where(inside[:, None], pixel, 0.0)
    x, y = pixel[:, 0], pixel[:, 1]
    index = y.astype(jnp.int32) * width + x.astype(jnp.int32)
    found = surface.table.at[index].get(mode="clip")
    inverse = found[:, 0] * x + found[:, 1] * y + found[:, 2]
    known = inside & (found[:, 3] > 0) & (inverse > 0)
    return SurfaceSample(
        pixel=pixel,
        depth=jnp.where(inside, depth, 0.0),
        inverse=jnp.where(known, inverse, 0.0),
        confidence=jnp.where(known, found[:, 3], 0.0),
        nearest=jnp.where(inside, found[:, 4], 0.0),
        normal=found[:, 5:8],
        side=surface.sides[y.astype(jnp.int32) // _SIDE, x.astype(jnp.int32) // _SIDE],
        edge=jnp.where(known, found[:, 8], 0.0),
        measured=known & (found[:, 9] > 0),
        inside=inside,
    )


def surface_points(surface: FrameSurface, sample: SurfaceSample) -> Float[Array, "n 3"]:
    """World points where the sampled rays meet the surface; arbitrary where confidence is 0."""
    known = sample.inverse > 0
    depth = jnp.where(known, 1.0 / jnp.where(known, sample.inverse, 1.0), 0.0)
    return unproject(sample.pixel, depth, surface.w2c, surface.intrinsics)
