"""Export of frames, cameras and points as a COLMAP model, in its text format.

What reads COLMAP models (Gaussian splatting, nerfstudio, COLMAP itself) starts from the known
cameras and, in place of sparse points, from the memory's. Layout: images/<name>.png and
sparse/0/{cameras,images,points3D}.txt. COLMAP's conventions are this project's: world to camera,
OpenCV axes, pixel centres at +0.5.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.data.export import ExportView, view_ids
from worldstereo_jax.data.images import to_uint8, write_image
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_folder
from worldstereo_jax.geometry.camera_formats import colmap_text

MODEL = Path("sparse") / "0"


def export_colmap(
    out: str | os.PathLike[str],
    views: Sequence[ExportView],
    points: Float[Array | ndarray, "n 3"] | None = None,
    colors: Float[Array | ndarray, "n 3"] | None = None,
    valid: Bool[Array | ndarray, "n"] | None = None,
) -> Path:
    """Write a COLMAP model to the folder `out`, and return it.

    The folder appears only when complete, and replaces an earlier one.

    Args:
        out: the folder.
        views: with intrinsics in pixels of their own images, without skew; every view gets a
            camera of its own (PINHOLE), named <camera_id>.png.
        points: world units; the model has none when None.
        colors: in [-1, 1], of the points.
        valid: which points are written; all when None.

    Raises:
        InputError: when there is no view, two share an id, an id cannot be a file's name, a lens
            has skew, or points come without colours.
    """
    view_ids(views)
    if (points is None) != (colors is None):
        raise InputError("Points of an export need colours, and colours need points.")
    cameras, images = [], []
    for number, view in enumerate(views, 1):
        cameras.append(_lens(number, view))
        images += colmap_text.image_lines(number, view.w2c, number, f"{view.camera_id}.png")
    with atomic_folder(out) as folder:
        for view in views:
            write_image(folder / "images" / f"{view.camera_id}.png", view.image)
        model = folder / MODEL
        model.mkdir(parents=True)
        colmap_text.write_tables(model, cameras, images, _point_lines(points, colors, valid))
    return Path(out)


def _lens(number: int, view: ExportView) -> str:
    k = np.asarray(view.intrinsics, np.float64)
    if abs(k[0, 1]) > 1e-6 * k[0, 0]:
        raise InputError(f"The lens of '{view.camera_id}' has skew, which COLMAP's has not.")
    height, width = np.shape(view.image)[:2]
    return colmap_text.lens_line(number, k, (height, width))


def _point_lines(
    points: Array | ndarray | None, colors: Array | ndarray | None, valid: Array | ndarray | None
) -> list[str]:
    if points is None or colors is None:
        return []
    keep = np.ones(len(points), bool) if valid is None else np.asarray(valid)
    places, shades = np.asarray(points, np.float64)[keep], to_uint8(colors)[keep]
    return colmap_text.point_lines(places, shades)
