"""Whether colours change with the view as the truth does: a highlight must move, not fade (S24)."""

from typing import NamedTuple

import numpy as np
from scipy.ndimage import map_coordinates

from worldstereo_jax.array_types import Bool, Float, ndarray
from worldstereo_jax.errors import InputError


class ChangeAgreement(NamedTuple):
    """How a predicted change of colour between two views goes with the true one (row S24).

    correlation: over all points and channels, 1 = the highlight moves as the truth's does, 0 = it
    does not. slope: of the least squares line, 1 = by as much, 0 = it stays where it is. NaN where
    the truth does not change or there is no point. points: how many were compared.
    """

    correlation: float
    slope: float
    points: int


def view_change(
    images: Float[ndarray, "2 h w 3"],
    depth: Float[ndarray, "2 h w"],
    w2c: Float[ndarray, "2 4 4"],
    intrinsics: Float[ndarray, "2 3 3"],
    *,
    tolerance: float = 0.02,
) -> tuple[Float[ndarray, "h w 3"], Bool[ndarray, "h w"]]:
    """Colour of the first view's surface points in the second view less that in the first.

    Args:
        images: of both views, same range. depth: camera z of the truth, world units, 0 = unknown.
        w2c: world to camera; intrinsics: pixels.
        tolerance: share of depth by which the second view's surface may differ.

    Returns:
        Change [h, w, 3], 0 where not tracked; and which pixels of the first view were tracked.
    """
    h, w = depth.shape[1:]
    y, x = np.mgrid[:h, :w] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(intrinsics[0]).T
    there = w2c[1] @ np.linalg.inv(w2c[0])
    local = (rays * depth[0][..., None]) @ there[:3, :3].T + there[:3, 3]
    z = local[..., 2]
    pixel = local @ intrinsics[1].T
    place = np.moveaxis(pixel[..., :2] / np.where(z > 0, z, 1.0)[..., None], -1, 0)[::-1] - 0.5
    inside = (z > 0) & (depth[0] > 0) & (place >= 0).all(0)
    inside &= (place[0] <= h - 1) & (place[1] <= w - 1)
    at = [
        np.clip(np.round(p), 0, size - 1).astype(int) for p, size in ((place[0], h), (place[1], w))
    ]
    tracked = inside & (np.abs(depth[1][tuple(at)] - z) <= tolerance * z)
    second = np.stack([map_coordinates(images[1][..., c], place, order=1) for c in range(3)], -1)
    return np.where(tracked[..., None], second - images[0], 0.0), tracked


def change_agreement(
    found: Float[ndarray, "h w 3"], true: Float[ndarray, "ht wt 3"], where: Bool[ndarray, "hw ww"]
) -> ChangeAgreement:
    """Compare a predicted change with the true one over the pixels `where` asked (row S24).

    Raises:
        InputError: when the shapes differ.
    """
    if found.shape != true.shape or where.shape != true.shape[:2]:
        raise InputError(f"changes of {found.shape} and {true.shape} over {where.shape} differ")
    a, b = found[where].ravel(), true[where].ravel()
    count = int(where.sum())
    if count == 0 or not b.any():
        return ChangeAgreement(np.nan, np.nan, count)
    correlation = np.corrcoef(a, b)[0, 1] if a.std() > 0 and b.std() > 0 else 0.0
    return ChangeAgreement(float(correlation), float((a * b).sum() / np.square(b).sum()), count)
