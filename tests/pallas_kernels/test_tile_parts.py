"""Tall tiles are held by parts of 128 queries, only those that allow something."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.kernel_tables import kernel_tables
from pallas_kernels.query_dealing import QueryDealing, stands_for_rows
from pallas_kernels.tile_parts import as_part_tiles, rows_per_part

TILE_Q, TILE_K = 512, 32
Q_LEN, K_LEN = 2 * TILE_Q - 200, 3 * TILE_K - 5


def _dense() -> np.ndarray:
    """Two tiles of three; of the first row one part alone, two apart, and all of a full tile."""
    rng = np.random.default_rng(0)
    dense = rng.random((1, 2, Q_LEN, K_LEN)) < 0.5
    part = np.arange(Q_LEN)[:, None] // 128
    tile = np.broadcast_to(np.arange(K_LEN)[None] // TILE_K, (Q_LEN, K_LEN))
    first = part < 4
    dense &= ~(first & (tile == 0) & (part != 2))
    dense &= ~(first & (tile == 1) & (part % 2 == 0))
    return dense | (first & (tile == 2))


def _packed(capacity: int | None = None) -> pk.BlockMask:
    mask = pk.from_dense(jnp.asarray(_dense()), TILE_Q, TILE_K)
    return pk.pack_partial_tiles(mask, capacity=capacity)


@pytest.mark.parametrize(
    ("tile", "rows"), [(16, 16), (128, 128), (192, 192), (512, 128), (640, 128), (1024, 256)]
)
def test_parts_are_multiples_of_128_and_few(tile, rows):
    assert rows_per_part(tile) == rows


@pytest.mark.row("S14")
def test_only_parts_that_allow_something_are_held():
    # One and two of the first row, three of each tile of the second, whose last part has no token.
    mask = _packed(capacity=1 + 2 + 3 * 3)
    assert mask.fill.words.shape == (1, 2, 12, 128, 1)
    assert not np.asarray(mask.fill.overflow).any()
    np.testing.assert_array_equal(
        np.asarray(mask.fill.parts)[0, 1], [[0b100, 0b1010, 0], [0b111] * 3]
    )
    np.testing.assert_array_equal(mask.dense(), _dense())


def test_a_tile_whose_parts_find_no_room_together_is_lost_and_counted():
    mask = _packed(capacity=2)
    np.testing.assert_array_equal(mask.fill.overflow, [[11, 11]])
    found = np.asarray(mask.dense())
    np.testing.assert_array_equal(found[:, :, :512, :32], _dense()[:, :, :512, :32])
    assert not found[:, :, :512, 32:64].any()
    assert found[:, :, :512, 64:].all()


@pytest.mark.parametrize("capacity", [None, 2])
def test_cut_to_its_parts_it_is_the_same_mask(capacity):
    mask = _packed(capacity)
    parts = jax.jit(as_part_tiles)(mask)
    assert (parts.tile_q, parts.tile_k, parts.fill.parts) == (128, TILE_K, None)
    np.testing.assert_array_equal(parts.dense(), mask.dense())
    assert jax.eval_shape(kernel_tables, mask).tile_q == 128
    # Empty parts are not listed.
    assert np.asarray(parts.keys.count)[0, 0, 0] == 1
    other = pk.dense_pattern(Q_LEN, K_LEN, tile_q=TILE_Q, tile_k=TILE_K)
    assert as_part_tiles(other) is other


def test_no_query_sees_a_key_that_is_not_valid():
    valid = np.arange(K_LEN)[None] % 7 != 3
    valid[:, :TILE_K] &= np.arange(TILE_K) < 0
    mask = pk.restrict_keys(_packed(), jnp.asarray(valid))
    np.testing.assert_array_equal(mask.dense(), _dense() & valid[:, None, None])
    again = pk.restrict_keys(mask, jnp.asarray(valid))
    np.testing.assert_array_equal(again.dense(), mask.dense())


def test_dealt_out_to_chips_it_is_the_same_rows():
    mask = _packed()
    dealing = QueryDealing(mask, 2)
    dealt = jax.tree.map(np.asarray, jax.jit(dealing.deal_mask)(mask))
    share = jax.jit(dealing.share_mask)
    for part in range(2):
        own = jax.tree_util.tree_map_with_path(
            lambda path, x, part=part: x[:, :, :, part : part + 1] if stands_for_rows(path) else x,
            dealt,
        )
        found = np.asarray(share(own).dense())
        want = _dense()[:, :, part * TILE_Q : (part + 1) * TILE_Q]
        np.testing.assert_array_equal(found[:, :, : want.shape[2]], want)
