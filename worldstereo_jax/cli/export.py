"""`worldstereo export`: a run's frames, cameras and points, for other programs to go on from.

colmap: images/ and sparse/0/, which COLMAP, gsplat and Gaussian splatting read. nerfstudio:
transforms.json, images/ and points.ply. worldmirror: frames and cameras for feed-forward
reconstruction (HY-World 2.0).
"""

import argparse
from pathlib import Path

import numpy as np

from worldstereo_jax.cli.arguments import ArgumentParser, check_new
from worldstereo_jax.cli.finished_run import VIDEO, clip_folders, read_clip, run_world
from worldstereo_jax.cli.memory_input import StoredMemory, memory_folder, open_memory
from worldstereo_jax.data.colmap_export import export_colmap
from worldstereo_jax.data.export import (
    ExportPoints,
    ExportView,
    export_world_mirror,
    panorama_camera_id,
)
from worldstereo_jax.data.nerfstudio_export import export_nerfstudio
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.finished_clip import stored_frames
from worldstereo_jax.memory.entry_cloud import surface_cloud
from worldstereo_jax.memory.folder import is_memory
from worldstereo_jax.sampling.world import WorldMemory

FORMATS = ("colmap", "nerfstudio", "worldmirror")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="worldstereo export", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("folder", type=Path, metavar="DIR", help="a run's results, or a memory/ folder alone")
    add("target", type=Path, metavar="DEST", help="a new folder")
    add("--to", choices=FORMATS, required=True, help="the layout")
    add(
        "--views",
        choices=("all", "memory"),
        default="all",
        help="every frame of the clips and the other views of the memory (default), or the "
        "memory's views alone, which no video's losses have gone through",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Read, collect, write."""
    check_new(options.target, "DEST")
    world = _world(options.folder)
    views = _views(options.folder, world.memory, with_clips=options.views == "all")
    if options.to == "worldmirror":
        target = export_world_mirror(options.target, world.model, views)
        print(f"{len(views):,} views")
        print(target)
        return
    points, kind = _points(world.memory)
    write = export_colmap if options.to == "colmap" else export_nerfstudio
    write(options.target, views, points if len(points.positions) else None)
    print(f"{len(views):,} views, {len(points.positions):,} points of {kind}")
    print(options.target)


def _world(folder: Path) -> StoredMemory:
    """The memory of a run's folder, of a clip's, or of a memory folder itself."""
    if is_memory(folder):
        return open_memory(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; a run's results were expected")
    if is_memory(memory_folder(folder)) or (folder / VIDEO).is_file():
        found = run_world(folder)
        if found is not None:
            return found
    raise InputError(f"{folder}: there is no memory of its run")


def _views(folder: Path, memory: WorldMemory, *, with_clips: bool) -> list[ExportView]:
    """Frames of the clips, and the keyframes that are none of them.

    Ids are those of the official code: of a panorama's trajectories <view>-<trajectory>-<frame>.
    """
    stereo, found = memory.stereo, []
    slots = set(np.flatnonzero(np.asarray(stereo.valid)).tolist())
    clips = [] if is_memory(folder) or not with_clips else clip_folders(folder)
    for place in clips:
        clip = read_clip(place)
        stored = stored_frames(stereo, clip)
        slots -= stored.keys()
        # As it was before it went through H.264.
        whole = {frame: np.asarray(stereo.images[slot]) for slot, frame in stored.items()}
        parts = [part.replace("-", "_") for part in place.relative_to(folder).parts] or ["clip"]
        for i, (image, w2c, lens) in enumerate(zip(*clip, strict=True)):
            name = "-".join((*parts, f"{i:04d}"))
            found.append(ExportView(name, whole.get(i, np.asarray(image)), w2c, lens))
    names = {0: panorama_camera_id}
    return [
        ExportView(
            names.get(int(stereo.source[slot]), "stored-{:04d}".format)(slot),
            np.asarray(stereo.images[slot]),
            np.asarray(stereo.w2c[slot]),
            np.asarray(stereo.intrinsics[slot]),
        )
        for slot in sorted(slots)
    ] + found


def _points(memory: WorldMemory) -> tuple[ExportPoints, str]:
    """Points of the entries' surfaces, which know depth best, else of the global memory; whose."""
    if int(memory.entries.count):
        cloud = surface_cloud(memory.entries)
        if len(cloud.positions):
            return ExportPoints(cloud.positions, cloud.colors), "the entries' surfaces"
    keep = np.asarray(memory.points.valid)
    points, colors = (np.asarray(x)[keep] for x in (memory.points.positions, memory.points.colors))
    return ExportPoints(points, colors), "the global memory"
