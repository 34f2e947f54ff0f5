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


def test_too_little_room_is_counted_and_loses_only_those_tiles():
    mask = _joint(3)
    partial = np.asarray(mask.keys.partial).sum(-1)
    packed = pk.pack_partial_tiles(mask, capacity=3)
    np.testing.assert_array_equal(np.asarray(packed.fill.overflow), partial - 3)
    assert not (np.asarray(packed.dense()) & ~np.asarray(mask.dense())).any()


def test_soft_masks_are_refused():
    mask = pk.joint_correspondence(
        _geometry(0, 1, 40, 2), _geometry(1, 1, 90, 3), strength=1.0, tile_q=32, tile_k=32
    )
    with pytest.raises(ValueError, match="soft"):
        pk.pack_partial_tiles(mask)
