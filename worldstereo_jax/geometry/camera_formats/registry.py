"""The camera formats that are known, told apart by what the files hold.

A folder with COLMAP's tables, in itself or in sparse/, is a model of COLMAP. A JSON object is told
by its fields, a text file by the columns of its first line of numbers: 8, 12 and 19 are different
formats.
"""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

from worldstereo_jax.errors import InputError, unknown_name
from worldstereo_jax.files import read_json
from worldstereo_jax.geometry.camera_formats.colmap import find_model, read_colmap, write_colmap
from worldstereo_jax.geometry.camera_formats.kitti import read_kitti, write_kitti
from worldstereo_jax.geometry.camera_formats.nerfstudio import read_nerfstudio, write_nerfstudio
from worldstereo_jax.geometry.camera_formats.nerfstudio_path import read_nerfstudio_path
from worldstereo_jax.geometry.camera_formats.posed_cameras import (
    UNIT_SIZE,
    PosedCameras,
)
from worldstereo_jax.geometry.camera_formats.project_json import (
    read_project_json,
    write_project_json,
)
from worldstereo_jax.geometry.camera_formats.realestate import read_realestate, write_realestate
from worldstereo_jax.geometry.camera_formats.text_tables import is_number, read_rows
from worldstereo_jax.geometry.camera_formats.tum import read_tum, write_tum

PathLike = str | os.PathLike[str]


@dataclasses.dataclass(frozen=True)
class CameraFormat:
    """One format.

    Attributes:
        line: what it is, with its conventions, in one line.
        read: from a file (COLMAP: a folder) and the images' (height, width), if known, to cameras.
        write: None where the format is only read.
        needs: what cameras must have to be written: "intrinsics", "times".
    """

    line: str
    read: Callable[[PathLike, tuple[int, int] | None], PosedCameras]
    write: Callable[[PathLike, PosedCameras], None] | None
    needs: frozenset[str]


_LENS = frozenset({"intrinsics"})
_SMALL = 1e-6

FORMATS = {
    "worldstereo": CameraFormat(
        "cameras.json of this project, camera.json: w2c, OpenCV axes, pixels",
        read_project_json,
        write_project_json,
        _LENS,
    ),
    "colmap": CameraFormat(
        "a model's folder, text or binary: w2c, OpenCV axes, pixels, any unit",
        lambda path, size: read_colmap(path),
        write_colmap,
        _LENS,
    ),
    "nerfstudio": CameraFormat(
        "transforms.json, also instant-ngp's: c2w, OpenGL axes, pixels, any unit",
        read_nerfstudio,
        write_nerfstudio,
        _LENS,
    ),
    "nerfstudio-path": CameraFormat(
        "camera_path.json of nerfstudio's viewer: c2w, OpenGL axes, any unit",
        lambda path, size: read_nerfstudio_path(path),
        None,
        _LENS,
    ),
    "realestate10k": CameraFormat(
        "text of 19 columns: w2c, OpenCV axes, intrinsics as shares of the image, any unit",
        read_realestate,
        write_realestate,
        _LENS | {"times"},
    ),
    "tum": CameraFormat(
        "text of 8 columns: c2w, OpenCV axes, metres, no intrinsics",
        lambda path, size: read_tum(path),
        write_tum,
        frozenset({"times"}),
    ),
    "kitti": CameraFormat(
        "text of 12 columns: c2w, OpenCV axes, metres, no intrinsics",
        lambda path, size: read_kitti(path),
        write_kitti,
        frozenset(),
    ),
}
"""Name -> format; `worldstereo cameras --help` lists them."""

_BY_FIELD = {
    "extrinsic": "worldstereo",
    "frames": "nerfstudio",
    "camera_path": "nerfstudio-path",
}
_TABLES = {f"{table}.{kind}" for table in ("cameras", "images") for kind in ("txt", "bin")}
_BY_COLUMNS = {8: "tum", 12: "kitti", 19: "realestate10k"}


def detect_format(path: PathLike) -> str:
    """The name of a file's or folder's format.

    A JSON object without the fields of any format counts as this project's, whose reader says what
    is missing.

    Raises:
        InputError: for what is missing, of no known format, or of several.
    """
    path = Path(path)
    if path.is_dir():
        if find_model(path) is not None:
            return "colmap"
        raise InputError(
            f"{path} is no COLMAP model (cameras.txt and images.txt, or .bin, in it or in its "
            "sparse/0); of the other formats name the file."
        )
    if path.name in _TABLES:
        raise InputError(f"{path} is a table of a COLMAP model; name its folder.")
    if path.is_file() and _begins_as_json(path):
        content = read_json(path)
        fields = content if isinstance(content, dict) else {}
        found = [name for field, name in _BY_FIELD.items() if field in fields]
        if len(found) > 1:
            raise InputError(f"{path} could be {' or '.join(found)}; name the format.")
        return found[0] if found else "worldstereo"
    rows = read_rows(path)
    # RealEstate10K begins with the address of the video.
    body = rows[1:] if rows and not is_number(rows[0].words[0]) else rows
    columns = len(body[0].words) if body else 0
    if columns not in _BY_COLUMNS or not all(is_number(word) for word in body[0].words):
        raise InputError(
            f"{path} is of no known camera format: neither JSON nor lines of 8, 12 or 19 numbers."
        )
    return _BY_COLUMNS[columns]


def read_cameras(
    path: PathLike, name: str | None = None, *, size: tuple[int, int] | None = None
) -> PosedCameras:
    """Cameras of a file (COLMAP: a folder) of any known format.

    Args:
        path: the file or folder.
        name: of the format, one of `FORMATS`; told by the content when None.
        size: (height, width) of the images, where the file does not tell.

    Raises:
        InputError: as `detect_format`, and naming file and line or field where something is wrong.
    """
    if name is None:
        name = detect_format(path)
    return _format(name).read(path, size)


def write_cameras(path: PathLike, cameras: PosedCameras, name: str) -> None:
    """Write cameras in the format called `name`; the file or folder appears only when complete.

    Raises:
        InputError: for a format that is unknown or only read, and for cameras that lack what it
            needs: intrinsics in pixels of images of known size, without skew; times.
    """
    chosen = _format(name)
    if chosen.write is None:
        raise InputError(f"The format {name} is only read.")
    if "times" in chosen.needs and cameras.times is None:
        raise InputError(f"The format {name} needs times, which these cameras do not have.")
    if "intrinsics" in chosen.needs:
        _check_lenses(cameras, name)
    chosen.write(path, cameras)


def _check_lenses(cameras: PosedCameras, name: str) -> None:
    if cameras.intrinsics is None:
        raise InputError(f"The format {name} needs intrinsics, which these cameras do not have.")
    if cameras.size is None or (cameras.size == UNIT_SIZE and name != "realestate10k"):
        raise InputError(f"The format {name} needs the size of the images, which is not known.")
    skew = abs(cameras.intrinsics[:, 0, 1]) / cameras.intrinsics[:, 0, 0]
    if name != "worldstereo" and (skew > _SMALL).any():
        raise InputError(f"A lens has skew, which the format {name} cannot hold.")


def _format(name: str) -> CameraFormat:
    if name not in FORMATS:
        raise InputError(unknown_name("camera format", name, FORMATS))
    return FORMATS[name]


def _begins_as_json(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    return start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[")
