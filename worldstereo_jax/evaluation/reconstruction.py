"""How well a point cloud reconstructs a surface that is known as points (row S27).

Precision is the share of found points within tau of the truth, recall the share of true points
within tau of what was found, F1 their harmonic mean (Knapitsch et al. 2017, "Tanks and Temples").
Distances are to the nearest point, so the truth must be sampled more finely than the smallest tau.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.point_projection import project_points


class ReconstructionScores(NamedTuple):
    """Scores of one cloud; all but `tau` have no unit.

    tau: [n] distances, world units. precision, recall, f1: [n], at each of them. auc: mean of F1
    over all distances from 0 to the greatest tau, 1 for a perfect cloud.
    """

    tau: Float[ndarray, "n"]
    precision: Float[ndarray, "n"]
    recall: Float[ndarray, "n"]
    f1: Float[ndarray, "n"]
    auc: float


def reconstruction_scores(
    points: Float[Array | ndarray, "m 3"],
    truth: Float[Array | ndarray, "t 3"],
    *,
    tau: Sequence[float],
) -> ReconstructionScores:
    """Precision, recall, F1 at each tau, and the area under F1 up to the greatest (row S27).

    The area is exact: F1 is a step function of tau, with steps at the distances that occur. A
    cloud without points has recall and F1 of 0 and a precision of 0.

    Args:
        points: found, world units.
        truth: true surface points, world units.
        tau: distances, world units; print them with the scores.

    Raises:
        InputError: when the truth is empty, a coordinate is not finite, or a tau is not positive.
    """
    points, truth = (np.asarray(x, np.float64).reshape(-1, 3) for x in (points, truth))
    thresholds = np.asarray(tau, np.float64)
    if len(truth) == 0:
        raise InputError("a reconstruction needs at least one true point to be compared with")
    if not (np.isfinite(points).all() and np.isfinite(truth).all()):
        raise InputError("points of a reconstruction and of its truth must be finite")
    if len(thresholds) == 0 or not (thresholds > 0).all():
        raise InputError(f"tau must be one or more positive distances, got {list(tau)}")
    if len(points) == 0:
        zero = np.zeros(len(thresholds))
        return ReconstructionScores(thresholds, zero, zero, zero, 0.0)
    off = np.sort(KDTree(truth).query(points, workers=-1)[0])
    missed = np.sort(KDTree(points).query(truth, workers=-1)[0])

    def shares(at: Float[ndarray, "k"]) -> tuple[ndarray, ndarray, ndarray]:
        precision = np.searchsorted(off, at, side="right") / len(off)
        recall = np.searchsorted(missed, at, side="right") / len(missed)
        total = precision + recall
        return precision, recall, 2 * precision * recall / np.where(total > 0, total, 1.0)

    steps = np.concatenate([[0.0], off, missed])
    steps = np.unique(steps[steps < thresholds.max()])
    widths = np.diff(np.append(steps, thresholds.max()))
    area = float((shares(steps)[2] * widths).sum() / thresholds.max())
    return ReconstructionScores(thresholds, *shares(thresholds), area)


def thin_points(points: Float[Array | ndarray, "m 3"], size: float) -> Float[ndarray, "k 3"]:
    """One point per cube of side `size` (world units): the mean of those in it.

    Surfaces seen in many frames then weigh no more than those seen in one. Points that are not
    finite are left out.

    Raises:
        InputError: when the size is not positive.
    """
    if not size > 0:
        raise InputError(f"cubes to thin points in need a positive side, got {size}")
    points = np.asarray(points, np.float64).reshape(-1, 3)
    points = points[np.isfinite(points).all(-1)]
    _, cell, count = np.unique(
        np.floor(points / size).astype(np.int64), axis=0, return_inverse=True, return_counts=True
    )
    total = np.zeros((len(count), 3))
    np.add.at(total, cell.reshape(-1), points)
    return total / count[:, None]


def points_in_free_space(
    points: Float[Array | ndarray, "m 3"],
    depth: Float[Array | ndarray, "f h w"],
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    *,
    tolerance: float = 0.05,
) -> float:
    """Share of points that hang in front of a true surface of some view: floaters (row S27).

    A point hangs there when it is nearer to a camera, by more than the share `tolerance`, than all
    surfaces in the 3x3 pixels around it. NaN without points.

    Args:
        points: world units.
        depth: true depth of the views, camera z; views without depth at a pixel say nothing there.
        w2c, intrinsics: their cameras, pixels.
        tolerance: share of the depth.
    """
    points = np.asarray(points, np.float64).reshape(-1, 3)
    if len(points) == 0:
        return float("nan")
    floats = np.zeros(len(points), bool)
    views = (np.asarray(x) for x in (depth, w2c, intrinsics))
    for view, pose, k in zip(*views, strict=True):
        height, width = view.shape
        known = np.pad(np.where(view > 0, view, np.inf), 1, constant_values=np.inf)
        around = [known[y : y + height, x : x + width] for y in range(3) for x in range(3)]
        nearest = np.min(around, axis=0)
        pixels, z = project_points(points, pose, k)
        inside = (z > 0) & (pixels >= 0).all(-1) & (pixels < [width, height]).all(-1)
        column, row = np.where(inside[:, None], pixels, 0).astype(int).T
        surface = np.where(inside, nearest[row, column], 0.0)
        floats |= np.isfinite(surface) & (z < (1 - tolerance) * surface)
    return float(floats.mean())
