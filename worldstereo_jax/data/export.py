"""Export of generated frames for feed-forward reconstruction (WorldMirror, HY-World 2.0).

Layout: world_mirror_data/<model_type>/ with images/<camera_id>.png, cameras.json (camera-to-world
matrices and intrinsics by camera_id) and name_map.json (sorted ids to 0000, 0001, ...).
"""

import dataclasses
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.data.images import write_image
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_folder
from worldstereo_jax.geometry.cameras import invert_rigid

FOLDER = "world_mirror_data"


@dataclasses.dataclass(frozen=True)
class ExportView:
    """One view to export.

    Attributes:
        camera_id: names its files, such as pano-0003 or view0-traj1-0003.
        image: colours [h, w, 3] in [-1, 1].
        w2c: world-to-camera matrix [4, 4].
        intrinsics: [3, 3] in the pixels that the scene's camera.json uses, whatever the image's
            size: the reader scales them.
    """

    camera_id: str
    image: Float[Array | ndarray, "h w 3"]
    w2c: Float[Array | ndarray, "4 4"]
    intrinsics: Float[Array | ndarray, "3 3"]


@dataclasses.dataclass(frozen=True)
class ExportPoints:
    """Points of a scene.

    Attributes:
        positions: places [n, 3], world units.
        colors: colours [n, 3] in [-1, 1].
    """

    positions: Float[Array | ndarray, "n 3"]
    colors: Float[Array | ndarray, "n 3"]


def panorama_camera_id(index: int) -> str:
    """Id of a panorama's view: pano-0003."""
    return f"pano-{index:04d}"


def view_ids(views: Sequence[ExportView]) -> list[str]:
    """The views' ids, each of which names a file.

    Raises InputError when there is no view, two share an id, or one cannot be a file's name.
    """
    if not views:
        raise InputError("The export holds no views.")
    ids = [view.camera_id for view in views]
    seen = set()
    for name in ids:
        _check_name(name)
        if name in seen:
            raise InputError(f"Two views of the export share the id '{name}'.")
        seen.add(name)
    return ids


def view_lenses(views: Sequence[ExportView], reader: str) -> Float[ndarray, "v 3 3"]:
    """The views' intrinsics, float64; InputError for skew, which the reader's lenses lack."""
    lenses = np.stack([np.asarray(view.intrinsics, np.float64) for view in views])
    skewed = np.abs(lenses[:, 0, 1]) > 1e-6 * lenses[:, 0, 0]
    if skewed.any():
        name = views[int(skewed.argmax())].camera_id
        raise InputError(f"The lens of '{name}' has skew, which {reader}'s has not.")
    return lenses


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
        raise InputError(f"'{name}' cannot name a file of the export.")


def export_world_mirror(
    out: str | os.PathLike[str], model_type: str, views: Sequence[ExportView]
) -> Path:
    """Write views below `out`/world_mirror_data/`model_type`, and return that folder.

    The folder appears only when complete, and replaces an earlier one. Raises InputError when there
    is no view, when two share an id, or when an id or `model_type` cannot be a file's name.
    """
    ids = view_ids(views)
    _check_name(model_type)
    target = Path(out) / FOLDER / model_type
    c2w = np.asarray(invert_rigid(np.stack([np.asarray(view.w2c) for view in views])), np.float64)
    cameras = {
        "num_cameras": len(views),
        "extrinsics": [
            {"camera_id": name, "matrix": matrix.tolist()}
            for name, matrix in zip(ids, c2w, strict=True)
        ],
        "intrinsics": [
            {
                "camera_id": view.camera_id,
                "matrix": np.asarray(view.intrinsics, np.float64).tolist(),
            }
            for view in views
        ],
    }
    with atomic_folder(target) as folder:
        for view in views:
            write_image(folder / "images" / f"{view.camera_id}.png", view.image)
        _write_json(folder / "cameras.json", cameras)
        _write_json(
            folder / "name_map.json", {name: f"{i:04d}" for i, name in enumerate(sorted(ids))}
        )
    return target


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=1, allow_nan=False), encoding="utf-8")
