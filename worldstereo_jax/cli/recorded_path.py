"""A camera path recorded or laid elsewhere, made to start at a view of the scene.

Its world is not the scene's, so its first camera is put where the memory's first view stands, with
that view's lens, and what follows is relative to it. A bare picture is taken to have the path's
own lens. Most formats have a unit of their own; how it becomes the scene's is `scene_units`.
"""

import dataclasses
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.cli.scene_input import AnyScene
from worldstereo_jax.data.scene_folders import SingleViewScene
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import (
    UNIT_SIZE,
    PosedCameras,
    fitted,
    inverse,
    read_cameras,
    resized,
)
from worldstereo_jax.geometry.pivot import pivot_depth
from worldstereo_jax.geometry.scene_unit import middle_depth
from worldstereo_jax.geometry.trajectories import DOLLY
from worldstereo_jax.sampling.world import Cameras

# Fewer points before a camera say too little of what it looks at.
_FEWEST_POINTS = 8


@dataclasses.dataclass(frozen=True)
class RecordedPath:
    """A path seen from its first camera.

    Attributes:
        w2c: world-to-camera matrices [f, 4, 4] in the file's unit; the first is the identity.
        lenses: intrinsics [f, 3, 3] in pixels of the working size; None where the file has none.
        ahead: depth of what the first camera looks at, in the file's unit, None where the file
            does not tell.
        metric: whether the file's unit is the metre.
        scale: scene units that one of the file's is to be, None to let `scene_units` decide.
    """

    w2c: Float[ndarray, "f 4 4"]
    lenses: Float[ndarray, "f 3 3"] | None
    ahead: float | None
    metric: bool
    scale: float | None


def read_recorded_path(
    file: Path,
    name: str,
    *,
    own_size: tuple[int, int],
    size: tuple[int, int],
    scale: float | None,
) -> RecordedPath:
    """The path of a file of the format called `name`, of all its cameras.

    Args:
        file: the file; of a COLMAP model the folder.
        name: of `camera_formats.FORMATS`.
        own_size: (height, width) of the scene's image in its file. The recording's images are made
            to fill it: see `camera_formats.fitted`.
        size: at which the scene is worked on.
        scale: see `RecordedPath`.

    Raises:
        InputError: as `read_cameras`, and for fewer than 2 cameras.
    """
    # Shares of an image stay shares: the recording's proportions need not be the scene's.
    given = None if name == "realestate10k" else own_size
    cameras = read_cameras(file, name, size=given)
    if len(cameras) < 2:
        raise InputError(f"{file} holds {len(cameras)} camera, but a path needs at least 2.")
    lenses = None
    if cameras.intrinsics is not None and cameras.size is not None:
        lenses = resized(fitted(cameras.intrinsics, cameras.size, own_size), own_size, size)
    w2c = cameras.w2c @ inverse(cameras.w2c[:1])
    # Exactly: an official model looks for the stored view that stands where the clip starts.
    w2c[0] = np.eye(4)
    ahead = _depth_of_points(cameras)
    if ahead is None:
        ahead = pivot_depth(w2c)
    return RecordedPath(w2c, lenses, ahead, cameras.metric, scale)


def scene_units(path: RecordedPath, depth: Float[Array | ndarray, "h w"]) -> float:
    """How many of the scene's units one of the file's is.

    What was asked for; 1 for metres, the unit of estimated depth. Of any other unit the path keeps
    its proportion to what it was recorded before: what the first camera looks at (the middle of a
    COLMAP model's points before it, or the point that the path turns about) is as far as the middle
    of the scene's first view. Where the file does not tell, the farthest camera goes as far as the
    path "dolly".

    Args:
        path: the path.
        depth: of the scene's first view.

    Raises:
        InputError: where nothing of that depth is known.
    """
    if path.scale is not None:
        return path.scale
    if path.metric:
        return 1.0
    known = np.asarray(depth)
    if not (known > 0).any():
        raise InputError("--camera-scale is needed, since no depth of the first view is known")
    if path.ahead is not None:
        return middle_depth(known) / path.ahead
    reach = float(np.linalg.norm(inverse(path.w2c)[:, :3, 3], axis=-1).max())
    # A path that only turns has no unit.
    return DOLLY * middle_depth(known) / reach if reach > 1e-9 else 1.0


def placed_at(
    path: RecordedPath,
    units: float,
    w2c: Float[Array | ndarray, "4 4"],
    intrinsics: Float[Array | ndarray, "3 3"],
) -> tuple[Float[ndarray, "f 4 4"], Float[ndarray, "f 3 3"]]:
    """The path from a view on: its w2c and intrinsics, zooming as the recorded lens does.

    Args:
        path: the path.
        units: from `scene_units`.
        w2c: the view's camera.
        intrinsics: the view's lens, in pixels of the working size.
    """
    moved = path.w2c.astype(np.float64)
    moved[:, :3, 3] *= units
    lens = np.asarray(intrinsics, np.float64)
    if path.lenses is None:
        return moved @ np.asarray(w2c, np.float64), np.broadcast_to(lens, (len(moved), 3, 3))
    change = path.lenses @ np.linalg.inv(path.lenses[0].astype(np.float64))
    return moved @ np.asarray(w2c, np.float64), change @ lens


def begun_by(scene: AnyScene, path: object) -> AnyScene:
    """A bare picture, whose camera is only assumed, taken to be what the path's first camera sees.

    Of a recorded path it has the lens, of cameras in the scene's world also the place: they start
    at the picture. Any other scene, or path, leaves the scene as it is.
    """
    if not isinstance(scene, SingleViewScene) or scene.w2c is not None:
        return scene
    if isinstance(path, Cameras):
        w2c, intrinsics = np.asarray(path.w2c), np.asarray(path.intrinsics)
        return dataclasses.replace(scene, w2c=w2c[:1], intrinsics=intrinsics[:1])
    if not isinstance(path, RecordedPath) or path.lenses is None:
        return scene
    return dataclasses.replace(scene, intrinsics=path.lenses[:1].astype(np.float32))


def _depth_of_points(cameras: PosedCameras) -> float | None:
    """Median depth of the points in the middle of the first image, or in all of it."""
    if cameras.points is None or cameras.intrinsics is None or cameras.size in (None, UNIT_SIZE):
        return None
    local = cameras.points @ cameras.w2c[0, :3, :3].T + cameras.w2c[0, :3, 3]
    local = local[local[:, 2] > 0]
    places = (local @ cameras.intrinsics[0].T)[:, :2] / local[:, 2:]
    height, width = cameras.size
    # From -1 to 1 across the image.
    off = np.abs(places / [width, height] * 2 - 1).max(axis=1)
    for share in (0.5, 1.0):
        if (off <= share).sum() >= _FEWEST_POINTS:
            return float(np.median(local[off <= share, 2]))
    return None
