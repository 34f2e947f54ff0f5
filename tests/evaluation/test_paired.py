import numpy as np
import pytest
from scipy import stats

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.paired import paired_difference


def test_intervals_of_paired_values():
    rng = np.random.default_rng(0)
    a = rng.normal(size=20) + 1
    b = 0.5 * a + rng.normal(size=20)
    found = paired_difference(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval(0.95)
    np.testing.assert_allclose(found.student, expected, rtol=1e-4)
    resampled = stats.bootstrap((a - b,), np.mean, method="percentile", rng=1)
    np.testing.assert_allclose(found.bootstrap, resampled.confidence_interval, atol=0.03)
    np.testing.assert_allclose(found.mean, np.mean(a - b))
    assert found == paired_difference(a, b)


def test_pairing_removes_what_scenes_share():
    scenes = 10 * np.random.default_rng(0).normal(size=20)
    gain = 1 + 0.1 * np.random.default_rng(1).normal(size=20)
    for first, apart in ((scenes, True), (scenes[::-1], False)):
        found = paired_difference(first + gain, scenes)
        assert all((low > 0) == apart for low, _ in (found.student, found.bootstrap))


def test_coverage_is_about_the_level():
    rng = np.random.default_rng(2)
    inside = 0
    for _ in range(60):
        low, high = paired_difference(
            rng.normal(size=8) + 0.3, np.zeros(8), resamples=10, level=0.8
        ).student
        inside += low < 0.3 < high
    assert 38 <= inside <= 57


def test_equal_differences_have_an_interval_of_one_point():
    found = paired_difference(np.arange(5.0) + 2.0, np.arange(5.0))
    assert found.student == found.bootstrap == (2.0, 2.0)


@pytest.mark.parametrize(
    ("a", "message"), [(np.ones(1), "at least 2"), (np.array([1.0, np.nan]), "scene 1")]
)
def test_bad_values_are_named(a, message):
    with pytest.raises(InputError, match=message):
        paired_difference(a, np.zeros(len(a)))
