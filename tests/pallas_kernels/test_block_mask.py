"""Block masks: lists, inverse lists, dense view, algebra, and the patterns (row S20)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.fills import EMPTY, FULL, PARTIAL, pack_bits, unpack_bits

rng = np.random.default_rng(0)
DENSE = rng.random((2, 70, 101)) < 0.2
DENSE[:, :16, :64] = False
DENSE[:, 16:32, 32:64] = True
DENSE[0, 64:, 96:] = True  # the ragged corner, whole


def _from(dense):
    return pk.from_dense(jax.device_put(dense), 16, 32)


def _rows(lists, b, head, row):
    index = np.asarray(lists.index)[b, head, row]
    count, partial = (int(x[b, head, row]) for x in (lists.count, lists.partial))
    return index[:partial].tolist(), index[partial:count].tolist()


def test_lists_of_a_small_mask():
    mask = _from(DENSE)
    state = np.full((2, 5, 4), PARTIAL)
    state[:, 0, :2] = EMPTY
    state[:, 1, 1] = FULL
    state[0, 4, 3] = FULL
    np.testing.assert_array_equal(np.asarray(mask.state())[:, 0], state)
    assert _rows(mask.keys, 0, 0, 0) == ([2, 3], [])
    assert _rows(mask.keys, 0, 0, 1) == ([0, 2, 3], [1])
    assert _rows(mask.queries, 0, 0, 1) == ([2, 3, 4], [1])
    assert _rows(mask.queries, 0, 0, 3) == ([0, 1, 2, 3], [4])
    np.testing.assert_allclose(mask.density(), np.full((2, 1), 18 / 20))


def test_dense_view_round_trip():
    np.testing.assert_array_equal(np.asarray(_from(DENSE).dense())[:, 0], DENSE)
    heads = np.stack([DENSE, ~DENSE, np.zeros_like(DENSE)], axis=1)
    mask = _from(heads)
    assert (mask.batch, mask.heads) == (2, 3)
    np.testing.assert_array_equal(mask.dense(), heads)
    assert not np.asarray(mask.keys.count)[:, 2].any()


def test_bits():
    flags = rng.random((3, 64)) < 0.5
    words = pack_bits(jnp.asarray(flags))
    assert words.shape == (3, 2)
    assert int(words[0, 0]) == sum(1 << i for i in range(32) if flags[0, i])
    np.testing.assert_array_equal(unpack_bits(words), flags)


def test_algebra():
    other = rng.random(DENSE.shape) < 0.5
    other[:, 32:48] = True
    band = pk.sliding_window(70, 101, before=10, after=30, tile_q=16, tile_k=32)
    inside = np.asarray(band.dense())[:, 0]
    for mask, dense in ((_from(other), other), (band, inside)):
        np.testing.assert_array_equal(
            np.asarray((_from(DENSE) & mask).dense())[:, 0], DENSE & dense
        )
        np.testing.assert_array_equal(
            np.asarray((_from(DENSE) | mask).dense())[:, 0], DENSE | dense
        )
    nested = (_from(DENSE) & band) | _from(other)
    np.testing.assert_array_equal(np.asarray(nested.dense())[:, 0], (DENSE & inside) | other)
    with pytest.raises(ValueError, match="different sizes"):
        _ = _from(DENSE) & pk.dense_pattern(70, 101)


def test_algebra_of_soft_masks():
    x = np.tile(np.linspace(0.0, 1.0, 64, dtype=np.float32)[None, :, None], (1, 1, 3))
    tokens = pk.make_token_geometry(jax.device_put(x), radius=0.2)
    soft = pk.from_geometry(tokens, tokens, strength=1.0, tile_q=16, tile_k=32)
    left = pk.sliding_window(64, 64, before=64, after=0, tile_q=16, tile_k=32)
    both = left & soft
    assert both.soft
    assert both.strength is not None
    pairs, alone = both.dense_pairs(), soft.dense_pairs()
    np.testing.assert_array_equal(pairs.allowed, np.tril(alone.allowed))
    kept = np.asarray(pairs.allowed)
    bias = jax.jit(lambda pairs: pairs.bias(0.7))
    np.testing.assert_array_equal(*(np.asarray(bias(x))[kept] for x in (pairs, alone)))
    with pytest.raises(ValueError, match="two soft masks"):
        _ = soft & soft
    with pytest.raises(ValueError, match="no union"):
        _ = soft | left


@pytest.mark.row("S20")
def test_dense_pattern():
    mask = pk.dense_pattern(70, 101, tile_q=16, tile_k=32, batch=3)
    assert np.asarray(mask.dense()).all()
    assert mask.dense().shape == (3, 1, 70, 101)
    assert not np.asarray(mask.keys.partial).any()


@pytest.mark.row("S20")
@pytest.mark.parametrize("permuted", [False, True])
def test_frame_pair(permuted):
    references, frames, tokens = 3, 4, 6
    pairs = np.array([[1, 0, -1, 1], [2, 2, 2, 0]])
    view = np.repeat(np.arange(references + frames), tokens)
    want = np.zeros((2, len(view), len(view)), bool)
    for b in range(2):
        for i, a in enumerate(view):
            for j, c in enumerate(view):
                together = {a - references: pairs[b, a - references]} if a >= references else {}
                back = {c - references: pairs[b, c - references]} if c >= references else {}
                want[b, i, j] = (
                    a == c
                    or (c < references and c in together.values())
                    or (a < references and a in back.values())
                )
    order = None
    if permuted:
        forward = np.stack([rng.permutation(len(view)) for _ in range(2)])
        order = pk.TokenOrder(
            jnp.asarray(forward, jnp.int32), jnp.asarray(np.argsort(forward, axis=1), jnp.int32)
        )
        want = np.stack([w[f][:, f] for w, f in zip(want, forward, strict=True)])
    mask = pk.frame_pair(
        jnp.asarray(pairs, jnp.int32),
        references=references,
        tokens_per_frame=tokens,
        tile_q=8,
        tile_k=8,
        order=order,
    )
    np.testing.assert_array_equal(np.asarray(mask.dense())[:, 0], want)


def test_frame_pattern_kinds():
    frame = jnp.array([[0] * 8 + [1] * 4 + [-1] * 4 + [1] * 8])
    table = jnp.array([[[True, False], [True, True]]])
    mask = pk.frame_pattern(frame, frame, table, tile_q=8, tile_k=8)
    want = [[FULL, EMPTY, EMPTY], [PARTIAL, PARTIAL, PARTIAL], [FULL, PARTIAL, FULL]]
    np.testing.assert_array_equal(np.asarray(mask.state())[0, 0], want)


@pytest.mark.parametrize(("before", "after", "offset"), [(3, 3, 0), (40, 0, 31), (0, 90, -5)])
def test_sliding_window(before, after, offset):
    step = np.arange(101)[None] - np.arange(70)[:, None] - offset
    want = (step >= -before) & (step <= after)
    mask = pk.sliding_window(
        70, 101, before=before, after=after, offset=offset, tile_q=16, tile_k=32
    )
    np.testing.assert_array_equal(np.asarray(mask.dense())[0, 0], want)
    exact = _from(want[None])
    np.testing.assert_array_equal(mask.state(), exact.state())


def test_tile_lists_given():
    index = jnp.array([[[[2, 0, 2, 9], [3, 1, 0, 0]]]])
    count = jnp.array([[[4, 2]]])
    mask = pk.from_tile_lists(index, count, q_len=20, k_len=101, tile_q=16, tile_k=32)
    np.testing.assert_array_equal(
        np.asarray(mask.state())[0, 0] == FULL, [[1, 0, 1, 0], [0, 1, 0, 1]]
    )
    assert _rows(mask.queries, 0, 0, 1) == ([], [1])


def test_arguments_are_checked():
    with pytest.raises(ValueError, match="multiple of 32"):
        pk.from_dense(jnp.asarray(DENSE), 16, 24)
    with pytest.raises(ValueError, match="tile pairs"):
        pk.block_mask.build_mask(
            jnp.zeros((1, 1, 2, 2), jnp.int8), q_len=70, k_len=101, tile_q=16, tile_k=32
        )
    with pytest.raises(ValueError, match="strength"):
        pk.block_mask.build_mask(
            jnp.zeros((1, 1, 2, 2), jnp.int8),
            q_len=32,
            k_len=32,
            tile_q=16,
            tile_k=16,
            strength=1.0,
        )


@pytest.mark.row("S14")
@pytest.mark.parametrize("bits", [False, True])
def test_a_mask_of_the_working_size_takes_a_hundredth_of_the_dense_one(bits):
    """45,240 x 45,240 pairs; as bits with room for 5 % of the tile pairs."""
    tokens = 45_240
    geometry = jax.eval_shape(
        lambda x: pk.make_token_geometry(x, radius=1.0, views=64),
        jax.ShapeDtypeStruct((1, tokens, 3), jnp.float32),
    )

    def build(geometry):
        mask = pk.from_geometry(geometry, geometry, tile_q=128, tile_k=128)
        room = mask.q_tiles * mask.k_tiles // 20
        return pk.pack_partial_tiles(mask, capacity=room) if bits else mask

    leaves = jax.tree.leaves(jax.eval_shape(build, geometry))
    assert sum(x.size * x.dtype.itemsize for x in leaves) <= 0.01 * tokens**2
