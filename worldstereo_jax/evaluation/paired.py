"""Paired differences between two methods run on the same scenes, with 95 % intervals."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax.scipy.special import betainc

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

    def excludes_zero(self) -> bool:
        """Whether both intervals lie on one side of zero."""
        intervals = (self.student, self.bootstrap)
        return all(low > 0 for low, _ in intervals) or all(high < 0 for _, high in intervals)


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
    reach = student_quantile(0.5 + level / 2, n - 1) * difference.std(ddof=1) / np.sqrt(n)
    picks = np.random.default_rng(seed).integers(0, n, size=(resamples, n))
    tail = 50 * (1 - level)
    low, high = np.percentile(difference[picks].mean(axis=1), [tail, 100 - tail])
    student = (mean - float(reach), mean + float(reach))
    return PairedDifference(mean, student, (float(low), float(high)), n)


def student_quantile(probability: float, freedom: int) -> float:
    """Return the quantile of Student's t for probability in [0.5, 1), to about 1e-5 relative."""
    low, high = 0.0, 1e4
    for _ in range(64):
        middle = (low + high) / 2
        share = freedom / (freedom + middle**2)
        below = 1 - 0.5 * float(betainc(freedom / 2, 0.5, jnp.float32(share)))
        low, high = (middle, high) if below < probability else (low, middle)
    return (low + high) / 2
