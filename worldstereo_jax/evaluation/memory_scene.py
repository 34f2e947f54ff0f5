"""What an interactive viewer shows of the memories, as plain arrays: no viewer is known here.

Poses are given as viewers take them: camera to world, OpenCV axes, a quaternion w, x, y, z and a
position in world units. Colours are 0..255.
"""

import typing

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from PIL import Image

from worldstereo_jax.array_types import Array, Float, UInt8, ndarray
from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.errors import InputError, unknown_name
from worldstereo_jax.geometry.cameras import camera_centers, invert_rigid
from worldstereo_jax.geometry.rotations import matrix_from_quaternion, quaternion_from_matrix
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_points import entry_colors
from worldstereo_jax.memory.entry_views import count_views
from worldstereo_jax.memory.global_geometric import GlobalGeometricMemory
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory, scene_scale

ENTRY_COLOURS = ("colour", "normal", "confidence", "views", "level", "size")
"""What entries can be coloured by. level: levels of the pyramid that are filled, dark for few.
size: of a pixel of the sharpest view on the surface, dark where it is fine."""

MOST_POINTS = 400_000
"""Points that a browser draws smoothly; of more, evenly chosen ones are shown."""

_SCALE = "viridis"
_MANY_VIEWS = 8  # from which on the colour stays
_SIDE = 320  # pixels of a picture's longer side, as it is sent


class Pose(typing.NamedTuple):
    """A camera in the world: wxyz [4], unit quaternion of camera to world; position [3]."""

    wxyz: Float[ndarray, "4"]
    position: Float[ndarray, "3"]


class Cloud(typing.NamedTuple):
    """Points [n, 3], their colours [n, 3], and the diameter at which they make up surfaces."""

    points: Float[ndarray, "n 3"]
    colors: UInt8[ndarray, "n 3"]
    diameter: float


class Frustum(typing.NamedTuple):
    """A camera to be drawn: pose; fov, vertical, radians; aspect, width over height; picture."""

    pose: Pose
    fov: float
    aspect: float
    picture: UInt8[ndarray, "h w 3"]


def pose_of(w2c: Float[Array | ndarray, "4 4"]) -> Pose:
    """The pose of a world-to-camera matrix."""
    return Pose(*(np.asarray(part) for part in _pose(jnp.asarray(w2c, jnp.float32))))


def w2c_of(wxyz: Float[ndarray, "4"], position: Float[ndarray, "3"]) -> Float[ndarray, "4 4"]:
    """The world-to-camera matrix of a pose, whose quaternion may have any length but zero."""
    pose = np.asarray(wxyz, np.float32), np.asarray(position, np.float32)
    return np.asarray(_matrix(*pose))


# Compiled as one, since every step by itself takes longer than all together.
@jax.jit
def _pose(w2c: Float[Array, "4 4"]) -> tuple[Float[Array, "4"], Float[Array, "3"]]:
    c2w = invert_rigid(w2c)
    return quaternion_from_matrix(c2w[:3, :3]), c2w[:3, 3]


@jax.jit
def _matrix(wxyz: Float[Array, "4"], position: Float[Array, "3"]) -> Float[Array, "4 4"]:
    turned = jnp.eye(4, dtype=jnp.float32).at[:3, :3].set(matrix_from_quaternion(wxyz))
    return invert_rigid(turned.at[:3, 3].set(position))


def point_cloud(points: GlobalGeometricMemory) -> Cloud:
    """The global memory's points."""
    held = _few(np.flatnonzero(np.asarray(points.valid)))
    positions = np.asarray(points.positions)[held]
    return Cloud(positions, to_uint8(np.asarray(points.colors)[held]), _apart(positions))


def entry_cloud(bank: EntryBank, *, by: str, least_confidence: float) -> Cloud:
    """The surface entries of a confidence, as points.

    Args:
        bank: any.
        by: one of `ENTRY_COLOURS`.
        least_confidence: 0 to 1; entries below are left out.

    Raises:
        InputError: for an unknown name of a colour.
    """
    if by not in ENTRY_COLOURS:
        raise InputError(unknown_name("colour of entries", by, ENTRY_COLOURS))
    keep = np.asarray(bank.valid) & (np.asarray(bank.confidence) >= least_confidence)
    held = _few(np.flatnonzero(keep))
    width = np.asarray(bank.footprint * bank.spacing)[held]
    diameter = float(np.median(width)) if len(held) else 0.01
    return Cloud(np.asarray(bank.position)[held], _entry_colours(bank, by, held), diameter)


def stored_frusta(stereo: SpatialStereoMemory) -> list[Frustum]:
    """The stored views in the order of their slots, empty slots left out."""
    found = []
    height, width = stereo.images.shape[1:3]
    for slot in np.flatnonzero(np.asarray(stereo.valid)):
        k = np.asarray(stereo.intrinsics[slot])
        fov = 2 * float(np.arctan(0.5 * height / k[1, 1]))
        aspect = float((width / k[0, 0]) / (height / k[1, 1]))
        picture = _small(to_uint8(stereo.images[slot]))
        found.append(Frustum(pose_of(stereo.w2c[slot]), fov, aspect, picture))
    return found


def view_scale(stereo: SpatialStereoMemory) -> float:
    """A length in proportion to what the first view sees, for sizes of what is drawn: its mean
    depth, world units; 1 where it has no depth.
    """
    scale = float(scene_scale(stereo.depth[0]))
    return scale if scale > 0 else 1.0


def path_segments(w2c: Float[Array | ndarray, "f 4 4"]) -> Float[ndarray, "g 2 3"]:
    """The way of the camera's centre as f - 1 segments, world units."""
    centres = np.asarray(camera_centers(w2c))
    return np.stack([centres[:-1], centres[1:]], axis=1)


def _few(held: ndarray) -> ndarray:
    if len(held) <= MOST_POINTS:
        return held
    return held[np.linspace(0, len(held) - 1, MOST_POINTS).astype(int)]


def _apart(positions: Float[ndarray, "n 3"]) -> float:
    """About how far neighbouring points of surfaces lie apart: their area shared out among them."""
    if len(positions) < 2:
        return 0.01
    low, high = np.percentile(positions, [5, 95], axis=0)
    return float(np.linalg.norm(high - low) / np.sqrt(len(positions)))


def _entry_colours(bank: EntryBank, by: str, held: ndarray) -> UInt8[ndarray, "n 3"]:
    if by == "colour":
        return to_uint8(np.asarray(entry_colors(bank))[held])
    if by == "normal":
        return to_uint8(np.asarray(bank.normal)[held])
    if by == "confidence":
        level = np.asarray(bank.confidence)[held]
    elif by == "views":
        level = (np.asarray(count_views(bank.views))[held] - 1) / (_MANY_VIEWS - 1)
    elif by == "level":
        filled = sum(np.asarray(level)[held].any(-1).astype(int) for level in bank.features)
        level = np.asarray(filled) / len(bank.features)
    else:
        size = np.log(np.maximum(np.asarray(bank.footprint)[held], 1e-12))
        low, high = np.percentile(size, [2, 98]) if len(size) else (0.0, 1.0)
        level = (size - low) / max(float(high - low), 1e-6)
    return matplotlib.colormaps[_SCALE](np.clip(level, 0, 1), bytes=True)[:, :3]


def _small(picture: UInt8[ndarray, "h w 3"]) -> UInt8[ndarray, "small_h small_w 3"]:
    height, width = picture.shape[:2]
    share = min(1.0, _SIDE / max(height, width))
    size = max(round(width * share), 1), max(round(height * share), 1)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
