"""The clips that a command line asks for, each with its camera path."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.cli.recorded_path import (
    RecordedPath,
    placed_at,
    read_recorded_path,
    scene_units,
)
from worldstereo_jax.cli.scene_input import AnyScene, image_size
from worldstereo_jax.data.scene_folders import PanoramaScene, SingleViewScene, Trajectory
from worldstereo_jax.errors import InputError, unknown_name
from worldstereo_jax.geometry.camera_formats import FORMATS, detect_format
from worldstereo_jax.geometry.camera_io import read_camera_json, select_cameras
from worldstereo_jax.geometry.cameras import resize_intrinsics
from worldstereo_jax.geometry.scene_unit import middle_depth
from worldstereo_jax.geometry.trajectories import (
    ease,
    make_path,
    path_names,
    spline_path,
)
from worldstereo_jax.sampling.world import Cameras, WorldMemory


@dataclasses.dataclass(frozen=True)
class PresetPath:
    """A named path; it starts at the memory's first view and turns about what that view sees."""

    name: str
    amplitude: float


@dataclasses.dataclass(frozen=True)
class _CameraFile:
    """A file or folder of cameras, and its format's name in `FORMATS`."""

    file: Path
    format: str


@dataclasses.dataclass(frozen=True)
class CameraChoice:
    """What a command line says of the path; None where it says nothing.

    Attributes:
        camera: file or preset; None for the scene's own paths.
        amplitude: how far a preset goes, 1 when None.
        camera_format: of the file, told by its content when None.
        camera_scale: scene units that one unit of the file is to be; see `scene_units`.
    """

    camera: str | None = None
    amplitude: float | None = None
    camera_format: str | None = None
    camera_scale: float | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> "CameraChoice":
        """The options --camera and those of `add_path_options`."""
        return cls(
            **{field.name: getattr(options, field.name) for field in dataclasses.fields(cls)}
        )


@dataclasses.dataclass(frozen=True)
class Job:
    """One clip to make.

    Attributes:
        name: its folder below --out, "" for --out itself.
        prompt: the caption, "" where the scene has none.
        path: its cameras, or the preset or recording they follow from once the memory is there.
    """

    name: str
    prompt: str
    path: Cameras | PresetPath | RecordedPath


def add_path_options(parser: argparse.ArgumentParser) -> None:
    """Add what may be said of the path that --camera names."""
    parser.add_argument(
        "--camera-format",
        metavar="NAME",
        help=f"of the file: {', '.join(FORMATS)} (default: told by its content)",
    )
    parser.add_argument(
        "--camera-scale",
        type=float,
        metavar="S",
        help="scene units that one unit of a recorded path is (default: 1 for metres; else the "
        "path keeps its proportion to what its first camera looks at, or, where the file does not "
        "tell, goes as far as the path dolly)",
    )
    parser.add_argument(
        "--amplitude",
        type=float,
        metavar="A",
        help="how far a PRESET path goes: 1 is a moderate move, negative mirrors it (default 1)",
    )


def plan_jobs(
    scene: AnyScene,
    own_size: tuple[int, int],
    frames: int,
    choice: CameraChoice,
    trajectories: Sequence[str] = (),
) -> list[Job]:
    """Which clips to make: one along --camera, or the scene's own paths in the official order.

    Args:
        scene: at its working size.
        own_size: (height, width) of the scene's image in its file.
        frames: cameras of a clip.
        choice: what is said of the path.
        trajectories: "<view>/<trajectory>" of a panorama to make, all when empty.

    Raises:
        InputError: naming the argument or file at fault.
    """
    if trajectories and (choice.camera is not None or isinstance(scene, SingleViewScene)):
        raise InputError("--trajectory chooses among the scene's own paths, without --camera")
    if choice.camera is not None:
        path = _read_path(scene, own_size, frames, choice)
        return [Job("", getattr(scene, "prompt", ""), path)]
    if choice.amplitude is not None:
        raise InputError("--amplitude is for the PRESET paths of --camera")
    _refuse_file_options(choice)
    if isinstance(scene, PanoramaScene):
        return [
            Job(_label(t), t.prompt, spread(t.w2c, t.intrinsics, frames))
            for t in _choose(scene, trajectories)
        ]
    if scene.w2c is None:
        raise InputError(
            f"{scene.name} is a bare image: --camera FILE or one of {', '.join(path_names())} "
            "is needed"
        )
    return [Job("", scene.prompt, spread(scene.w2c, scene.intrinsics, frames))]


def cameras_of(job: Job, memory: WorldMemory, frames: int) -> Cameras:
    """The cameras of a job in the world of the memory.

    A preset starts at the memory's first view, with its intrinsics; its pivot is the median depth
    of that view's middle. A recording starts there, too: see `recorded_path`.
    """
    if isinstance(job.path, Cameras):
        return job.path
    stereo = memory.stereo
    if isinstance(job.path, RecordedPath):
        units = scene_units(job.path, stereo.depth[0])
        return _cameras(*placed_at(job.path, units, stereo.w2c[0], stereo.intrinsics[0]))
    path = make_path(
        job.path.name,
        frames,
        amplitude=job.path.amplitude,
        pivot_depth=middle_depth(np.asarray(stereo.depth[0])),
    )
    w2c = np.asarray(path) @ np.asarray(stereo.w2c[0])
    return _cameras(w2c, np.broadcast_to(stereo.intrinsics[0], (frames, 3, 3)))


def units_of(jobs: Sequence[Job], memory: WorldMemory) -> dict[str, float]:
    """How many of the scene's units one of a recording's is, by the names of the recorded jobs.

    Raises:
        InputError: as `scene_units` does.
    """
    return {
        job.name: scene_units(job.path, memory.stereo.depth[0])
        for job in jobs
        if isinstance(job.path, RecordedPath)
    }


def path_through_memory(memory: WorldMemory, choice: CameraChoice, frames: int) -> Cameras:
    """The path that --camera asks for, through the world of a memory alone, for its image size.

    As `plan_jobs` and `cameras_of` lay it when a clip goes on from the memory. A file that names no
    image size is taken to begin with the memory's first view's field of view, as the file of the
    scene does that the memory was begun from.

    Args:
        memory: at least one view must be stored.
        choice: what is said of the path, with a file or preset.
        frames: cameras of the path.

    Raises:
        InputError: naming the argument or file at fault.
    """
    stereo = memory.stereo
    height, width = stereo.images.shape[1:3]
    own_size = (height, width)
    path = _preset_or_file(choice, frames)
    if isinstance(path, _CameraFile) and path.format != "worldstereo":
        path = _recording(path, frames, own_size, own_size, choice.camera_scale)
    if not isinstance(path, _CameraFile):
        return cameras_of(Job("", "", path), memory, frames)
    w2c, intrinsics, size = read_camera_json(path.file)
    if size is None:
        first = np.asarray(stereo.intrinsics[0])
        scale = np.array([first[0, 0], first[1, 1], 1.0], np.float32)
        scale[:2] /= intrinsics[0, [0, 1], [0, 1]]
        scaled = intrinsics * scale[:, None]
    else:
        scaled = np.asarray(resize_intrinsics(intrinsics, size, own_size))
    return spread(w2c, scaled, frames)


def spread(
    w2c: Float[ndarray, "k 4 4"], intrinsics: Float[ndarray, "k 3 3"], frames: int
) -> Cameras:
    """`frames` cameras along a path of any length: evenly chosen ones where it has as many.

    A shorter path is interpolated: a spline through its cameras that starts and stops gently, and
    intrinsics in proportion.
    """
    if len(w2c) >= frames:
        return _cameras(*select_cameras(w2c, intrinsics, frames))
    # The spline is seen from its first camera; put it back where that camera stands.
    path = np.asarray(spline_path(w2c, frames)) @ w2c[0]
    at = ease(np.linspace(0.0, 1.0, frames)) * (len(w2c) - 1)
    before = np.clip(np.floor(at).astype(int), 0, len(w2c) - 2)
    share = (at - before)[:, None, None]
    between = (1 - share) * intrinsics[before] + share * intrinsics[before + 1]
    return _cameras(path, between)


def _cameras(
    w2c: Float[Array | ndarray, "f 4 4"], intrinsics: Float[Array | ndarray, "f 3 3"]
) -> Cameras:
    return Cameras(
        w2c=jnp.asarray(w2c, jnp.float32), intrinsics=jnp.asarray(intrinsics, jnp.float32)
    )


def _read_path(
    scene: AnyScene, own_size: tuple[int, int], frames: int, choice: CameraChoice
) -> Cameras | PresetPath | RecordedPath:
    """The path that --camera asks for.

    The cameras of a camera.json stand in the scene's world; their intrinsics belong to images of
    the size that the file names, or else of the scene's own size. Those of other formats are a
    recording.
    """
    path = _preset_or_file(choice, frames)
    if isinstance(path, PresetPath):
        return path
    size = image_size(scene)
    if path.format != "worldstereo":
        return _recording(path, frames, own_size, size, choice.camera_scale)
    w2c, intrinsics, file_size = read_camera_json(path.file)
    if file_size is None:
        _check_centre(path.file, intrinsics[0], own_size)
    scaled = resize_intrinsics(intrinsics, file_size or own_size, size)
    return spread(w2c, np.asarray(scaled), frames)


def _check_centre(file: Path, intrinsics: Float[ndarray, "3 3"], own_size: tuple[int, int]) -> None:
    """Refuse intrinsics of a file without an image size that plainly belong to another."""
    x, y = (float(v) for v in intrinsics[:2, 2])
    height, width = own_size
    if not (0 < x < width and 0 < y < height):
        raise InputError(
            f"{file} names no image size, and its principal point ({x:g}, {y:g}) lies outside of "
            f"the image of {width}x{height} pixels: its intrinsics belong to another size; add "
            "height and width to the file"
        )


def _refuse_file_options(choice: CameraChoice) -> None:
    if choice.camera_format is not None or choice.camera_scale is not None:
        raise InputError("--camera-format and --camera-scale are for a FILE of --camera")


def _preset_or_file(choice: CameraChoice, frames: int) -> PresetPath | _CameraFile:
    """What --camera names; a preset is checked before anything else."""
    camera, scale, amplitude = choice.camera, choice.camera_scale, choice.amplitude
    assert camera is not None
    if camera in path_names():
        _refuse_file_options(choice)
        path = PresetPath(camera, 1.0 if amplitude is None else amplitude)
        make_path(path.name, frames, amplitude=path.amplitude)
        return path
    file = Path(camera)
    if not (file.suffix or file.exists() or len(file.parts) > 1):
        raise InputError(unknown_name("camera path", camera, path_names()))
    if amplitude is not None:
        raise InputError("--amplitude is for the PRESET paths of --camera, not for a file")
    if scale is not None and not (np.isfinite(scale) and scale > 0):
        raise InputError(f"--camera-scale must be a positive number, not {scale}")
    if choice.camera_format is not None and choice.camera_format not in FORMATS:
        raise InputError(unknown_name("camera format", choice.camera_format, FORMATS))
    name = choice.camera_format or detect_format(file)
    if name == "worldstereo" and scale is not None:
        raise InputError(
            f"--camera-scale is for a path recorded elsewhere; the cameras of {file} stand in the "
            "scene's world"
        )
    return _CameraFile(file, name)


def _recording(
    path: _CameraFile,
    frames: int,
    own_size: tuple[int, int],
    size: tuple[int, int],
    scale: float | None,
) -> RecordedPath:
    """A path recorded elsewhere, of `frames` cameras; sizes as `read_recorded_path` takes them."""
    recorded = read_recorded_path(path.file, path.format, own_size=own_size, size=size, scale=scale)
    return _thinned(recorded, frames)


def _thinned(path: RecordedPath, frames: int) -> RecordedPath:
    """The path of `frames` cameras; see `spread`."""
    lenses = path.lenses
    if lenses is None:
        lenses = np.broadcast_to(np.eye(3), (len(path.w2c), 3, 3))
    cameras = spread(path.w2c, lenses, frames)
    return dataclasses.replace(
        path,
        w2c=np.asarray(cameras.w2c),
        lenses=None if path.lenses is None else np.asarray(cameras.intrinsics),
    )


def _label(trajectory: Trajectory) -> str:
    return f"{trajectory.view}/{trajectory.name}"


def _choose(scene: PanoramaScene, wanted: Sequence[str]) -> list[Trajectory]:
    """The wanted trajectories in the official order, all when none is named."""
    known = {_label(trajectory): trajectory for trajectory in scene.trajectories}
    for name in wanted:
        if name not in known:
            raise InputError(unknown_name("trajectory", name, known))
    return [trajectory for label, trajectory in known.items() if not wanted or label in wanted]
