"""The correspondence predicate and the soft constraint (rows S14, S15)."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.geometry import correspondence
from pallas_kernels.selftest_cases import random_geometry
from tests.pallas_kernels.brute_force import correspondence_table

RULE = pk.CorrespondenceRule(normal_cos=0.6, reach=1.5, falloff=0.5)


@functools.partial(jax.jit, static_argnames=("rule", "soft"))
def _pairs(query, key, rule, *, soft):
    return correspondence(query, key, rule, soft=soft)


@jax.jit
def _bias(pairs, strength):
    return pairs.bias(strength)


def _two(seed=0, radius=0.35):
    rng = np.random.default_rng(seed)
    query = random_geometry(rng, 2, 37, 3, radius=radius)
    return query, random_geometry(rng, 2, 45, 2, radius=radius)


def _elliptic(geometry, seed):
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(*geometry.valid.shape, 3, 3)))[0]
    radii = rng.uniform(0.1, 0.8, (*geometry.valid.shape, 3))
    metric = pk.ellipse_metric(jnp.asarray(axes, jnp.float32), jnp.asarray(radii, jnp.float32))
    return geometry.replace(metric=metric)


@pytest.mark.row("S14")
@pytest.mark.row("S19")
@pytest.mark.parametrize("field", ["target", "either"])
def test_predicate_equals_brute_force(field):
    query, key = _two()
    query, key = _elliptic(query, 1), _elliptic(key, 2)
    rule = dataclasses.replace(RULE, field=field)
    got = np.asarray(_pairs(query, key, rule, soft=False).allowed)
    decides = "query" if field == "target" else field
    want, clear = correspondence_table(query, key, RULE.normal_cos, field=decides)
    assert 0.005 < want.mean() < 0.5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(got[clear], want[clear])
    # Each condition excludes something of its own.
    for change in (
        {"normal": np.zeros_like(key.normal)},
        {"visibility": np.full_like(key.visibility, 0xFFFFFFFF)},
        {"valid": np.ones_like(key.valid)},
        {"segment": np.zeros_like(key.segment)},
    ):
        looser = np.asarray(_pairs(query, key.replace(**change), rule, soft=False).allowed)
        assert looser.sum() > got.sum(), change.keys()


@pytest.mark.row("S14")
def test_views_past_the_first_word():
    count = 70
    point = jnp.zeros((1, 1, 3))
    words = np.zeros((1, 1, 3), np.uint32)
    words[0, 0, 2] = 1 << 5  # view 69
    key = pk.make_token_geometry(point, radius=1.0, visibility=jnp.asarray(words))
    frames = jnp.arange(count, dtype=jnp.int32)[None]
    query = pk.make_token_geometry(jnp.zeros((1, count, 3)), radius=1.0, frame=frames, views=33)
    allowed = np.asarray(_pairs(query, key, RULE, soft=False).allowed)[0, :, 0]
    assert allowed.nonzero()[0].tolist() == [69]


def test_ellipse_metric():
    angle = np.radians(30)
    axes = np.array(
        [[np.cos(angle), np.sin(angle), 0], [-np.sin(angle), np.cos(angle), 0], [0, 0, 1]]
    )
    metric = pk.ellipse_metric(jnp.asarray(axes, jnp.float32), jnp.array([2.0, 0.5, 0.1]))
    origin = pk.make_token_geometry(jnp.zeros((1, 1, 3)), metric=metric[None, None])
    radii, ends = np.array([2.0, 0.5, 0.1]), []
    for grow in (0.99, 1.01):
        ends.append(axes * (radii * grow)[:, None])
    points = jnp.asarray(np.concatenate(ends)[None], jnp.float32)
    key = pk.make_token_geometry(points, radius=1.0)
    allowed = np.asarray(_pairs(origin, key, RULE, soft=False).allowed)[0, 0]
    assert allowed.tolist() == [True] * 3 + [False] * 3
    np.testing.assert_allclose(pk.sphere_metric(jnp.float32(0.5)), [4, 4, 4, 0, 0, 0])


@pytest.mark.row("S15")
def test_strength_runs_from_no_constraint_to_the_hard_mask():
    query, key = _two(3)
    wide = pk.CorrespondenceRule(normal_cos=0.6, reach=float("inf"), falloff=0.0)
    key = key.replace(log_weight=np.zeros_like(key.log_weight))
    hard = np.asarray(_pairs(query, key, wide, soft=False).allowed)
    soft = _pairs(query, key, wide, soft=True)
    allowed = np.asarray(soft.allowed)
    known = [np.asarray(side.valid) & np.asarray(side.exists) for side in (query, key)]
    known = known[0][:, :, None] & known[1][:, None]
    np.testing.assert_array_equal(allowed, known)
    assert not np.asarray(_bias(soft, 0.0))[allowed].any()
    limit = np.asarray(_bias(soft, np.inf))[allowed]
    np.testing.assert_array_equal(limit, np.where(hard[allowed], 0.0, -np.inf))
    # In between the pairs that agree keep their place and the others fall steadily.
    steps = [np.asarray(_bias(soft, s))[allowed & ~hard] for s in (0.1, 1.0, 10.0)]
    assert (np.diff(steps, axis=0) < 0).all()


@pytest.mark.row("S15")
def test_nearer_and_more_certain_keys_weigh_more():
    query = pk.make_token_geometry(jnp.zeros((1, 1, 3)), radius=1.0)
    x = np.array([0.1, 0.5, 0.9, 0.1], np.float32)
    key = pk.make_token_geometry(
        jnp.asarray(np.stack([x, 0 * x, 0 * x], axis=-1)[None]),
        radius=1.0,
        log_weight=jnp.asarray(np.log(np.array([[1.0, 1.0, 1.0, 0.5]], np.float32))),
    )
    bias = np.asarray(_bias(_pairs(query, key, RULE, soft=True), 2.0))[0, 0]
    assert bias[0] > bias[1] > bias[2]
    np.testing.assert_allclose(bias[3] - bias[0], 2 / 3 * np.log(0.5), rtol=1e-5)


@pytest.mark.row("S15")
def test_slope_of_the_bias():
    pairs = _pairs(*_two(4), RULE, soft=True)
    at, step = np.float32(0.8), 1e-2
    above, below = (np.asarray(_bias(pairs, x)) for x in (at + step, at - step))
    slope = jax.jit(lambda pairs, strength: pairs.bias_slope(strength))(pairs, at)
    np.testing.assert_allclose(slope, (above - below) / (2 * step), rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="hard mask"):
        _pairs(*_two(4), RULE, soft=False).bias(at)


def test_unknown_positions_are_harmless():
    position = np.full((1, 2, 3), np.nan, np.float32)
    position[0, 0] = 0.0
    tokens = pk.make_token_geometry(
        jnp.asarray(position), radius=jnp.array([[1.0, 0.0]]), valid=jnp.array([[True, False]])
    )
    assert all(np.isfinite(x).all() for x in (tokens.position, tokens.metric))
    allowed = np.asarray(_pairs(tokens, tokens, RULE, soft=False).allowed)
    np.testing.assert_array_equal(allowed[0], [[True, False], [False, False]])


def test_arguments_are_checked():
    point = jnp.zeros((1, 1, 3))
    with pytest.raises(ValueError, match="either `radius` or `metric`"):
        pk.make_token_geometry(point)
    for bad in ({"normal_cos": 2.0}, {"reach": 0.5}, {"falloff": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            pk.CorrespondenceRule(**bad)
