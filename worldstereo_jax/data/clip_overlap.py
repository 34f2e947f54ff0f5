"""How much of a clip's first frame its other frames, and other views, still show.

Published training pairs overlap by 30 to 90 %: less has nothing in common, more teaches nothing.
"""

import numpy as np

from worldstereo_jax.array_types import Float, ndarray

OVERLAP = (0.3, 0.9)
"""The published range."""

# How far behind a view's own surface a point may lie and still be seen, as a share: coarse pixels
# and rounded maps do not agree exactly.
_BEHIND = 1.05
_ROWS = 32


def coarse_size(height: int, width: int) -> tuple[int, int]:
    """(height, width) at which overlap is measured: at most 32 rows."""
    rows = min(height, _ROWS)
    return rows, max(1, round(width * rows / height))


def shown_again(
    first_depth: Float[ndarray, "h w"],
    w2c: Float[ndarray, "f 4 4"],
    intrinsics: Float[ndarray, "f 3 3"],
    depth: Float[ndarray, "f h w"] | None = None,
) -> Float[ndarray, "f"]:
    """Share of a first frame's surface that each frame shows.

    Every pixel of the first frame whose depth is known is a point. A frame shows it when it falls
    inside the frame's image, before the camera, and, where the frame's own depth is known there,
    no more than 5 % behind that. Frames without depth hide nothing, so that their share is an
    upper bound.

    Args:
        first_depth: of the first frame, 0 where unknown.
        w2c: of the frames, the first one among them at place 0.
        intrinsics: in pixels of `first_depth`'s size, which all frames have.
        depth: of the frames, 0 where unknown; None where no frame has any.
    """
    height, width = first_depth.shape
    row, column = np.nonzero(first_depth > 0)
    if len(row) == 0:
        return np.zeros(len(w2c), np.float32)
    pixels = np.stack([column + 0.5, row + 0.5, np.ones(len(row))], -1)
    rays = np.linalg.solve(intrinsics[0].astype(np.float64), pixels.T).T
    local = rays * first_depth[row, column][:, None]
    start = w2c[0].astype(np.float64)
    points = (local - start[:3, 3]) @ start[:3, :3]
    shares = []
    for i, (pose, k) in enumerate(zip(w2c.astype(np.float64), intrinsics, strict=True)):
        seen = points @ pose[:3, :3].T + pose[:3, 3]
        z = seen[:, 2]
        places = (seen @ k.T.astype(np.float64))[:, :2] / np.where(z > 0, z, 1.0)[:, None]
        inside = (z > 0) & (places >= 0).all(1) & (places < [width, height]).all(1)
        if depth is not None:
            x, y = np.where(inside[:, None], places, 0).astype(int).T
            own = depth[i, y, x]
            inside &= (own <= 0) | (z <= _BEHIND * own)
        shares.append(inside.mean())
    return np.array(shares, np.float32)


def overlaps(shares: Float[ndarray, "f"], wanted: tuple[float, float] = OVERLAP) -> bool:
    """Whether the frame that shows least of the first one shows a share within `wanted`.

    Args:
        shares: of the frames after the first.
        wanted: least and greatest share.
    """
    low, high = wanted
    return bool(low <= shares.min() <= high)
