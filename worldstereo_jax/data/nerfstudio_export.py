"""Export of frames, cameras and points as a data set of nerfstudio: transforms.json, OpenGL axes.

Splatfacto, and what else reads nerfstudio's data, trains from the known cameras and starts its
Gaussians at the memory's points. Layout: transforms.json, images/<name>.png, points.ply.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldstereo_jax.data.export import ExportPoints, ExportView, view_ids, view_lenses
from worldstereo_jax.data.images import write_image
from worldstereo_jax.data.point_cloud_io import write_point_cloud
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_folder
from worldstereo_jax.geometry.camera_formats.nerfstudio import write_nerfstudio
from worldstereo_jax.geometry.camera_formats.posed_cameras import PosedCameras

POINTS = "points.ply"


def export_nerfstudio(
    out: str | os.PathLike[str],
    views: Sequence[ExportView],
    points: ExportPoints | None = None,
) -> Path:
    """Write a data set to the folder `out`, and return it.

    The folder appears only when complete, and replaces an earlier one.

    Args:
        out: the folder.
        views: of one image size, with intrinsics in pixels of it, without skew.
        points: the data set has none when None.

    Raises:
        InputError: when there is no view, two share an id, an id cannot be a file's name, images
            differ in size, or a lens has skew.
    """
    ids = view_ids(views)
    sizes = {(np.shape(view.image)[0], np.shape(view.image)[1]) for view in views}
    if len(sizes) > 1:
        one, other = sorted(sizes)[:2]
        raise InputError(
            f"Images of an export must be of one size, not of {one[0]} x {one[1]} and "
            f"{other[0]} x {other[1]} (height x width)."
        )
    cameras = PosedCameras(
        np.stack([np.asarray(view.w2c, np.float64) for view in views]),
        view_lenses(views, "nerfstudio"),
        sizes.pop(),
        tuple(f"images/{name}.png" for name in ids),
    )
    with atomic_folder(out) as folder:
        for view in views:
            write_image(folder / "images" / f"{view.camera_id}.png", view.image)
        if points is not None:
            write_point_cloud(folder / POINTS, points.positions, points.colors)
        file = folder / "transforms.json"
        write_nerfstudio(file, cameras, points=None if points is None else POINTS)
    return Path(out)
