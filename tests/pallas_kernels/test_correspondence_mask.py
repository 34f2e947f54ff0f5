"""Masks from geometry: no allowed pair is missed, and tiles far apart are left out."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pallas_kernels as pk
from pallas_kernels.selftest_cases import random_geometry
from tests.pallas_kernels.brute_force import correspondence_table

RULE = pk.CorrespondenceRule(normal_cos=0.7, reach=1.3)
TILES = {"tile_q": 8, "tile_k": 8}


@functools.partial(jax.jit, static_argnames=("rule", "soft"))
def _lists_and_truth(query, key, rule, soft):
    """Active tiles by bounds, and the dense predicate that looks at every pair."""
    strength = jnp.float32(1.0) if soft else None
    mask = pk.from_geometry(query, key, rule=rule, strength=strength, **TILES)
    every_pair = pk.geometry.correspondence(query, key, rule, soft=soft).allowed
    return mask.state()[:, 0] > 0, every_pair


def _tiles_with_any(dense, tile=8):
    b, tq, tk = dense.shape
    padded = np.pad(dense, ((0, 0), (0, -tq % tile), (0, -tk % tile)))
    return padded.reshape(b, -1, tile, padded.shape[2] // tile, tile).any(axis=(2, 4))


@pytest.mark.row("S14")
@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 2**31 - 1),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    shift=st.sampled_from([0.0, 10.0, 1e4]),
    radius=st.floats(0.005, 0.6),
    flat=st.sampled_from([1.0, 0.1, 1e-3]),
    tilt=st.floats(0.0, 3.0),
    soft=st.booleans(),
    field=st.sampled_from(["target", "either"]),
)
def test_no_allowed_pair_is_missed(seed, scale, shift, radius, flat, tilt, soft, field):
    rng = np.random.default_rng(seed)
    rule = dataclasses.replace(RULE, field=field)

    def put(x):
        return jax.device_put(x.astype(np.float32))

    def tokens(count, frames):
        geometry = random_geometry(rng, 2, count, frames, radius=radius)
        # Clusters, so that tiles have bounds worth testing; ellipses of any orientation.
        centre = rng.random((2, -(-count // 8), 3)).repeat(8, axis=1)[:, :count]
        place = centre + 0.1 * (np.asarray(geometry.position) - 0.5)
        normal = np.asarray(geometry.normal) * [tilt, tilt, 1.0]
        length = np.linalg.norm(normal, axis=-1, keepdims=True)
        axes = np.linalg.qr(rng.normal(size=(2, count, 3, 3)))[0]
        radii = radius * scale * rng.uniform(0.5, 1.5, (2, count, 3)) * [1.0, 1.0, flat]
        return geometry.replace(
            position=put(place * scale + shift * scale),
            normal=put(np.where(length > 0, normal / np.maximum(length, 1e-9), 0)),
            metric=pk.ellipse_metric(put(axes), put(radii)),
        )

    active, dense = _lists_and_truth(tokens(37, 3), tokens(50, 2), rule, soft)
    assert not (_tiles_with_any(np.asarray(dense)) & ~np.asarray(active)).any()


@pytest.mark.row("S14")
def test_mask_equals_brute_force():
    rng = np.random.default_rng(0)
    query, key = (random_geometry(rng, 2, t, f, radius=0.2) for t, f in ((37, 3), (50, 2)))
    mask = jax.jit(lambda q, k: pk.from_geometry(q, k, rule=RULE, **TILES))(query, key)
    want, clear = correspondence_table(query, key, RULE.normal_cos)
    np.testing.assert_array_equal(np.asarray(mask.dense())[:, 0][clear], want[clear])


@pytest.mark.row("S20")
@pytest.mark.row("S17")
@pytest.mark.parametrize("field", ["target", "either"])
def test_joint_pattern_equals_brute_force(field):
    rule = dataclasses.replace(RULE, field=field)
    rng = np.random.default_rng(1)
    reference = random_geometry(rng, 2, 40, 2, radius=0.3)
    target = random_geometry(rng, 2, 33, 3, radius=0.3)
    mask = jax.jit(lambda r, t: pk.joint_correspondence(r, t, rule=rule, **TILES))(
        reference, target
    )
    got = np.asarray(mask.dense())[:, 0]
    decides = "query" if field == "target" else field
    cross, clear = correspondence_table(target, reference, RULE.normal_cos, field=decides)
    real = np.concatenate([np.asarray(x.segment) >= 0 for x in (reference, target)], axis=1)
    both = real[:, :, None] & real[:, None]
    # The target sees itself, with or without geometry.
    np.testing.assert_array_equal(got[:, 40:, 40:], both[:, 40:, 40:])
    # References see their own frame only.
    frame = np.asarray(reference.frame)
    own = frame[:, :, None] == frame[:, None]
    np.testing.assert_array_equal(got[:, :40, :40], own & both[:, :40, :40])
    # Target to references, and the transpose back.
    assert 0.005 < cross.mean() < 0.5
    np.testing.assert_array_equal(got[:, 40:, :40][clear], cross[clear])
    np.testing.assert_array_equal(got[:, :40, 40:], np.swapaxes(got[:, 40:, :40], 1, 2))


def _line(start, count, spacing=0.1, radius=0.05, **kwargs):
    x = np.float32(start) + np.float32(spacing) * np.arange(count, dtype=np.float32)
    place = np.stack([x, 0 * x, 0 * x], axis=-1)[None]
    return pk.make_token_geometry(jax.device_put(place), radius=radius, **kwargs)


def test_tiles_apart_in_place_normal_view_or_segment_are_left_out():
    up = jax.device_put(np.tile(np.array([0.0, 0.0, 1.0], np.float32), (1, 64, 1)))
    query = _line(0.0, 64, normal=up)
    # A tile of eight meets itself, and no neighbour: spacing is twice the radius.
    kinds = jax.jit(lambda q, k: pk.from_geometry(q, k, rule=RULE, **TILES).state()[0, 0])
    np.testing.assert_array_equal(kinds(query, query) > 0, np.eye(8, dtype=bool))
    nothing = jnp.zeros((1, 64, 1), jnp.uint32)
    for key in (
        _line(100.0, 64, normal=up),
        _line(0.0, 64, normal=-up),
        _line(0.0, 64, normal=up, visibility=nothing),
        _line(0.0, 64, normal=up, segment=jnp.ones((1, 64), jnp.int32)),
        _line(0.0, 64, normal=up, valid=jnp.zeros((1, 64), bool)),
    ):
        assert not np.asarray(kinds(query, key)).any()


def test_joint_pattern_knows_its_whole_tiles():
    target, reference = (
        _line(0.0, 32),
        _line(0.0, 32, frame=jax.device_put(np.arange(32, dtype=np.int32)[None] // 16)),
    )
    for granularity, cross in (("token", 1), ("tile", 2)):
        build = functools.partial(pk.joint_correspondence, granularity=granularity, **TILES)
        mask = jax.jit(build)(reference, target)
        state = np.asarray(mask.state())[0, 0]
        own = np.kron(np.eye(2, dtype=int), np.full((2, 2), 2))
        np.testing.assert_array_equal(state[:4, :4], own)
        np.testing.assert_array_equal(state[4:, 4:], np.full((4, 4), 2))
        np.testing.assert_array_equal(state[4:, :4], cross * np.eye(4, dtype=int))
    np.testing.assert_array_equal(np.asarray(mask.dense())[0, 0, 32:40, :8], np.ones((8, 8)))


def test_arguments_are_checked():
    tokens = _line(0.0, 8)
    with pytest.raises(ValueError, match="granularity"):
        pk.from_geometry(tokens, tokens, granularity="pixel")
    with pytest.raises(ValueError, match="token granularity"):
        pk.from_geometry(tokens, tokens, granularity="tile", strength=1.0)


def test_lists_are_small_and_built_without_dense_arrays():
    tokens = 8192
    query = jax.eval_shape(lambda: _line(0.0, tokens))
    build = jax.jit(lambda q, k: pk.from_geometry(q, k))
    mask = jax.eval_shape(build, query, query)
    lists = jax.tree.leaves((mask.keys, mask.queries))
    assert sum(x.size * x.dtype.itemsize for x in lists) < 0.01 * tokens**2
    assert f"{tokens}x{tokens}x" not in build.lower(query, query).as_text()


def test_a_curved_surface_keeps_every_tile_that_holds_a_pair():
    """Many tiles of nearly parallel normals, inside jit."""
    rng = np.random.default_rng(0)
    tokens, tile, radius = 700, 16, 0.08
    x, y = rng.uniform(-1, 1, (2, tokens))
    order = np.argsort(np.floor(8 * x) + 0.1 * y)
    x, y = x[order], y[order]
    position = np.stack([x, y, 0.3 * np.sin(3 * x)], -1).astype(np.float32)
    normal = np.stack([-0.9 * np.cos(3 * x), 0 * x, 1 + 0 * x], -1)
    normal += 0.02 * rng.normal(size=normal.shape)
    normal = (normal / np.linalg.norm(normal, axis=-1, keepdims=True)).astype(np.float32)
    geometry = pk.make_token_geometry(
        jnp.asarray(position)[None],
        radius=jnp.full((1, tokens), radius),
        normal=jnp.asarray(normal)[None],
        views=2,
    )
    near = np.linalg.norm(position[:, None] - position[None], axis=-1) < 0.999 * radius
    allowed = near & (normal @ normal.T > 0.51)
    tiles = -(-tokens // tile)
    padded = np.zeros((tiles * tile, tiles * tile), bool)
    padded[:tokens, :tokens] = allowed
    wanted = padded.reshape(tiles, tile, tiles, tile).any((1, 3))
    mask = pk.from_geometry(geometry, geometry, tile_q=tile, tile_k=tile)
    assert not (wanted & (np.asarray(mask.state())[0, 0] == 0)).any()
