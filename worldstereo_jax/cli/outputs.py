"""The files a finished run leaves in its folder."""

import contextlib
import functools
import hashlib
import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path

import jax
import numpy as np

import worldstereo_jax
from pallas_kernels.compat import quick_compiler_options
from worldstereo_jax.cli.arguments import check_can_be_made
from worldstereo_jax.data.images import write_uint8_image
from worldstereo_jax.data.point_cloud_io import write_point_cloud
from worldstereo_jax.data.video_io import write_mask_video, write_video
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.bank_agreement import agreement_picture, clip_agreement
from worldstereo_jax.evaluation.contact_sheet import contact_sheet
from worldstereo_jax.files import atomic_folder
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_cloud import SurfaceCloud, surface_cloud
from worldstereo_jax.memory.entry_folder import entry_fields
from worldstereo_jax.memory.folder import save_memory
from worldstereo_jax.sampling.official_rollout import OfficialClip
from worldstereo_jax.sampling.rollout import Clip
from worldstereo_jax.sampling.world import WorldMemory

KEYFRAMES_PER_SECOND = 6
"""Of clips whose frames are keyframes, slow enough to be looked at."""
_COMPARED = 4  # frames beside the entries
RUN_FILE = "run.json"
_OF_A_CLIP = frozenset(
    {
        "video.mp4",
        "render.mp4",
        "render_mask.mp4",
        "contact_sheet.png",
        "agreement.png",
        "cameras.json",
    }
)
_OF_A_RUN = frozenset({RUN_FILE, "memory", "points.ply", "surface.ply"})
# Of the demo, what `memory inspect` draws, and what `evaluate` adds.
_OF_OTHERS = frozenset(
    {
        "first",
        "revisit",
        "comparison.png",
        "memory.png",
        "memory_agreement.png",
        "evaluation.json",
        "evaluation.png",
        "evaluation_truth.png",
    }
)


def check_output_folder(folder: Path, *, overwrite: bool) -> None:
    """Refuse a folder that holds something, or in which nothing can be written.

    With `overwrite` a folder is accepted that holds an earlier run's results (a run.json) and
    nothing else; never another one, since all it holds would be lost.

    Raises:
        InputError: naming the folder.
    """
    whole = folder.resolve()
    if whole == Path.cwd() or whole in Path.cwd().parents:
        raise InputError(f"--out {folder} holds the current folder; name a new one")
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--out {folder} is a file; expected a folder")
    if folder.is_dir() and any(folder.iterdir()):
        if not overwrite:
            raise InputError(
                f"--out {folder} already holds files; choose another, or add --overwrite to "
                "replace an earlier run's"
            )
        if not (folder / RUN_FILE).is_file():
            raise InputError(
                f"--out {folder} holds files of something else than an earlier run (there is no "
                f"{RUN_FILE}); choose another folder"
            )
        if foreign := _foreign_names(folder):
            raise InputError(
                f"--out {folder} also holds {foreign[0]}, which no run wrote and --overwrite would "
                "remove; move it, or choose another folder"
            )
    check_can_be_made(folder, "--out")


@contextlib.contextmanager
def results_folder(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A new folder for a run's results, which takes the place of `folder` once the block is done.

    Raises:
        InputError: when another command has put its results there meanwhile, see
            `check_output_folder`; they stay.
    """
    with atomic_folder(folder) as temporary:
        yield temporary
        check_output_folder(folder, overwrite=overwrite)


def _foreign_names(folder: Path) -> list[str]:
    """What lies in the folder of a run beside the results that its record tells of."""
    try:
        clips = json.loads((folder / RUN_FILE).read_text()).get("clips", [])
        own = {Path(str(clip)).parts[0] for clip in clips if clip}
    except (ValueError, AttributeError, TypeError) as error:
        raise InputError(f"{folder / RUN_FILE} is no record of a run: {error}") from error
    own |= _OF_A_CLIP | _OF_A_RUN | _OF_OTHERS
    return sorted(path.name for path in folder.iterdir() if path.name not in own)


def write_clip(
    folder: Path,
    clip: Clip | OfficialClip,
    title: str,
    *,
    frames_per_second: int = KEYFRAMES_PER_SECOND,
) -> None:
    """video.mp4, render.mp4, render_mask.mp4, contact_sheet.png and cameras.json of one clip."""
    folder.mkdir(parents=True, exist_ok=True)
    video, depth = np.asarray(clip.video), np.asarray(clip.depth)
    render = np.asarray(clip.guidance.render_image)
    mask = np.asarray(clip.guidance.render_mask)[..., None]
    write_video(folder / "video.mp4", video, frames_per_second=frames_per_second)
    write_video(folder / "render.mp4", render, frames_per_second=frames_per_second)
    write_mask_video(folder / "render_mask.mp4", mask, frames_per_second=frames_per_second)
    # The first render is the picture that the clip starts from.
    sheet = contact_sheet(render[0], render, mask, video, depth, title=title)
    write_uint8_image(folder / "contact_sheet.png", sheet)
    write_cameras_json(
        folder / "cameras.json",
        np.asarray(clip.cameras.w2c),
        np.asarray(clip.cameras.intrinsics),
        (video.shape[1], video.shape[2]),
    )


def write_agreement(folder: Path, clip: Clip, told: EntryBank) -> float | None:
    """agreement.png: frames of a clip beside the entries it was made from, and their difference.

    Args:
        folder: of the clip.
        clip: finished.
        told: the entries before the clip.

    Returns:
        The mean difference of the frames drawn, 0 .. 2 (row S25); None when the entries show
        nothing from there.
    """
    chosen = np.unique(np.linspace(0, len(clip.video) - 1, _COMPARED).astype(int))
    video = clip.video[chosen]
    cameras = clip.cameras.w2c[chosen], clip.cameras.intrinsics[chosen]
    found = _compiled_agreement()(video, *cameras, told)
    picture = agreement_picture(
        np.asarray(video), found, names=[f"frame {number}" for number in chosen]
    )
    write_uint8_image(folder / "agreement.png", picture)
    return float(found.mean()) if bool(found.compared.any()) else None


@functools.cache
def _compiled_agreement():
    # Runs once for each clip, so it should be ready soon.
    return jax.jit(clip_agreement, compiler_options=quick_compiler_options())


def write_memory(folder: Path, memory: WorldMemory, model: str) -> None:
    """memory/ (loadable with --memory) and the clouds of both memories.

    points.ply is the global memory; surface.ply the surfaces of the stereo memory's entries, with
    normals (row S27).
    """
    save_world(folder / "memory", memory, model)
    points = jax.tree.map(np.asarray, memory.points)
    write_point_cloud(folder / "points.ply", points.positions, points.colors, points.valid)
    write_surface(folder / "surface.ply", surface_cloud(memory.entries))


def write_surface(path: Path, cloud: SurfaceCloud) -> int:
    """A reconstruction as PLY; returns how many points."""
    return write_point_cloud(path, cloud.positions, cloud.colors, normals=cloud.normals)


def save_world(folder: Path, memory: WorldMemory, model: str) -> None:
    """Points, keyframes and entries as a memory folder."""
    save_memory(
        folder, memory.points, memory.stereo, model=model, optional=entry_fields(memory.entries)
    )


def memory_counts(memory: WorldMemory) -> dict[str, int]:
    """What both memories hold, and what found no room, for run.json."""
    return {
        "points": int(memory.points.count),
        "keyframes": int(memory.stereo.count),
        "entries": int(memory.entries.count),
        "points without room": int(memory.points.overflow),
        "keyframes without room": int(memory.stereo.overflow),
        "entries without room": int(memory.entries.overflow),
    }


def params_hash(params) -> str:
    """SHA-256 over all parameters in the order of their paths: names the model in run.json."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        digest.update(jax.tree_util.keystr(path).encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def write_run(folder: Path, command: str, details: Mapping[str, object]) -> None:
    """run.json: what was asked, with which versions, and how long it took."""
    record = {
        "command": f"worldstereo {command}",
        **details,
        "versions": {
            "worldstereo_jax": worldstereo_jax.__version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("jax", "jaxlib", "flax", "numpy")},
        },
        "devices": [str(device) for device in jax.devices()],
    }
    (folder / RUN_FILE).write_text(json.dumps(record, indent=1, default=str) + "\n")
