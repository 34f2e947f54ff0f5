"""Coloured point clouds as PLY files."""

import os
from pathlib import Path

import numpy as np
from plyfile import PlyData, PlyElement, PlyParseError

from worldstereo_jax.array_types import Array, Bool, Float, ndarray
from worldstereo_jax.data.images import from_uint8, to_uint8
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write

_VERTEX = [
    ("x", "<f4"),
    ("y", "<f4"),
    ("z", "<f4"),
    ("red", "u1"),
    ("green", "u1"),
    ("blue", "u1"),
]
_NORMAL = [("nx", "<f4"), ("ny", "<f4"), ("nz", "<f4")]
_COLOURS = ("red", "green", "blue")


def write_point_cloud(
    path: str | os.PathLike[str],
    points: Float[Array | ndarray, "n 3"],
    colors: Float[Array | ndarray, "n 3"],
    valid: Bool[Array | ndarray, "n"] | None = None,
    *,
    normals: Float[Array | ndarray, "n 3"] | None = None,
) -> int:
    """Write points (world units) with colours in [-1, 1] as binary PLY; return how many.

    Only points marked `valid` are written, all when it is None; with their unit normals, if given.
    The file appears only when complete. Colours are stored in 8 bits.
    """
    keep = np.ones(len(points), bool) if valid is None else np.asarray(valid)
    layout = _VERTEX if normals is None else _VERTEX + _NORMAL
    vertices = np.empty(int(keep.sum()), dtype=layout)
    xyz = np.asarray(points, np.float32)[keep]
    rgb = to_uint8(colors)[keep]
    for i, name in enumerate("xyz"):
        vertices[name] = xyz[:, i]
    for i, name in enumerate(_COLOURS):
        vertices[name] = rgb[:, i]
    if normals is not None:
        for (name, _), column in zip(_NORMAL, np.asarray(normals, np.float32)[keep].T, strict=True):
            vertices[name] = column
    with atomic_write(path) as temporary:
        PlyData([PlyElement.describe(vertices, "vertex")], byte_order="<").write(str(temporary))
    return len(vertices)


def read_point_cloud(
    path: str | os.PathLike[str],
) -> tuple[Float[ndarray, "n 3"], Float[ndarray, "n 3"]]:
    """Points [n, 3] in world units and colours [n, 3] in [-1, 1] of a PLY file.

    Raises InputError for a missing or damaged file and one without coordinates or colours.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    try:
        content = PlyData.read(str(path))
    except (PlyParseError, ValueError, OSError) as error:
        raise InputError(f"{path} cannot be read as a PLY point cloud.") from error
    if "vertex" not in content:
        raise InputError(f"{path} has no element 'vertex'.")
    vertices = content["vertex"].data
    for name in ("x", "y", "z", *_COLOURS):
        if name not in (vertices.dtype.names or ()):
            raise InputError(f"{path} has no property '{name}' in its element 'vertex'.")
    points = np.stack([vertices[name] for name in "xyz"], -1).astype(np.float32)
    return points, from_uint8(np.stack([vertices[name] for name in _COLOURS], -1))
