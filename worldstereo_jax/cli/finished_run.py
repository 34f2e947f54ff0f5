"""What a finished run has left: its clips and their memory."""

from pathlib import Path

import numpy as np

from worldstereo_jax.cli.memory_input import StoredMemory, open_memory
from worldstereo_jax.data.video_io import read_video
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.finished_clip import FinishedClip
from worldstereo_jax.geometry.camera_io import read_camera_json
from worldstereo_jax.memory.folder import is_memory

VIDEO, CAMERAS = "video.mp4", "cameras.json"


def clip_folders(folder: Path) -> list[Path]:
    """The folders that hold a clip: this one, or those up to two levels below it."""
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder; a run's results were expected")
    if (folder / VIDEO).is_file():
        return [folder]
    found = sorted(
        path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{VIDEO}")
    )
    if not found:
        raise InputError(f"{folder} holds no {VIDEO}, in itself or in a clip's folder")
    return found


def run_world(folder: Path) -> StoredMemory | None:
    """The memory beside a clip, or beside one of the two folders it lies in."""
    for place in (folder, *folder.resolve().parents[:2]):
        inside = place / "memory"
        if is_memory(inside):
            return open_memory(inside)
    return None


def read_clip(folder: Path, *, needs_cameras: bool = True) -> FinishedClip:
    """A clip's frames and cameras; without the file cameras stand still, if none are needed."""
    video = read_video(folder / VIDEO)
    if not needs_cameras and not (folder / CAMERAS).is_file():
        count = len(video)
        return FinishedClip(video, np.stack([np.eye(4)] * count), np.stack([np.eye(3)] * count))
    w2c, intrinsics, size = read_camera_json(folder / CAMERAS)
    if len(w2c) != len(video):
        raise InputError(
            f"{folder / CAMERAS} holds {len(w2c)} cameras, but {VIDEO} {len(video)} frames"
        )
    if size is not None and size != video.shape[1:3]:
        raise InputError(
            f"{folder / CAMERAS} is of images of {size[0]} x {size[1]} pixels, but {VIDEO} has "
            f"{video.shape[1]} x {video.shape[2]}"
        )
    return FinishedClip(video, w2c, intrinsics)
