"""Paired differences between two methods run on the same scenes, with 95 % intervals."""

from typing import NamedTuple

import numpy as np
from scipy import stats

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.errors import InputError


class PairedDifference(NamedTuple):
    """Mean of a - b over n scenes and its intervals, in the measure's unit.

    student: (low, high), Student's t interval; bootstrap: (low, high), percentiles of the mean
    over resampled scenes.
    """

    mean: float
    student: tuple[float, float]
    bootstrap: tuple[float, float]
    n: int


def paired_difference(
    a: Float[ndarray, "n"],
    b: Float[ndarray, "n"],
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedDifference:
    """Compare a with b, one value per scene in the same order.

    Raises InputError for fewer than two scenes, unequal lengths or values that are not finite.
    """
    difference = np.asarray(a, np.float64) - np.asarray(b, np.float64)
    n = len(difference)
    if n < 2:
        raise InputError(f"a paired difference needs at least 2 scenes, not {n}")
    if not np.isfinite(difference).all():
        bad = int(np.flatnonzero(~np.isfinite(difference))[0])
        raise InputError(f"scene {bad} has no finite value to compare")
    mean = float(difference.mean())
    if np.all(difference == difference[0]):
        # Without spread both intervals are the point itself, which scipy calls undefined.
        return PairedDifference(mean, (mean, mean), (mean, mean), n)
    student = stats.ttest_1samp(difference, 0.0).confidence_interval(level)
    resampled = stats.bootstrap(
        (difference,),
        np.mean,
        confidence_level=level,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return PairedDifference(
        mean,
        (float(student.low), float(student.high)),
        (float(resampled.low), float(resampled.high)),
        n,
    )
