import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from tests.memory import entry_scene as es
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.memory.entry_prune import (
    compact_entries,
    entry_worth,
    protect_entries,
    prune_entries,
)


@pytest.fixture(scope="module")
def bank(room):
    w2c = es.cameras(room, 10)[[0, 3, 6]]
    images, depth = es.photographs(room, w2c)
    return es.build(es.frames(images, es.noisy(depth), w2c))


@pytest.mark.row("S30")
def test_a_budget_keeps_the_protected_and_the_worthiest_without_gaps(bank):
    count = int(bank.count)
    doubtful = np.argsort(np.asarray(entry_worth(bank))[:count])[:40]
    marked = protect_entries(bank, jnp.zeros((bank.capacity,), bool).at[doubtful].set(True))
    pruned = prune_entries(marked, count // 2)
    kept = int(pruned.count)
    assert kept == count // 2
    held = np.asarray(pruned.valid)
    assert held[:kept].all()
    assert not held[kept:].any()
    assert int(np.asarray(pruned.protected).sum()) == 40
    stored = {tuple(p) for p in np.asarray(pruned.anchor)[:kept]}
    assert all(tuple(p) in stored for p in np.asarray(bank.anchor)[doubtful])
    worth = np.asarray(entry_worth(bank))
    rest = np.array([tuple(p) in stored for p in np.asarray(bank.anchor)[:count]])
    rest[doubtful] = False
    gone = np.array([tuple(p) not in stored for p in np.asarray(bank.anchor)[:count]])
    assert worth[:count][rest].min() >= worth[:count][gone].max() - 1e-6
    # Even alone beyond the budget the protected stay.
    assert int(prune_entries(marked, 10).count) == 40
    for leaf in jax.tree.leaves(pruned):
        if leaf.ndim:
            assert not np.asarray(leaf)[kept:].any()


@pytest.mark.row("S28")
@pytest.mark.row("S30")
def test_doubtful_entries_and_duplicates_go_first(bank):
    count = int(bank.count)
    doubtful = bank.replace(confidence=bank.confidence.at[:50].set(0.01))
    assert int(prune_entries(doubtful, count).count) <= count - 50
    # The bank twice, the second time less certain: half the budget is the first again.
    double = compact_entries(bank, bank.valid)
    index = jnp.arange(bank.capacity)
    shifted = jnp.where(index < count, index, index - count)
    twice = jax.tree.map(lambda x: x[shifted] if x.ndim else x, double)
    second = (index >= count) & (index < 2 * count)
    twice = twice.replace(
        valid=index < 2 * count,
        confidence=jnp.where(second, 0.9 * twice.confidence, twice.confidence),
        count=jnp.asarray(2 * count),
        source=second.astype(jnp.int32),
    )
    assert 2 * count <= bank.capacity
    worth = np.asarray(entry_worth(twice))
    assert worth[count : 2 * count].max() <= 1.0
    some = prune_entries(twice, count)
    share = np.asarray(some.source)[: int(some.count)].mean()
    assert share < 0.35


@pytest.mark.row("S30")
def test_half_the_entries_still_cover_what_all_did(bank):
    half = prune_entries(bank, int(bank.count) // 2)
    places = []
    for some in (bank, half):
        pixel, z = project(some.position, jnp.eye(4), jnp.asarray(es.INTRINSICS))
        keep = np.asarray(some.valid) & (np.asarray(z) > 0)
        pixel = np.asarray(pixel)[keep]
        inside = ((pixel >= 0) & (pixel < [es.WIDTH, es.HEIGHT])).all(1)
        cells = np.zeros((es.HEIGHT // 4, es.WIDTH // 4), bool)
        at = (pixel[inside] // 4).astype(int)
        cells[at[:, 1], at[:, 0]] = True
        places.append(cells)
    assert places[1].sum() >= 0.97 * places[0].sum()


@pytest.mark.row("S30")
@pytest.mark.row("S38")
@pytest.mark.parametrize(("degrees", "scale"), [(90.0, 2.0), (30.0, 1.5), (-77.0, 1e-3)])
def test_a_turned_and_scaled_bank_keeps_the_same_entries(bank, degrees, scale):
    turn = es.turn(degrees)
    shift = np.array([0.7, -2.1, 1.3], np.float32)
    moved = bank.replace(
        **{name: getattr(bank, name) @ turn.T for name in ("normal", "direction")},
        **{
            name: scale * (getattr(bank, name) @ turn.T + shift[None])
            for name in ("position", "anchor", "eye")
        },
        footprint=scale * bank.footprint,
        distance=scale * bank.distance,
    )
    half = int(bank.count) // 2
    # Told by a number that nothing moves.
    kept, kept_moved = (
        np.asarray(prune_entries(x, half).feature_weight[:half]) for x in (bank, moved)
    )
    assert np.isin(kept, kept_moved).mean() > 0.98


@pytest.mark.row("S26")
@pytest.mark.row("S30")
@pytest.mark.parametrize("points", ["alone", "first"])
def test_points_that_no_view_saw_are_thinned_as_evenly(bank, points):
    """They have no line of sight by which cells could be laid; also before what views saw."""
    unseen = bank.valid if points == "alone" else bank.valid & (jnp.arange(bank.capacity) < 200)
    some = bank.replace(eye=jnp.where(unseen[:, None], bank.anchor, bank.eye))
    half = prune_entries(some, int(bank.count) // 2)
    kept = np.asarray(half.position)[np.asarray(half.valid)]
    away, _ = cKDTree(kept).query(np.asarray(bank.position)[np.asarray(bank.valid)])
    footprint = np.asarray(bank.footprint)[np.asarray(bank.valid)]
    assert np.quantile(away / footprint, 0.99) < 3.0


@pytest.mark.row("S22")
@pytest.mark.row("S30")
def test_edges_go_slowly_and_spacing_tells_what_was_taken(bank):
    count = int(bank.count)
    half = prune_entries(bank, count // 2)
    edges = [
        (np.asarray(x.edge) > 0.5)[np.asarray(x.valid) & (np.asarray(x.confidence) >= 0.1)]
        for x in (bank, half)
    ]
    assert 0.05 < edges[0].mean() < 0.5
    kept = edges[1].sum() / edges[0].sum()
    others = (~edges[1]).sum() / (~edges[0]).sum()
    assert kept > 1.5 * others
    # Those that stay stand for the area of those that went.
    before, after = (
        np.square(np.asarray(x.spacing))[np.asarray(x.valid)].sum() for x in (bank, half)
    )
    assert 0.85 * before < after < 1.05 * before


@pytest.mark.row("S30")
def test_an_empty_bank_and_no_budget_are_no_trouble(bank):
    assert int(prune_entries(bank, 0).count) == 0
    empty = compact_entries(bank, jnp.zeros((bank.capacity,), bool))
    es.assert_finite(empty)
    assert int(prune_entries(empty, 100).count) == 0
