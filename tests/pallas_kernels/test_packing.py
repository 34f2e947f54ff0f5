"""A packed mask is the mask it was packed from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk


def _geometry(seed: int, batch: int, tokens: int, frames: int) -> pk.TokenGeometry:
    rng = np.random.default_rng(seed)
    position = rng.uniform(size=(batch, tokens, 3)).astype(np.float32)
    frame = jnp.arange(tokens, dtype=jnp.int32) * frames // tokens
    return pk.make_token_geometry(
        jnp.asarray(position),
        radius=0.3,
        frame=jnp.broadcast_to(frame, (batch, tokens)),
        valid=jnp.asarray(rng.random((batch, tokens)) > 0.2),
    )


def _joint(seed: int) -> pk.BlockMask:
    return pk.joint_correspondence(
        _geometry(seed, 2, 40, 2), _geometry(seed + 1, 2, 90, 3), tile_q=32, tile_k=32
    )


@pytest.mark.row("S14")
def test_packed_mask_allows_the_same_pairs():
    mask = _joint(0)
    packed = jax.jit(pk.pack_partial_tiles)(mask)
    dense = np.asarray(mask.dense())
    assert 0.05 < dense.mean() < 0.95
    np.testing.assert_array_equal(np.asarray(packed.dense()), dense)
    assert not np.asarray(packed.fill.overflow).any()


def test_masks_of_every_kind_are_packed():
    frame = jnp.asarray(np.arange(70) // 20, jnp.int32)[None]
    table = jnp.asarray(np.eye(4)[None] > 0)
    sizes = {"tile_q": 16, "tile_k": 32}
    for mask in (
        pk.sliding_window(70, 70, before=20, after=9, offset=11, **sizes),
        pk.frame_pattern(frame, frame, table, **sizes),
        pk.from_geometry(
            _geometry(0, 1, 70, 2), _geometry(1, 1, 70, 3), granularity="tile", **sizes
        ),
    ):
        packed = pk.pack_partial_tiles(mask)
        np.testing.assert_array_equal(np.asarray(packed.dense()), np.asarray(mask.dense()))


def test_too_little_room_is_counted_and_loses_only_those_tiles():
    mask = _joint(3)
    partial = np.asarray(mask.keys.partial).sum(-1)
    packed = pk.pack_partial_tiles(mask, capacity=3)
    np.testing.assert_array_equal(np.asarray(packed.fill.overflow), partial - 3)
    assert not (np.asarray(packed.dense()) & ~np.asarray(mask.dense())).any()


@pytest.mark.row("S15")
def test_soft_masks_are_numbers_and_no_bits():
    mask = pk.joint_correspondence(
        _geometry(0, 1, 40, 2), _geometry(1, 1, 90, 3), strength=1.0, tile_q=32, tile_k=32
    )
    with pytest.raises(ValueError, match="soft"):
        pk.pack_partial_tiles(mask)
    with pytest.raises(ValueError, match="only a soft"):
        pk.pack_soft_tiles(_joint(0))
    packed = pk.pack_soft_tiles(mask)
    got, want = packed.dense_pairs(), mask.dense_pairs()
    np.testing.assert_array_equal(got.allowed, want.allowed)
    some = np.asarray(want.allowed)
    assert 0.05 < some.mean() < 0.95
    for name in ("attraction", "penalty"):
        a, b = (np.asarray(getattr(x, name))[some] for x in (got, want))
        assert np.abs(b).max() > 0.5
        np.testing.assert_allclose(a, b, rtol=2.0**-11.9, atol=1e-4)
    np.testing.assert_array_equal(packed.strength, mask.strength)
