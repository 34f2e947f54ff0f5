"""Entries as tokens: only what adds something, once per token, within a budget."""

import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import make_token_geometry
from tests.memory import entry_scene as es
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_appearance import appearance_change
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_tokens import (
    entry_block_mask,
    entry_token_width,
    see_entries,
    select_entry_tokens,
)
from worldstereo_jax.memory.masks import ViewSet

COUNT = 24
NOBODY = (jnp.zeros((1,), jnp.int32), jnp.zeros((1,), bool))
FIRST = (jnp.zeros((1,), jnp.int32), jnp.ones((1,), bool))
EVERYBODY = (jnp.arange(3, dtype=jnp.int32), jnp.ones((3,), bool))


def targets_of(w2c, depth=None):
    w2c = jnp.asarray(w2c, jnp.float32)
    frames = len(w2c)
    unknown = jnp.zeros((frames, es.HEIGHT, es.WIDTH))
    return ViewSet(
        depth=unknown if depth is None else jnp.asarray(depth),
        w2c=w2c,
        intrinsics=jnp.broadcast_to(jnp.asarray(es.INTRINSICS), (frames, 3, 3)),
        valid=jnp.ones((frames,), bool),
    )


@pytest.fixture(scope="module")
def scene(room):
    w2c = es.cameras(room, 5)
    images, depth = es.photographs(room, w2c)
    bank = es.build(es.frames(images[:3], depth[:3], w2c[:3]))
    return SimpleNamespace(bank=bank, targets=targets_of(w2c[3:]), w2c=w2c, depth=depth)


def winners(bank, targets, attended):
    """The best entry of every cell with its value, and everyone's cell, by plain loops."""
    position, normal = np.asarray(bank.position), np.asarray(bank.normal)
    frames, scale = (np.asarray(x) for x in see_entries(bank.position, sure(bank), targets))
    direction = np.asarray(bank.direction)
    w2c = np.asarray(targets.w2c[0])
    turned = normal @ w2c[:3, :3].T
    best, cells, values = {}, {}, {}
    for i in np.flatnonzero(np.asarray(sure(bank)) & (frames > 0)):
        views = int(bank.views[i, 0])
        added = bin(views & ~attended).count("1") / bin(views).count("1")
        if added == 0:
            continue
        cosine = abs(normal[i] @ direction[i]) / np.linalg.norm(direction[i])
        cosine = np.clip(cosine, 0.25, 1) if normal[i].any() else 1.0
        value = float(bank.confidence[i]) * cosine * added * frames[i] / len(targets.depth)
        value *= min(scale[i] / float(bank.footprint[i]), 1.0)
        values[i] = value
    unit = min(scale[i] for i in values)
    for i, value in values.items():
        level = np.round(np.log2(16 * scale[i] / unit))
        place = (w2c[:3, :3] @ position[i] + w2c[:3, 3]) / unit
        cell = (level, *np.floor(place / 2.0**level), *(turned[i] > 0))
        cells[i] = cell
        if cell not in best or value > best[cell][0] * (1 + 1e-6):
            best[cell] = (value, i)
    return {i: value for value, i in best.values()}, cells


def sure(bank):
    return bank.valid & (bank.confidence >= 0.1)


def slots(bank, tokens):
    """Slots of the chosen entries, found by their positions."""
    chosen = np.asarray(tokens.geometry.position)[np.asarray(tokens.valid)]
    everyone = np.asarray(bank.position)
    return [int(np.flatnonzero((everyone == p).all(-1))[0]) for p in chosen]


@pytest.mark.row("S28")
def test_one_entry_per_token_sized_cell_the_most_valuable_first_and_the_rest_counted(scene):
    bank, targets = scene.bank, scene.targets
    expected, cells = winners(bank, targets, attended=1)
    assert len(expected) > COUNT
    tokens = select_entry_tokens(bank, targets, *FIRST, count=COUNT)
    chosen = slots(bank, tokens)
    assert len(chosen) == COUNT
    assert int(tokens.left_out) == len(expected) - COUNT
    assert len({cells[i] for i in chosen}) == COUNT
    values = [expected[i] for i in chosen]
    np.testing.assert_allclose(values, sorted(expected.values(), reverse=True)[:COUNT], rtol=1e-4)
    # Far fewer than what the bank holds of the same surfaces.
    assert len(expected) < 0.2 * int(sure(bank).sum())
    again = select_entry_tokens(bank, targets, *FIRST, count=COUNT)
    jax.tree.map(np.testing.assert_array_equal, tokens, again)


@pytest.mark.row("S28")
@pytest.mark.row("S26")
def test_what_only_attended_views_saw_adds_nothing(scene):
    bank, targets = scene.bank, scene.targets
    assert not select_entry_tokens(bank, targets, *EVERYBODY, count=COUNT).valid.any()
    tokens = select_entry_tokens(bank, targets, *FIRST, count=COUNT)
    views = np.asarray(bank.views)[slots(bank, tokens), 0]
    assert ((views & ~np.uint32(1)) != 0).all()
    # What the attended view did not see at all comes before what it shares with others.
    new = (views & 1) == 0
    assert new.any()
    assert new[: new.sum()].mean() > 0.9


@pytest.mark.row("S14")
@pytest.mark.row("S34")
def test_hidden_entries_and_those_out_of_sight_are_not_chosen():
    """A wall before another, and one beside the picture; the target knows only its own depth."""
    y, x = np.mgrid[-3:3:40j, -3:3:40j]
    flat = np.stack([x, y, np.zeros_like(x)], -1).reshape(-1, 3)
    small, wide = flat * np.array([0.2, 0.2, 1]), flat + np.array([0, 0, 4])
    walls = np.stack([small + np.array([0, 0, 2]), wide, small + np.array([60, 0, 4])])
    position = jnp.asarray(walls.reshape(-1, 3), jnp.float32)
    valid = jnp.ones((len(position),), bool)
    frames, scale = see_entries(position, valid, targets_of(np.eye(4)[None]))
    near, far, beside = np.split(np.asarray(frames), 3)
    assert near.all()
    assert not beside.any()
    away = np.abs(wide[:, :2])
    assert not far[(away < 1.1).all(-1)].any()
    inside = (away < np.array([2.2, 1.5])).all(-1)
    assert far[inside & (away > 1.5).any(-1)].all()
    np.testing.assert_allclose(np.asarray(scale)[: len(flat)], 2 / 42.0, rtol=1e-5)
    # The target's own depth hides the rest of the far wall as well.
    known = targets_of(np.eye(4)[None], np.full((1, es.HEIGHT, es.WIDTH), 2.0))
    near, far, _ = np.split(np.asarray(see_entries(position, valid, known).frames), 3)
    assert near.all()
    assert not far.any()


@pytest.mark.row("S17")
@pytest.mark.row("S36")
def test_an_empty_bank_and_a_budget_beyond_the_bank_give_empty_slots(scene):
    widths = pyramid_widths()
    empty = init_entries(EntryConfig(8, widths))
    tokens = select_entry_tokens(empty, scene.targets, *NOBODY, count=COUNT)
    assert tokens.features.shape == (COUNT, entry_token_width(widths))
    assert not tokens.valid.any()
    assert not np.asarray(tokens.features).any()
    assert int(tokens.left_out) == 0
    for leaf in jax.tree.leaves(tokens.geometry):
        assert np.isfinite(leaf).all()
    assert (np.asarray(tokens.geometry.segment) == -1).all()


@pytest.mark.row("S24")
def test_colours_are_those_seen_from_the_middle_of_the_path(scene):
    """Of entries whose blue grows towards x, the more the further right the path looks from."""
    bank = scene.bank
    n = bank.capacity
    spread = jnp.tile(jnp.array([0.02, 0.02, 0.02, 0, 0, 0]), (n, 1))
    crossed = jnp.zeros((n, 9)).at[:, 6].set(0.01)
    glossy = bank.replace(
        appearance=jnp.concatenate([bank.appearance[:, :3], spread, crossed], -1),
        feature_variance=jnp.full((n,), 0.0016),
        observations=jnp.full((n,), 40, jnp.int32),
    )
    change = appearance_change(glossy, camera_centers(scene.targets.w2c[1]))
    tokens = select_entry_tokens(glossy, scene.targets, *FIRST, count=COUNT)
    chosen = np.array(slots(glossy, tokens))
    assert np.abs(np.asarray(change)[chosen, 2]).max() > 0.01
    colours = np.asarray(tokens.features[:, :81]).reshape(COUNT, 27, 3)
    stored = np.concatenate([np.asarray(level)[chosen] for level in bank.features], -1)
    expected = stored.reshape(COUNT, 27, 3) + np.asarray(change)[chosen][:, None]
    np.testing.assert_allclose(colours, expected, atol=1e-5)


@pytest.mark.row("S38")
@pytest.mark.parametrize(("degrees", "scale"), [(90.0, 2.0), (30.0, 1.5), (-77.0, 1e-3)])
def test_a_turned_and_scaled_world_gives_the_same_tokens(scene, degrees, scale):
    turn = es.turn(degrees)
    shift = np.array([0.137, 0.221, 0.313], np.float32)

    def placed(turn, scale):
        bank = scene.bank.replace(
            **{name: getattr(scene.bank, name) @ turn.T for name in ("normal", "direction")},
            position=scale * (scene.bank.position + shift[None]) @ turn.T,
            footprint=scale * scene.bank.footprint,
            distance=scale * scene.bank.distance,
            scatter=scale**2 * scene.bank.scatter,
            information=scene.bank.information / scale**2,
        )
        w2c = np.array(scene.targets.w2c)
        w2c[:, :3, 3] -= w2c[:, :3, :3] @ shift
        w2c[:, :3, :3] = w2c[:, :3, :3] @ turn.T
        w2c[:, :3, 3] *= scale
        return select_entry_tokens(bank, targets_of(w2c), *FIRST, count=2 * COUNT)

    here, there = placed(np.eye(3, dtype=np.float32), 1), placed(turn, scale)
    back = np.asarray(there.geometry.position) @ turn / scale
    away = np.abs(np.asarray(here.geometry.position)[:, None] - back[None]).max(-1)
    match = away.argmin(-1)
    same = away.min(-1) < 1e-4
    assert same.mean() > 0.95
    difference = np.abs(np.asarray(here.features) - np.asarray(there.features)[match]).max(-1)
    assert (difference[same] < 1e-3).all()


@pytest.mark.row("S14")
@pytest.mark.row("S15")
@pytest.mark.row("S17")
@pytest.mark.row("S19")
def test_the_mask_is_the_correspondence_predicate_and_its_soft_form_leans_to_the_near(scene):
    tokens = select_entry_tokens(scene.bank, scene.targets, *FIRST, count=COUNT)
    entries = jax.tree.map(lambda x: x[None], tokens.geometry)
    rng = np.random.default_rng(0)
    place = np.asarray(entries.position[0])[rng.integers(0, COUNT, 40)]
    place = place + 0.2 * rng.normal(size=place.shape)
    # Target tokens that no reference sees: entries must not care.
    target = make_token_geometry(
        jnp.asarray(place)[None],
        radius=0.3,
        frame=jnp.asarray(rng.integers(0, 2, (1, 40)), jnp.int32),
        visibility=jnp.zeros((1, 40, 1), jnp.uint32),
        valid=jnp.asarray(np.arange(40) != 3)[None],
    )
    offset = place[:, None] - np.asarray(entries.position[0])[None]
    xx, yy, zz, xy, xz, yz = np.asarray(entries.metric[0]).T[:, None]
    x, y, z = offset.T.swapaxes(1, 2)
    by_entry = xx * x**2 + yy * y**2 + zz * z**2 + 2 * (xy * x * y + xz * x * z + yz * y * z)
    away = np.minimum(np.linalg.norm(offset, axis=-1), 0.3 * np.sqrt(by_entry))
    assert (by_entry < 0.9)[np.linalg.norm(offset, axis=-1) > 0.35].any()
    seen = np.asarray(entries.visibility[0, :, 0])[None] >> np.asarray(target.frame[0])[:, None]
    expected = (away <= 0.3) & (seen & 1 == 1) & (np.arange(40) != 3)[:, None]
    mask = entry_block_mask(entries, target, tile=32)
    np.testing.assert_array_equal(np.asarray(mask.dense())[0, 0], expected)
    assert expected.any()
    assert not expected.any(-1).all()
    soft = entry_block_mask(entries, target, strength=1.0, tile=32)
    pairs = jax.jit(lambda m: m.dense_pairs())(soft)
    bias = np.where(np.asarray(pairs.allowed), np.asarray(pairs.bias(1.0)), -np.inf)[0, 0]
    weight = np.asarray(entries.log_weight[0])[None]
    free = expected & (away < 0.29)
    assert np.all((bias - 0.5 * (weight - 0.5 * (away / 0.3) ** 2))[free] < 1e-3)
    assert np.isneginf(bias[away > 0.61]).all()


@functools.cache
def _selector():
    return jax.jit(lambda bank, targets: select_entry_tokens(bank, targets, *FIRST, count=COUNT))


def test_the_selection_runs_in_jit_and_over_a_batch_of_paths(scene):
    one = _selector()(scene.bank, scene.targets)
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, atol=1e-5),
        one,
        select_entry_tokens(scene.bank, scene.targets, *FIRST, count=COUNT),
    )
    both = jax.tree.map(lambda x: jnp.stack([x, x]), scene.targets)
    batch = jax.jit(
        jax.vmap(lambda targets: select_entry_tokens(scene.bank, targets, *FIRST, count=COUNT))
    )(both)
    np.testing.assert_array_equal(batch.valid[1], one.valid)
    np.testing.assert_allclose(batch.features[1], one.features, atol=1e-5)
