"""A packed mask is the mask it was packed from."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk


def _geometry(
    seed: int, batch: int, tokens: int, frames: int, radius: float = 0.3
) -> pk.TokenGeometry:
    rng = np.random.default_rng(seed)
    position = rng.uniform(size=(batch, tokens, 3)).astype(np.float32)
    frame = np.arange(tokens, dtype=np.int32) * frames // tokens
    return pk.make_token_geometry(
        jax.device_put(position),
        radius=radius,
        frame=jax.device_put(np.tile(frame, (batch, 1))),
        valid=jax.device_put(rng.random((batch, tokens)) > 0.2),
    )


def _joint(seed: int, radius: float = 0.3) -> pk.BlockMask:
    reference = _geometry(seed, 2, 40, 2, radius)
    target = _geometry(seed + 1, 2, 90, 3, radius)
    return pk.joint_correspondence(reference, target, tile_q=32, tile_k=32)


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


def test_only_what_is_partial_takes_room_and_what_finds_none_is_counted():
    mask = _joint(3, radius=0.04)
    partial = np.asarray(pk.refine(mask).keys.partial).sum(-1)
    assert (partial < np.asarray(mask.keys.partial).sum(-1)).any()
    enough = pk.pack_partial_tiles(mask, capacity=int(partial.max()))
    assert not np.asarray(enough.fill.overflow).any()
    np.testing.assert_array_equal(enough.dense(), mask.dense())
    packed = pk.pack_partial_tiles(mask, capacity=3)
    np.testing.assert_array_equal(np.asarray(packed.fill.overflow), partial - 3)
    assert not (np.asarray(packed.dense()) & ~np.asarray(mask.dense())).any()
    assert np.asarray(packed.dense()).any(axis=(2, 3)).all()


@pytest.mark.parametrize(
    ("device", "room"), [("NVIDIA H200", 8_700), ("TPU v5p", 9_400), ("cpu", 17_000)]
)
def test_metadata_is_one_percent_of_the_dense_mask_at_the_working_size(device, room):
    """In the tiles that ship: lists, and bits of what 8 procedural references and a target fill.

    The dense mask has a byte for every pair, as kernels that take one hold it. Of that scene and
    two others 6,594 to 8,394 tiles of 128x128 are partial, 12,369 to 16,785 of 64x64, and of the
    parts of 512x128 that are 7,352 to 9,152 hold something.
    """
    tile_q, tile_k, _ = pk.best_tiles(device)

    def tokens(count):
        place = jax.ShapeDtypeStruct((1, count, 3), jnp.float32)
        return jax.eval_shape(lambda x: pk.make_token_geometry(x, radius=1.0), place)

    def build(reference, target):
        mask = pk.joint_correspondence(reference, target, tile_q=tile_q, tile_k=tile_k)
        return pk.pack_partial_tiles(mask, capacity=room)

    mask = jax.eval_shape(build, tokens(12_480), tokens(32_760))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(mask))
    assert (mask.q_len, mask.k_len) == (45_240, 45_240)
    assert size <= 0.01 * 45_240**2


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
