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

from worldstereo_jax.data.export import ExportPoints, ExportView, view_ids, view_lenses
from worldstereo_jax.data.images import to_uint8, write_image
from worldstereo_jax.files import atomic_folder
from worldstereo_jax.geometry.camera_formats import colmap_text

MODEL = Path("sparse") / "0"


def export_colmap(
    out: str | os.PathLike[str],
    views: Sequence[ExportView],
    points: ExportPoints | None = None,
) -> Path:
    """Write a COLMAP model to the folder `out`, and return it.

    The folder appears only when complete, and replaces an earlier one.

    Args:
        out: the folder.
        views: with intrinsics in pixels of their own images, without skew; every view gets a
            camera of its own (PINHOLE), named <camera_id>.png.
        points: the model has none when None.

    Raises:
        InputError: when there is no view, two share an id, an id cannot be a file's name, or a lens
            has skew.
    """
    view_ids(views)
    cameras, images = [], []
    for number, (view, lens) in enumerate(zip(views, view_lenses(views, "COLMAP"), strict=True), 1):
        height, width = np.shape(view.image)[:2]
        cameras.append(colmap_text.lens_line(number, lens, (height, width)))
        images += colmap_text.image_lines(number, view.w2c, number, f"{view.camera_id}.png")
    with atomic_folder(out) as folder:
        for view in views:
            write_image(folder / "images" / f"{view.camera_id}.png", view.image)
        model = folder / MODEL
        model.mkdir(parents=True)
        colmap_text.write_tables(model, cameras, images, _point_lines(points))
    return Path(out)


def _point_lines(points: ExportPoints | None) -> list[str]:
    if points is None:
        return []
    return colmap_text.point_lines(
        np.asarray(points.positions, np.float64), to_uint8(points.colors)
    )
