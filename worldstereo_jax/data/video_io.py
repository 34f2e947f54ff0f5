"""Videos: H.264 in mp4, written so that the same frames give the same bytes.

In memory a clip is float32 [f, h, w, 3] in [-1, 1]; a mask clip is float32 [f, h, w, 1], 1 = hole.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import av
import numpy as np
from av.error import FFmpegError
from tqdm import tqdm

from worldstereo_jax.array_types import Array, Float, UInt8, ndarray
from worldstereo_jax.data.images import from_uint8, to_uint8
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_write

FRAMES_PER_SECOND = 16
_QUALITY = "10"
_LEAST_STEP = 1 / 120  # s
# The macroblock tree of x264 reads memory it has not written: its bytes change from call to call.
_REPEATABLE = {"x264-params": "mbtree=0"}


def write_video(
    path: str | os.PathLike[str],
    frames: Float[Array | ndarray, "f h w 3"],
    *,
    frames_per_second: int = FRAMES_PER_SECOND,
    progress: str | None = None,
) -> None:
    """Write a clip in [-1, 1] as H.264 (yuv420p, nearly transparent quality) in an mp4 file.

    One encoder thread and no time stamps of the wall clock: equal frames give equal bytes. The file
    appears only when complete. `progress` labels a progress bar. Raises InputError when height or
    width is odd, which the pixel format cannot hold.
    """
    _write(path, to_uint8(frames), frames_per_second, progress)


def write_mask_video(
    path: str | os.PathLike[str],
    masks: Float[Array | ndarray, "f h w 1"],
    *,
    frames_per_second: int = FRAMES_PER_SECOND,
    progress: str | None = None,
) -> None:
    """Write masks (1 = hole, drawn white; 0 = covered, black) like `write_video`."""
    binary = (np.asarray(masks) > 0.5).astype(np.uint8) * np.uint8(255)
    _write(path, np.repeat(binary, 3, axis=-1), frames_per_second, progress)


def read_video(path: str | os.PathLike[str]) -> Float[ndarray, "f h w 3"]:
    """All frames of a video, [f, h, w, 3] in [-1, 1]; InputError when there are none to read."""
    return np.stack([from_uint8(frame) for frame in _decode(path)])


def read_video_frames(
    path: str | os.PathLike[str], chosen: Sequence[int], count: int
) -> list[UInt8[ndarray, "h w 3"]]:
    """Some frames of a video that must hold `count`, in the order asked for, 0..255.

    No more frames than those are kept in memory. Raises InputError for a video of another length.
    """
    wanted, found, number = set(chosen), {}, -1
    for number, frame in enumerate(_decode(path)):
        if number in wanted:
            found[number] = frame
    if number + 1 != count:
        raise InputError(f"{path} holds {number + 1} frames, but {count} cameras belong to it.")
    return [found[index] for index in chosen]


def read_video_times(
    path: str | os.PathLike[str], times: Sequence[float]
) -> list[UInt8[ndarray, "h w 3"]]:
    """The frames of a video that are nearest to some times, in the order asked for, 0..255.

    No more frames than those are kept in memory, and none is decoded beyond the last of them.

    Args:
        path: the video.
        times: seconds from its first frame.

    Raises:
        InputError: for a video that ends before one of the times, or whose nearest frame is more
            than a frame away.
    """
    best: dict[float, tuple[float, UInt8[ndarray, "h w 3"]]] = {}
    latest, step, shown = max(times), 0.0, -1.0
    for at, frame in _decode_timed(path):
        step, shown = at - shown if shown >= 0 else 0.0, at
        for time in set(times):
            miss = abs(at - time)
            if time not in best or miss < best[time][0]:
                best[time] = (miss, frame)
        if at > latest:
            break
    for time in times:
        if best[time][0] > max(step, _LEAST_STEP):
            raise InputError(f"{path} shows no frame at {time:g} s.")
    return [best[time][1] for time in times]


def read_mask_video(path: str | os.PathLike[str]) -> Float[ndarray, "f h w 1"]:
    """All masks of a video, [f, h, w, 1], binarised: 1 where the mean of RGB is above one half."""
    return np.stack(
        [
            (frame.astype(np.float32).mean(-1, keepdims=True) > 127.5).astype(np.float32)
            for frame in _decode(path)
        ]
    )


def _write(
    path: str | os.PathLike[str],
    frames: UInt8[ndarray, "f h w 3"],
    frames_per_second: int,
    progress: str | None,
) -> None:
    count, height, width = frames.shape[:3]
    if count < 1:
        raise InputError(f"{path}: a video needs at least one frame.")
    if height % 2 or width % 2:
        raise InputError(
            f"{path}: a video's height and width must be even, not {height} x {width}."
        )
    with (
        atomic_write(path) as temporary,
        av.open(str(temporary), "w", format="mp4", options={"fflags": "+bitexact"}) as container,
    ):
        stream = container.add_stream(
            "libx264",
            rate=frames_per_second,
            options={"crf": _QUALITY, "preset": "medium", "threads": "1"} | _REPEATABLE,
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.thread_count = 1
        for frame in tqdm(frames, desc=progress, unit="frame", disable=progress is None):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


def _decode(path: str | os.PathLike[str]) -> Iterator[UInt8[ndarray, "h w 3"]]:
    return (frame for _, frame in _decode_timed(path))


def _decode_timed(
    path: str | os.PathLike[str],
) -> Iterator[tuple[float, UInt8[ndarray, "h w 3"]]]:
    """Frames with their times, in seconds from the first."""
    path, start = Path(path), None
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    count = 0
    try:
        with av.open(str(path)) as container:
            if not container.streams.video:
                raise InputError(f"{path} holds no video.")
            for frame in container.decode(video=0):
                count += 1
                at = 0.0 if frame.time is None else float(frame.time)
                start = at if start is None else start
                yield at - start, frame.to_ndarray(format="rgb24")
    except FFmpegError as error:
        raise InputError(f"{path} cannot be read as a video: {error.strerror}.") from error
    if count == 0:
        raise InputError(f"{path} holds no frames.")
