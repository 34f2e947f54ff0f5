"""Which frames of posed video become a training clip, and which the views that it attends to."""

import dataclasses
from collections.abc import Callable, Iterable

import numpy as np

from worldstereo_jax.array_types import Float, Int, ndarray
from worldstereo_jax.data.clip_overlap import coarse_size, overlaps, shown_again
from worldstereo_jax.data.depth_io import resize_depth
from worldstereo_jax.data.posed_clips import PosedClip, split_clip

_CANDIDATES = 8  # frames tried for each view that is wanted


@dataclasses.dataclass(frozen=True)
class Window:
    """Frames of a video, by their places in it.

    Attributes:
        video: where they are from.
        frames: of the clip.
        views: from elsewhere in the video, in random order.
    """

    video: PosedClip
    frames: Int[ndarray, "f"]
    views: Int[ndarray, "r"]


def draw_window(
    video: PosedClip, frames: int, views: int, rng: np.random.Generator, *, spread: bool
) -> Window:
    """A clip of a video at random, and at most `views` of its other frames; see `split_clip`."""
    chosen, others = split_clip(len(video), frames, rng, spread=spread)
    return Window(video, chosen, rng.permutation(others)[:views])


def overlapping_window(
    drawn: Iterable[Window],
    first_depth: Callable[[Window], Float[ndarray, "h w"]],
    wanted: tuple[float, float],
) -> Window | None:
    """The first of some windows whose first frame and the others overlap as `wanted`, or None.

    Of the frames after the first the one that shows least of it must show a share within `wanted`.
    Views remain where they show such a share, too. See `clip_overlap.shown_again`.

    Args:
        drawn: windows; more views than needed may be in each.
        first_depth: depth of a window's first frame at the working size, known or estimated.
        wanted: least and greatest share.
    """
    for window in drawn:
        depth = first_depth(window)
        if not overlaps(_shares(window, depth, window.frames[1:]), wanted):
            continue
        shown = _shares(window, depth, window.views)
        near = (shown >= wanted[0]) & (shown <= wanted[1])
        return dataclasses.replace(window, views=window.views[near])
    return None


def candidates(views: int) -> int:
    """How many views to draw, so that as many as `views` may overlap."""
    return _CANDIDATES * views


def _shares(
    window: Window, first_depth: Float[ndarray, "h w"], chosen: Int[ndarray, "k"]
) -> Float[ndarray, "k"]:
    """Share of the window's first frame that some frames of the video show."""
    size = coarse_size(*first_depth.shape)
    places = [int(place) for place in (window.frames[0], *chosen)]
    lenses = window.video.lenses(places, size)
    known = window.video.depth(places, size)
    shares = shown_again(resize_depth(first_depth, size), window.video.w2c[places], lenses, known)
    return shares[1:]
