"""Folders of posed video as programs and data sets leave them: which file holds the cameras, and
where the frames and the depth lie.

| cameras | frames | depth |
| --- | --- | --- |
| cameras.json, camera.json (ours) | video.mp4 or images/ in order | depth.npz or depth/ in order |
| sparse/0/ (COLMAP) | images/ by the model's names | depth/ by the frames' names |
| transforms.json (nerfstudio, instant-ngp) | by file_path | by depth_file_path, or as COLMAP's |
| one text file of RealEstate10K | images/<time stamp>.*, or video.mp4 | as COLMAP's |
| groundtruth.txt and rgb.txt (TUM RGB-D) | rgb.txt | depth.txt, 5000 a metre |

Depth is in the unit of the cameras; images hold thousandths of it where the table says no other.
TUM's lens is calibration.txt, `fx fy cx cy` in pixels whose centres are whole numbers, as the
benchmark's own formulas have them (and ETH3D's files of the same layout). Its poses and depth
belong to the frame that is nearest in time, at most 0.02 s away, as in its associate.py.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from worldstereo_jax.array_types import Float, Int, ndarray
from worldstereo_jax.data.frame_sources import (
    DepthFiles,
    DepthFolder,
    DepthStack,
    ImageFiles,
    ImageFolder,
    Source,
    Video,
    VideoAtTimes,
    by_stem,
)
from worldstereo_jax.data.images import open_image
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import (
    UNIT_SIZE,
    PosedCameras,
    read_cameras,
    resized,
)
from worldstereo_jax.geometry.camera_formats.colmap import find_model
from worldstereo_jax.geometry.camera_formats.posed_cameras import check_focal, intrinsic_matrices
from worldstereo_jax.geometry.camera_formats.registry import detect_format
from worldstereo_jax.geometry.camera_formats.text_tables import number, read_rows, read_table

_OURS = ("cameras.json", "camera.json")
_TRANSFORMS = "transforms.json"
_POSES, _FRAMES, _DEPTH_LIST = "groundtruth.txt", "rgb.txt", "depth.txt"
_CALIBRATION = "calibration.txt"
_VIDEO, _IMAGES = "video.mp4", "images"
_DEPTH_FILE, _DEPTH_FOLDER = "depth.npz", "depth"
_FARTHEST = 0.02  # s
_TUM_UNIT = 1 / 5000  # m
_HEIGHT = 1000  # of images of which only the proportions are known


@dataclasses.dataclass(frozen=True)
class Layout:
    """What a folder holds.

    Attributes:
        cameras: of its frames, in their order; their intrinsics belong to `cameras.size`, or,
            where that is None, to the frames as they are.
        pictures: the frames.
        depth: theirs, in the unit of the cameras; None where the folder has none.
    """

    cameras: PosedCameras
    pictures: Source
    depth: Source | None


def camera_files(folder: Path) -> dict[str, Path]:
    """The files with cameras that a folder holds, by the names of their formats."""
    if not folder.is_dir():
        return {}
    found = {name: file for name, find in _FINDERS.items() if (file := find(folder)) is not None}
    return found


def read_layout(folder: Path, name: str) -> Layout:
    """What a folder with cameras of the format called `name` holds.

    Raises:
        InputError: naming the file, and the line or field, that is missing or wrong.
    """
    file = _FINDERS[name](folder) if name in _FINDERS else None
    if file is None:
        raise InputError(f"{folder} holds no cameras of the format {name}.")
    return _READERS[name](folder, file)


def _find_ours(folder: Path) -> Path | None:
    return next((folder / name for name in _OURS if (folder / name).is_file()), None)


def _find_transforms(folder: Path) -> Path | None:
    file = folder / _TRANSFORMS
    return file if file.is_file() else None


def _find_realestate(folder: Path) -> Path | None:
    files = [file for file in sorted(folder.glob("*.txt")) if _is_realestate(file)]
    if len(files) > 1:
        raise InputError(
            f"{folder} holds several files of RealEstate10K ({files[0].name}, {files[1].name}); "
            "one clip belongs in a folder."
        )
    return files[0] if files else None


def _find_tum(folder: Path) -> Path | None:
    both = (folder / _POSES).is_file() and (folder / _FRAMES).is_file()
    return folder / _POSES if both else None


def _is_realestate(file: Path) -> bool:
    try:
        return detect_format(file) == "realestate10k"
    except InputError:
        # Text of some other kind.
        return False


def _read_ours(folder: Path, file: Path) -> Layout:
    cameras = read_cameras(file, "worldstereo")
    count = len(cameras)
    return Layout(cameras, _in_order(folder, count), _depth_in_order(folder, count))


def _read_colmap(folder: Path, file: Path) -> Layout:
    images = folder / _IMAGES
    if not images.is_dir():
        raise InputError(f"{folder} has no {_IMAGES}/ beside its COLMAP model.")
    cameras = read_cameras(file, "colmap")
    files = tuple(images / name for name in cameras.names)
    return Layout(cameras, ImageFiles(files), _depth_by_name(folder, cameras.names))


def _read_nerfstudio(folder: Path, file: Path) -> Layout:
    try:
        cameras = read_cameras(file, "nerfstudio")
    except InputError:
        # Blender's scenes leave the size to the images; any other fault is found again.
        cameras = read_cameras(file, "nerfstudio", size=UNIT_SIZE)
        first = open_image(_with_suffix(folder / cameras.names[0]))
        cameras = read_cameras(file, "nerfstudio", size=(first.height, first.width))
    pictures = ImageFiles(tuple(_with_suffix(folder / name) for name in cameras.names))
    if cameras.depth_files is None:
        return Layout(cameras, pictures, _depth_by_name(folder, cameras.names))
    return Layout(cameras, pictures, DepthFiles(tuple(folder / n for n in cameras.depth_files)))


def _read_realestate(folder: Path, file: Path) -> Layout:
    shares = read_cameras(file, "realestate10k")
    assert shares.intrinsics is not None
    assert shares.times is not None
    # Pixels are square, so the intrinsics tell the proportions.
    ratio = float(shares.intrinsics[0, 1, 1] / shares.intrinsics[0, 0, 0])
    size = (_HEIGHT, round(_HEIGHT * ratio))
    cameras = dataclasses.replace(
        shares, intrinsics=resized(shares.intrinsics, UNIT_SIZE, size), size=size
    )
    depth = _depth_by_name(folder, cameras.names)
    if (folder / _IMAGES).is_dir():
        return Layout(cameras, _by_time_stamp(folder / _IMAGES, cameras.names), depth)
    if not (folder / _VIDEO).is_file():
        raise InputError(f"{folder} has neither {_VIDEO} nor {_IMAGES}/.")
    return Layout(cameras, VideoAtTimes(folder / _VIDEO, tuple(shares.times.tolist())), depth)


def _read_tum(folder: Path, file: Path) -> Layout:
    poses = read_cameras(file, "tum")
    assert poses.times is not None
    times, names = _read_list(folder / _FRAMES)
    pose, miss = _nearest(times, poses.times)
    kept = np.flatnonzero(miss <= _FARTHEST)
    if len(kept) == 0:
        raise InputError(f"{file} has no pose within {_FARTHEST} s of a frame of {_FRAMES}.")
    cameras = dataclasses.replace(
        poses.take(pose[kept]),
        names=tuple(names[i] for i in kept),
        times=times[kept],
        intrinsics=np.repeat(_read_calibration(folder / _CALIBRATION), len(kept), axis=0),
    )
    pictures = ImageFiles(tuple(folder / names[i] for i in kept))
    if not (folder / _DEPTH_LIST).is_file():
        return Layout(cameras, pictures, None)
    depth_times, depth_names = _read_list(folder / _DEPTH_LIST)
    place, miss = _nearest(times[kept], depth_times)
    files = tuple(
        folder / depth_names[i] if near else None
        for i, near in zip(place, miss <= _FARTHEST, strict=True)
    )
    return Layout(cameras, pictures, DepthFiles(files, _TUM_UNIT))


_FINDERS: dict[str, Callable[[Path], Path | None]] = {
    "worldstereo": _find_ours,
    "colmap": find_model,
    "nerfstudio": _find_transforms,
    "realestate10k": _find_realestate,
    "tum": _find_tum,
}
_READERS: dict[str, Callable[[Path, Path], Layout]] = {
    "worldstereo": _read_ours,
    "colmap": _read_colmap,
    "nerfstudio": _read_nerfstudio,
    "realestate10k": _read_realestate,
    "tum": _read_tum,
}


def _in_order(folder: Path, count: int) -> Source:
    if (folder / _IMAGES).is_dir():
        return ImageFolder(folder / _IMAGES, count)
    if not (folder / _VIDEO).is_file():
        raise InputError(f"{folder} has neither {_VIDEO} nor {_IMAGES}/.")
    return Video(folder / _VIDEO, count)


def _depth_in_order(folder: Path, count: int) -> Source | None:
    if (folder / _DEPTH_FOLDER).is_dir():
        return DepthFolder(folder / _DEPTH_FOLDER, count)
    file = folder / _DEPTH_FILE
    return DepthStack(file, count) if file.is_file() else None


def _depth_by_name(folder: Path, names: Sequence[str]) -> Source | None:
    """depth/<name of the frame>.* where there is such a file, of any suffix."""
    if not (folder / _DEPTH_FOLDER).is_dir():
        return None
    stems = [Path(name).stem for name in names]
    if len(set(stems)) != len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise InputError(f"{folder / _DEPTH_FOLDER}: two frames are called {twice}.")
    files = by_stem(folder / _DEPTH_FOLDER)
    return DepthFiles(tuple(files.get(stem) for stem in stems))


def _by_time_stamp(folder: Path, stamps: Sequence[str]) -> Source:
    files = by_stem(folder)
    for stamp in stamps:
        if stamp not in files:
            raise InputError(
                f"{folder} has no picture called {stamp}, a time stamp of the cameras."
            )
    return ImageFiles(tuple(files[stamp] for stamp in stamps))


def _with_suffix(file: Path) -> Path:
    """Blender's scenes name pictures without their suffix."""
    with_png = file.with_name(f"{file.name}.png")
    return with_png if not file.exists() and with_png.exists() else file


def _read_list(file: Path) -> tuple[Float[ndarray, "f"], list[str]]:
    """Times and names of a list of `timestamp filename`, in the order of time."""
    rows = read_rows(file)
    for row in rows:
        if len(row.words) != 2:
            raise InputError(
                f"{file}, line {row.number} has {len(row.words)} columns instead of 2: timestamp "
                "filename."
            )
    if not rows:
        raise InputError(f"{file} lists no frames.")
    times = np.array([number(file, row.number, row.words[0]) for row in rows])
    order = np.argsort(times, kind="stable")
    return times[order], [rows[i].words[1] for i in order]


def _read_calibration(file: Path) -> Float[ndarray, "1 3 3"]:
    if not file.is_file():
        raise InputError(
            f"{file} is missing: a line 'fx fy cx cy' in pixels, whose centres are whole numbers, "
            "was expected, for instance 525 525 319.5 239.5."
        )
    table = read_table(file, read_rows(file)[:1], "fx fy cx cy")
    fx, fy, cx, cy = table.T
    result = intrinsic_matrices(fx, fy, cx + 0.5, cy + 0.5)
    check_focal(result, lambda i: str(file))
    return result


def _nearest(
    times: Float[ndarray, "f"], among: Float[ndarray, "g"]
) -> tuple[Int[ndarray, "f"], Float[ndarray, "f"]]:
    """Places in `among` nearest to each time, and how far away in time they are."""
    order = np.argsort(among, kind="stable")
    after = np.clip(np.searchsorted(among[order], times), 0, len(among) - 1)
    before = np.maximum(after - 1, 0)
    closer = np.abs(among[order[before]] - times) <= np.abs(among[order[after]] - times)
    place = order[np.where(closer, before, after)]
    return place, np.abs(among[place] - times)
