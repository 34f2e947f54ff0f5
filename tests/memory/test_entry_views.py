import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.memory.entry_views import count_views, entry_confidence, has_view, set_view


@pytest.mark.row("S5")
def test_bits_of_views_are_set_read_and_counted():
    bits = jnp.zeros((3, 2), jnp.uint32)
    seen = {0: [True, False, True], 31: [True, False, False], 45: [False, False, True]}
    for view, where in seen.items():
        bits = set_view(bits, jnp.asarray(view), jnp.array(where))
    for view in range(64):
        expected = seen.get(view, [False] * 3)
        np.testing.assert_array_equal(has_view(bits, jnp.asarray(view)), expected)
    np.testing.assert_array_equal(count_views(bits), [2, 0, 2])
    # A view beyond the bitset leaves no trace, and is never taken for another one.
    beyond = set_view(bits, jnp.asarray(64), jnp.ones((3,), bool))
    np.testing.assert_array_equal(beyond, bits)
    assert not has_view(jnp.full((1, 2), 0xFFFFFFFF, jnp.uint32), jnp.asarray(64)).any()


def _confidence(support=2.0, against=0.0, scatter=0.0, variance=0.0, distance=1.0):
    values = (jnp.array([x]) for x in (support, against, scatter, variance, distance))
    return float(entry_confidence(*values, gate=0.05)[0])


@pytest.mark.row("S6")
def test_confidence_grows_with_agreement_and_falls_with_doubt():
    assert 0.0 == _confidence(support=0.0) < _confidence(0.3) < _confidence(1.0) < _confidence(9.0)
    assert _confidence(1000.0) <= 1.0
    plain = _confidence()
    assert _confidence(against=0.2) > _confidence(against=2.0) > _confidence(against=20.0)
    assert _confidence(against=2.0) < 0.3 * plain
    assert _confidence(scatter=0.05**2) < 0.6 * plain
    assert _confidence(scatter=0.05**2, distance=100.0) > 0.99 * plain
    assert _confidence(variance=0.3) < 0.3 * plain
    assert np.isfinite(_confidence(support=0.0, distance=0.0, scatter=1.0))


def test_confidence_has_finite_derivatives_where_no_camera_saw_anything():
    zero = jnp.zeros(2)
    slopes = jax.grad(lambda x: entry_confidence(*x, gate=0.05).sum())([zero] * 5)
    assert all(np.isfinite(slope).all() for slope in slopes)
    # Points that no camera saw and that disagree are not believed; those that are one are.
    told = entry_confidence(zero + 1, zero, jnp.array([1e-4, 0.0]), zero, zero, gate=0.05)
    np.testing.assert_allclose(told, [0.0, 0.8], atol=1e-6)
