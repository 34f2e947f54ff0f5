"""COLMAP's sparse models: a folder with tables of cameras, images and points, text or binary.

World to camera, OpenCV axes, pixel centres at +0.5: this project's conventions. The unit is any.
"""

import os
from pathlib import Path

import numpy as np

from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_folder
from worldstereo_jax.geometry.camera_formats import colmap_binary, colmap_text
from worldstereo_jax.geometry.camera_formats.colmap_tables import pinhole
from worldstereo_jax.geometry.camera_formats.posed_cameras import (
    PosedCameras,
    by_number,
    check_focal,
    intrinsic_matrices,
    rigid_from_quaternions,
)

_TABLES = ("cameras", "images")
_READERS = {"bin": colmap_binary, "txt": colmap_text}


def find_model(path: str | os.PathLike[str]) -> Path | None:
    """The folder of a model's tables: `path`, or its sparse/0 or sparse; None where there is none.

    Raises:
        InputError: where sparse/ holds several models.
    """
    path = Path(path)
    sparse = path / "sparse"
    for folder in (path, sparse):
        if _kind(folder) is not None:
            return folder
    if not sparse.is_dir():
        return None
    models = sorted(folder for folder in sparse.iterdir() if _kind(folder) is not None)
    if len(models) > 1:
        names = ", ".join(folder.name for folder in models)
        raise InputError(f"{sparse} holds several models ({names}); name the folder of one.")
    return models[0] if models else None


def read_colmap(path: str | os.PathLike[str]) -> PosedCameras:
    """Cameras of a model's images in the order of their names, numbers as numbers; its points.

    Binary tables are read where there are both kinds, as COLMAP does.

    Args:
        path: the model's folder, or one with sparse/0.

    Raises:
        InputError: naming file and row, also for a lens with distortion, images of several sizes,
            and a folder without model.
    """
    folder = find_model(path)
    kind = None if folder is None else _kind(folder)
    if folder is None or kind is None:
        raise InputError(
            f"{path} is no COLMAP model: cameras.txt and images.txt (or .bin) were expected in it "
            "or in its sparse/0."
        )
    tables = _READERS[kind]
    lenses = tables.read_lenses(folder / f"cameras.{kind}")
    images = tables.read_images(folder / f"images.{kind}")
    if not images:
        raise InputError(f"{folder}: its table of images is empty.")
    images = [images[i] for i in by_number([image.name for image in images])]
    used, sizes = [], []
    for image in images:
        if image.lens not in lenses:
            raise InputError(f"{image.where}: there is no camera {image.lens}.")
        lens = lenses[image.lens]
        used.append(pinhole(lens))
        sizes.append((lens.height, lens.width))
    if len(set(sizes)) > 1:
        one, other = sorted(set(sizes))[:2]
        raise InputError(
            f"{folder}: its images differ in size ({one[1]} x {one[0]}, {other[1]} x {other[0]})."
        )

    def where(i: int) -> str:
        return images[i].where

    w, x, y, z = np.array([image.quaternion for image in images]).T
    translation = np.array([image.translation for image in images])
    intrinsics = intrinsic_matrices(*np.array(used).T)
    check_focal(intrinsics, lambda i: lenses[images[i].lens].where)
    points = folder / f"points3D.{kind}"
    return PosedCameras(
        rigid_from_quaternions(np.stack([x, y, z, w], -1), translation, where),
        intrinsics,
        sizes[0],
        tuple(image.name for image in images),
        points=tables.read_points(points) if points.is_file() else None,
    )


def write_colmap(path: str | os.PathLike[str], cameras: PosedCameras) -> None:
    """Write a model's folder, in text, without features.

    Images of one lens share a camera. The cameras must have a size and lenses without skew.
    """
    assert cameras.size is not None
    assert cameras.intrinsics is not None
    numbers: dict[bytes, int] = {}
    lenses, images = [], []
    for i, (k, name) in enumerate(zip(cameras.intrinsics, cameras.names, strict=True)):
        known = len(numbers)
        number = numbers.setdefault(k.tobytes(), known + 1)
        if number > known:
            lenses.append(colmap_text.lens_line(number, k, cameras.size))
        images += colmap_text.image_lines(i + 1, cameras.w2c[i], number, name)
    points = []
    if cameras.points is not None:
        grey = np.full(cameras.points.shape, 128, np.uint8)
        points = colmap_text.point_lines(cameras.points, grey)
    with atomic_folder(path) as folder:
        colmap_text.write_tables(folder, lenses, images, points)


def _kind(folder: Path) -> str | None:
    for kind in _READERS:
        if all((folder / f"{table}.{kind}").is_file() for table in _TABLES):
            return kind
    return None
