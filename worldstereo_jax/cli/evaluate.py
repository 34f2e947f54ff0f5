"""`worldstereo evaluate`: the clips of a finished run, measured.

Against what the memory knew before each clip (row S25), against itself (flicker), an earlier clip
of the same memory, the true video, and cameras that a tool estimated from its frames, as far as
these are given. Prints a table; writes evaluation.json, and pictures of where clip and memory, or
clip and truth, differ.
"""

import argparse
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Float, UInt8, ndarray
from worldstereo_jax.cli.arguments import ArgumentParser, check_can_be_made
from worldstereo_jax.cli.finished_run import (
    CAMERAS,
    VIDEO,
    clip_folders,
    read_clip,
    run_world,
)
from worldstereo_jax.cli.memory_input import StoredMemory
from worldstereo_jax.cli.run_record import rollout_of_run
from worldstereo_jax.data.images import read_image, resize_image, write_uint8_image
from worldstereo_jax.data.video_io import read_video
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.bank_agreement import agreement_picture
from worldstereo_jax.evaluation.comparison_sheet import comparison_sheet
from worldstereo_jax.evaluation.finished_clip import (
    FinishedClip,
    agreement_with,
    bank_depth,
    camera_scores,
    flicker_scores,
    number_of_clip,
    revisit_scores,
)
from worldstereo_jax.evaluation.lpips import LpipsWeights, load_lpips
from worldstereo_jax.evaluation.memory_gain import frame_metrics
from worldstereo_jax.evaluation.report import Table
from worldstereo_jax.files import atomic_write
from worldstereo_jax.geometry.camera_formats import read_cameras
from worldstereo_jax.sampling.world_edit import replay_keyframes

RESULT, PICTURE, TRUTH_PICTURE = "evaluation.json", "evaluation.png", "evaluation_truth.png"
_PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="worldstereo evaluate", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="a run's results, or one of its clips' folders")
    add(
        "--truth",
        type=Path,
        metavar="VIDEO|FRAMES",
        help="what the clip should show: a video or a folder of images of as many frames, resized "
        "to the clip's size; PSNR, SSIM, MS-SSIM and GMSD over the frames after the first",
    )
    add("--lpips", type=Path, metavar="FILE", help="weights of LPIPS, which adds it to --truth")
    add(
        "--earlier",
        type=Path,
        metavar="DIR",
        help="an earlier clip through the same memory: how well the pixels that pass over the "
        "same surfaces, as the memory knows them, repeat it",
    )
    add(
        "--estimated-cameras",
        type=Path,
        metavar="FILE",
        help="cameras that COLMAP or another tool found from the clip's frames, in any format of "
        "worldstereo cameras: their error against the path",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Measure, print, write."""
    folders = clip_folders(options.folder)
    if options.lpips is not None and options.truth is None:
        raise InputError("--lpips is for --truth")
    for name in ("truth", "earlier", "estimated_cameras"):
        if getattr(options, name) is not None and len(folders) > 1:
            raise InputError(
                f"--{name.replace('_', '-')} is for one clip, and {options.folder} holds "
                f"{len(folders)}; name the folder of one, such as {folders[0]}"
            )
    check_can_be_made(options.folder / RESULT, "evaluation.json in")
    weights = None if options.lpips is None else load_lpips(options.lpips)
    world = run_world(folders[0])
    if world is None and options.truth is None and options.estimated_cameras is None:
        raise InputError(f"{options.folder}: there is no memory of its run, and no --truth given")
    if options.earlier is not None and world is None:
        raise InputError(f"--earlier needs the memory of {options.folder}, which is not there")
    scores: dict[str, dict[str, float]] = {}
    pictures: dict[Path, UInt8[ndarray, "height width 3"]] = {}
    for folder in folders:
        clip = read_clip(folder, needs_cameras=world is not None)
        found: dict[str, float] = {}
        if world is not None:
            why_not = _incomparable(clip, world, folder)
            if why_not is None:
                found |= _by_memory(clip, world, folder, pictures)
            elif options.truth is None and options.estimated_cameras is None:
                raise InputError(why_not)
            else:
                print(f"worldstereo evaluate: {why_not}; that is left out", file=sys.stderr)
        if options.earlier is not None and world is not None:
            found |= _by_earlier(clip, world, options.earlier)
        if options.truth is not None:
            found |= _by_truth(clip, options.truth, weights, folder, pictures)
        if options.estimated_cameras is not None:
            found |= _by_cameras(clip, options.estimated_cameras, folder)
        scores[folder.relative_to(options.folder).as_posix()] = found
    _write(options, world, scores, pictures)
    print(_table(scores))
    for path in (*pictures, options.folder / RESULT):
        print(path)


def _incomparable(clip: FinishedClip, world: StoredMemory, folder: Path) -> str | None:
    """Why a clip cannot be compared with the memory, None where it can."""
    if number_of_clip(world.memory.stereo, clip) is None:
        return (
            f"{world.folder} holds no frame of {folder / VIDEO}: the memory is not of its run, or "
            "its views were removed"
        )
    if not int(world.memory.entries.count):
        return f"{world.folder} knows no surfaces, with which {folder / VIDEO} could be compared"
    return None


def _by_memory(
    clip: FinishedClip, world: StoredMemory, folder: Path, pictures: dict[Path, Any]
) -> dict[str, float]:
    """Against what was known before the clip, and flicker over the surfaces known now."""
    memory = world.memory
    number = number_of_clip(memory.stereo, clip)
    assert number is not None
    keep = np.asarray(memory.stereo.source) < number
    before = replay_keyframes(rollout_of_run(world.folder), memory, keep)
    found, agreement = agreement_with(clip, before.entries)
    pictures[folder / PICTURE] = agreement_picture(np.asarray(clip.video), agreement)
    return found | flicker_scores(clip, bank_depth(clip, memory.entries))


def _by_earlier(clip: FinishedClip, world: StoredMemory, folder: Path) -> dict[str, float]:
    earlier = read_clip(folder)
    number = number_of_clip(world.memory.stereo, earlier)
    if number is None:
        raise InputError(
            f"--earlier {folder}: {world.folder} holds no frame of it, so the clips are not of one "
            "memory"
        )
    if not int(world.memory.entries.count):
        raise InputError(f"--earlier {folder}: {world.folder} knows no surfaces to compare at")
    return revisit_scores(clip, earlier, world.memory.entries)


def _by_truth(
    clip: FinishedClip,
    truth: Path,
    weights: LpipsWeights | None,
    folder: Path,
    pictures: dict[Path, Any],
) -> dict[str, float]:
    frames = _read_truth(truth, (clip.video.shape[1], clip.video.shape[2]))
    if len(frames) != len(clip.video):
        raise InputError(
            f"--truth {truth} holds {len(frames)} frames, but {folder / VIDEO} {len(clip.video)}"
        )
    videos = {"truth": frames, "clip": clip.video}
    pictures[folder / TRUTH_PICTURE] = comparison_sheet(videos, reference="truth")
    return frame_metrics(jnp.asarray(clip.video), jnp.asarray(frames), lpips_weights=weights)


def _read_truth(path: Path, size: tuple[int, int]) -> Float[ndarray, "f h w 3"]:
    """Frames of a video or of a folder of images, in the order of their names, at a size."""
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in _PICTURES)
        if not files:
            raise InputError(f"--truth {path} holds no image ({', '.join(_PICTURES)})")
        frames = [read_image(file) for file in files]
    else:
        frames = list(read_video(path))
    return np.stack([resize_image(frame, size) for frame in frames])


def _by_cameras(clip: FinishedClip, file: Path, folder: Path) -> dict[str, float]:
    if not (folder / CAMERAS).is_file():
        raise InputError(f"--estimated-cameras needs {folder / CAMERAS}, which is not there")
    size = (clip.video.shape[1], clip.video.shape[2])
    found = read_cameras(file, size=size).w2c
    if len(found) != len(clip.w2c):
        raise InputError(
            f"--estimated-cameras {file} holds {len(found)} cameras, but the clip has "
            f"{len(clip.w2c)}: every frame must have one"
        )
    return camera_scores(np.asarray(found, np.float32), clip.w2c)


def _write(
    options: argparse.Namespace,
    world: StoredMemory | None,
    scores: Mapping[str, Mapping[str, float]],
    pictures: Mapping[Path, UInt8[ndarray, "height width 3"]],
) -> None:
    for path, picture in pictures.items():
        write_uint8_image(path, picture)
    given = {name: value and str(value) for name, value in vars(options).items()}
    content = {
        "arguments": given,
        "memory": world and str(world.folder),
        "clips": {
            # Nothing was compared: json has no NaN.
            clip: {name: x if math.isfinite(x) else None for name, x in found.items()}
            for clip, found in scores.items()
        },
    }
    with atomic_write(options.folder / RESULT) as temporary:
        temporary.write_text(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _table(scores: Mapping[str, Mapping[str, float]]) -> str:
    """A row per measure, a column per clip."""
    measures = list(dict.fromkeys(name for found in scores.values() for name in found))
    names = ["clip" if name == "." else name for name in scores]
    rows = [
        [name, *(f"{found[name]:.4g}" if name in found else "" for found in scores.values())]
        for name in measures
    ]
    return Table(["", *names], rows).markdown()
