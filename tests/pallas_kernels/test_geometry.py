"""The correspondence predicate and the soft constraint (rows S14, S15)."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels as pk
from pallas_kernels.geometry import correspondence
from pallas_kernels.selftest_cases import random_geometry
from tests.pallas_kernels.brute_force import correspondence_table

RULE = pk.CorrespondenceRule(normal_cos=0.6, reach=1.5, falloff=0.5)


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
    got = np.asarray(
        jax.jit(lambda q, k: correspondence(q, k, rule, soft=False).allowed)(query, key)
    )
    decides = "query" if field == "target" else field
    want, clear = correspondence_table(query, key, RULE.normal_cos, field=decides)
    assert 0.005 < want.mean() < 0.5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(got[clear], want[clear])
    # Each condition excludes something of its own.
    for change in (
        {"normal": jnp.zeros_like(key.normal)},
        {"visibility": jnp.full_like(key.visibility, 0xFFFFFFFF)},
        {"valid": jnp.ones_like(key.valid)},
        {"segment": jnp.zeros_like(key.segment)},
    ):
        looser = correspondence(query, key.replace(**change), rule, soft=False).allowed
        assert int(jnp.sum(looser)) > int(got.sum()), change.keys()


@pytest.mark.row("S14")
def test_views_past_the_first_word():
    count = 70
    point = jnp.zeros((1, 1, 3))
    words = np.zeros((1, 1, 3), np.uint32)
    words[0, 0, 2] = 1 << 5  # view 69
    key = pk.make_token_geometry(point, radius=1.0, visibility=jnp.asarray(words))
    frames = jnp.arange(count, dtype=jnp.int32)[None]
    query = pk.make_token_geometry(jnp.zeros((1, count, 3)), radius=1.0, frame=frames, views=33)
    allowed = np.asarray(correspondence(query, key, RULE, soft=False).allowed)[0, :, 0]
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
    allowed = np.asarray(correspondence(origin, key, RULE, soft=False).allowed)[0, 0]
    assert allowed.tolist() == [True] * 3 + [False] * 3
    np.testing.assert_allclose(pk.sphere_metric(jnp.float32(0.5)), [4, 4, 4, 0, 0, 0])


@pytest.mark.row("S15")
def test_strength_runs_from_no_constraint_to_the_hard_mask():
    query, key = _two(3)
    wide = pk.CorrespondenceRule(normal_cos=0.6, reach=float("inf"), falloff=0.0)
    key = key.replace(log_weight=jnp.zeros_like(key.log_weight))
    hard = np.asarray(correspondence(query, key, wide, soft=False).allowed)
    soft = correspondence(query, key, wide, soft=True)
    allowed = np.asarray(soft.allowed)
    known = (
        np.asarray(query.valid & query.exists)[:, :, None]
        & np.asarray(key.valid & key.exists)[:, None]
    )
    np.testing.assert_array_equal(allowed, known)
    assert not np.asarray(soft.bias(jnp.float32(0.0)))[allowed].any()
    limit = np.asarray(soft.bias(jnp.float32(jnp.inf)))[allowed]
    np.testing.assert_array_equal(limit, np.where(hard[allowed], 0.0, -np.inf))
    # In between the pairs that agree keep their place and the others fall steadily.
    steps = [np.asarray(soft.bias(jnp.float32(s)))[allowed & ~hard] for s in (0.1, 1.0, 10.0)]
    assert (np.diff(steps, axis=0) < 0).all()


@pytest.mark.row("S15")
def test_nearer_and_more_certain_keys_weigh_more():
    query = pk.make_token_geometry(jnp.zeros((1, 1, 3)), radius=1.0)
    x = jnp.array([0.1, 0.5, 0.9, 0.1])
    key = pk.make_token_geometry(
        jnp.stack([x, 0 * x, 0 * x], axis=-1)[None],
        radius=1.0,
        log_weight=jnp.log(jnp.array([[1.0, 1.0, 1.0, 0.5]])),
    )
    bias = np.asarray(correspondence(query, key, RULE, soft=True).bias(jnp.float32(2.0)))[0, 0]
    assert bias[0] > bias[1] > bias[2]
    np.testing.assert_allclose(bias[3] - bias[0], 2 / 3 * np.log(0.5), rtol=1e-5)


@pytest.mark.row("S15")
def test_slope_of_the_bias():
    pairs = correspondence(*_two(4), RULE, soft=True)
    at, step = jnp.float32(0.8), 1e-2
    difference = (pairs.bias(at + step) - pairs.bias(at - step)) / (2 * step)
    np.testing.assert_allclose(pairs.bias_slope(at), difference, rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="hard mask"):
        correspondence(*_two(4), RULE, soft=False).bias(at)


def test_unknown_positions_are_harmless():
    position = jnp.full((1, 2, 3), jnp.nan).at[0, 0].set(0.0)
    tokens = pk.make_token_geometry(
        position, radius=jnp.array([[1.0, 0.0]]), valid=jnp.array([[True, False]])
    )
    assert all(bool(jnp.isfinite(x).all()) for x in (tokens.position, tokens.metric))
    allowed = correspondence(tokens, tokens, RULE, soft=False).allowed
    np.testing.assert_array_equal(allowed[0], [[True, False], [False, False]])


def test_arguments_are_checked():
    point = jnp.zeros((1, 1, 3))
    with pytest.raises(ValueError, match="either `radius` or `metric`"):
        pk.make_token_geometry(point)
    for bad in ({"normal_cos": 2.0}, {"reach": 0.5}, {"falloff": -1.0}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            pk.CorrespondenceRule(**bad)
