"""Rotary positions: sizes, relative angles, and where references stand."""

import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.small_model import normal
from worldstereo_jax.models.rope import (
    apply_rotary,
    axis_sizes,
    real_rotary,
    reference_positions,
    rotary_table,
    target_positions,
)


@pytest.mark.parametrize(("head", "sizes"), [(128, (44, 42, 42)), (32, (12, 10, 10))])
def test_channels_of_a_head_are_shared_out(head, sizes):
    assert axis_sizes(head) == sizes


def test_real_positions_agree_with_the_table_at_whole_ones():
    positions = np.random.default_rng(0).integers(0, 40, (1, 9, 3))
    table = rotary_table(jnp.asarray(positions, jnp.int32), 32)
    real = real_rotary(jnp.asarray(positions, jnp.float32), 32)
    np.testing.assert_allclose(real.cos, table.cos, atol=1e-5)
    np.testing.assert_allclose(real.sin, table.sin, atol=1e-5)
    back = real_rotary(jnp.asarray(-positions, jnp.float32), 32)
    np.testing.assert_allclose(back.sin, -table.sin, atol=1e-5)


def test_products_depend_on_relative_positions_only():
    q, k = normal(0, 1, 1, 1, 32), normal(1, 1, 1, 1, 32)

    def product(at_q, at_k):
        turned = [
            apply_rotary(x, rotary_table(jnp.array([[at]], jnp.int32), 32))
            for x, at in ((q, at_q), (k, at_k))
        ]
        return float((turned[0] * turned[1]).sum())

    assert product((3, 2, 9), (1, 5, 7)) == pytest.approx(product((13, 4, 2), (11, 7, 0)), abs=1e-5)
    assert product((3, 2, 9), (1, 5, 7)) != pytest.approx(product((3, 2, 9), (1, 5, 8)), abs=1e-3)


def test_first_position_turns_nothing_and_lengths_are_kept():
    x = normal(0, 2, 6, 3, 16)
    turned = apply_rotary(x, rotary_table(target_positions(1, 2, 3), 16))
    np.testing.assert_allclose(turned[:, 0], x[:, 0], atol=1e-7)
    np.testing.assert_allclose(
        jnp.linalg.norm(turned, axis=-1), jnp.linalg.norm(x, axis=-1), rtol=1e-5
    )


def test_first_pair_turns_by_the_frame_in_radians():
    x = jnp.zeros((1, 1, 1, 32)).at[..., 0].set(1.0)
    turned = apply_rotary(x, rotary_table(jnp.array([[[2, 0, 0]]], jnp.int32), 32))
    np.testing.assert_allclose(turned[0, 0, 0, :2], [np.cos(2.0), np.sin(2.0)], rtol=1e-6)


def test_target_positions_run_in_raster_order():
    positions = target_positions(2, 2, 3)
    assert positions.shape == (1, 12, 3)
    np.testing.assert_array_equal(positions[0, 7], [1, 0, 1])


def test_references_stand_in_the_right_half_of_the_next_frame():
    positions = reference_positions(jnp.array([[0, 4]], jnp.int32), 2, 3)
    np.testing.assert_array_equal(positions[0, 0], [1, 0, 3])
    np.testing.assert_array_equal(positions[0, 5], [1, 1, 5])
    np.testing.assert_array_equal(positions[0, 6], [5, 0, 3])
