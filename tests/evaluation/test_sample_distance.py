import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.sample_distance import energy_coefficient, sample_distance


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_shift_is_seen_in_the_mean_and_a_stretch_in_the_deviation():
    reference = normal(0, 200, 3, 4)
    shifted = sample_distance(reference + 2, reference)
    np.testing.assert_allclose((shifted.mean, shifted.deviation), (2, 0), atol=1e-6)
    centred = reference - reference.mean(0)
    wider = sample_distance(3 * centred, centred)
    deviation = 2 * np.sqrt(np.mean(centred.std(0, ddof=1) ** 2))
    np.testing.assert_allclose((wider.mean, wider.deviation), (0, deviation), rtol=1e-4, atol=1e-6)
    assert min(shifted.energy, wider.energy) > 0.1


def test_energy_of_two_points_by_hand():
    """Pairs 1 and 3 apart among themselves; between them 2, 5, 1 and 4."""
    a, b = np.array([[[0.0]], [[1.0]]]), np.array([[[2.0]], [[5.0]]])
    np.testing.assert_allclose(energy_coefficient(a, b), 1 - (1 + 3) / (2 * 3))
    # A part that is the same in all samples adds nothing to any distance.
    more = [np.concatenate([x, np.ones_like(x)], axis=1) for x in (a, b)]
    np.testing.assert_allclose(energy_coefficient(*more), 1 - (1 + 3) / (2 * 3))


def test_samples_of_one_distribution_are_not_apart_and_others_by_far():
    same = [
        energy_coefficient(normal(2 * i, 60, 1, 5), normal(2 * i + 1, 60, 1, 5)) for i in range(20)
    ]
    assert abs(np.mean(same)) < 0.005
    assert min(same) < 0 < max(same)
    apart = energy_coefficient(normal(0, 60, 1, 5), np.full((60, 1, 5), 100.0))
    assert 0.95 < apart <= 1
    # The mean and deviation of either are the same, only their forms are not.
    coins = np.sign(normal(3, 400, 1, 1))
    assert energy_coefficient(coins, normal(4, 400, 1, 1)) > 0.03


def test_what_cannot_be_compared_is_refused(unchecked):
    with pytest.raises(InputError, match="expected two or more of the same size"):
        sample_distance(normal(0, 1, 3, 2), normal(1, 4, 3, 2))
    with pytest.raises(InputError, match="expected two or more of the same size"):
        sample_distance(normal(0, 4, 3, 2), normal(1, 4, 2, 2))
