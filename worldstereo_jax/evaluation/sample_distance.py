"""How far two sets of samples are from one distribution."""

import typing

import numpy as np

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.errors import InputError


class SampleDistance(typing.NamedTuple):
    """Of samples from those of a reference.

    Attributes:
        mean: root mean square difference of the means, over all numbers.
        deviation: the same of the standard deviations.
        energy: the energy coefficient of a part, over all parts; see `energy_coefficient`.
    """

    mean: float
    deviation: float
    energy: float


def sample_distance(
    samples: Float[ndarray, "n parts d"], reference: Float[ndarray, "m parts d"]
) -> SampleDistance:
    """The distance of two sets of samples, each of two or more.

    Args:
        samples: each of some parts, such as the tokens of a latent, of d numbers.
        reference: to compare with.

    Raises:
        InputError: for sets of one sample, or of other sizes than each other.
    """
    if min(len(samples), len(reference)) < 2 or samples.shape[1:] != reference.shape[1:]:
        raise InputError(
            f"samples of shapes {samples.shape} and {reference.shape}, expected two or more of the "
            "same size"
        )

    def apart(a: ndarray, b: ndarray) -> float:
        return float(np.sqrt(np.mean((a - b) ** 2)))

    return SampleDistance(
        mean=apart(samples.mean(0), reference.mean(0)),
        deviation=apart(samples.std(0, ddof=1), reference.std(0, ddof=1)),
        energy=energy_coefficient(samples, reference),
    )


def energy_coefficient(
    samples: Float[ndarray, "n parts d"], reference: Float[ndarray, "m parts d"]
) -> float:
    """1 - (E|a - a'| + E|b - b'|) / (2 E|a - b|), of samples a and reference b.

    Székely and Rizzo 2013, "Energy statistics". The expectations run over all parts, each compared
    with the same part of other samples. Of distributions it lies between 0, where they are the
    same, and 1; each expectation is estimated without bias, so that samples of one distribution
    give values about 0 of either sign.
    """

    def within(x: ndarray) -> float:
        return _mean_distance(x, x) * len(x) / (len(x) - 1)

    between = _mean_distance(samples, reference)
    return float(1 - (within(samples) + within(reference)) / (2 * between))


def _mean_distance(a: ndarray, b: ndarray) -> float:
    """Over all pairs, those of a sample with itself included, and parts."""
    each = [np.linalg.norm(b - x, axis=-1).mean() for x in a.astype(np.float64)]
    return float(np.mean(each))
