import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.memory import curve_run, entry_index
from worldstereo_jax.memory.entry_index import (
    build_index,
    init_index,
    insert_entries,
    query_frustum,
    query_radius,
)
from worldstereo_jax.memory.ranges import Hits

renumber_entries = jax.jit(entry_index.renumber_entries)
sort_run = jax.jit(curve_run.sort_run)


def cloud(kind, n=4000, seed=0):
    """Random points in a box, on a bent sheet, or on a sheet far from the origin."""
    rng = np.random.default_rng(seed)
    if kind == "box":
        return rng.uniform(-2, 2, (n, 3)).astype(np.float32)
    u, v = rng.uniform(-3, 3, (2, n))
    sheet = np.stack([u, v, 0.4 * np.sin(2 * u) + (v > 1)], -1)
    if kind == "far sheet":
        sheet = sheet + np.array([300.0, -200.0, 50.0])
    return sheet.astype(np.float32)


# One size for every index and every query, so that each function is compiled once.
CAPACITY, BATCH, QUERIES, MOST = 4096, 64, 128, 512


def built(points, valid=None, cell=0.25):
    pad = CAPACITY - len(points)
    valid = np.ones(len(points), bool) if valid is None else valid
    points = np.pad(np.asarray(points, np.float32), ((0, pad), (0, 0)))
    valid = np.pad(valid, (0, pad))
    return build_index(jnp.asarray(points), jnp.asarray(valid), cell=cell, batch=BATCH)


def inserted(index, points, first=0, valid=None):
    pad = 3 * BATCH - len(points)
    valid = np.ones(len(points), bool) if valid is None else valid
    return insert_entries(
        index,
        jnp.asarray(np.pad(points, ((0, pad), (0, 0)))),
        jnp.arange(first, first + 3 * BATCH, dtype=jnp.int32),
        jnp.asarray(np.pad(valid, (0, pad))),
    )


def ask(index, centers, radius):
    """Hits of up to 128 centres."""
    pad = QUERIES - len(centers)
    centers = np.pad(np.asarray(centers, np.float32), ((0, pad), (0, 0)), constant_values=np.nan)
    radius = np.pad(np.broadcast_to(np.float32(radius), (QUERIES - pad,)), (0, pad))
    hits = query_radius(index, jnp.asarray(centers), jnp.asarray(radius), k=MOST)
    return Hits(entry=hits.entry[: QUERIES - pad], count=hits.count[: QUERIES - pad])


def found(hits):
    return [set(row[row >= 0].tolist()) for row in np.asarray(hits.entry)]


def near(points, centers, radius, ids=None):
    tree = cKDTree(points)
    rows = tree.query_ball_point(centers, radius)
    return [set(np.asarray(row if ids is None else ids[row]).tolist()) for row in rows]


@pytest.mark.row("S29")
@pytest.mark.parametrize("kind", ["box", "sheet", "far sheet"])
def test_radius_queries_equal_a_kd_tree(kind):
    points = cloud(kind)
    rng = np.random.default_rng(1)
    centers = points[:QUERIES] + rng.normal(0, 0.05, (QUERIES, 3)).astype(np.float32)
    index = built(points)
    for radius in (0.03, 0.12, 0.2, 0.6):
        expected = near(points, centers, radius)
        hits = ask(index, centers, radius)
        assert found(hits) == expected
        assert hits.count.tolist() == [len(row) for row in expected]
        assert int(hits.overflow.sum()) == 0


@pytest.mark.row("S29")
def test_every_query_has_its_own_radius_from_nothing_to_everything():
    points = cloud("sheet", 500)
    radius = np.geomspace(0.01, 100, 60).astype(np.float32)
    hits = ask(built(points, cell=0.05), points[:60], radius)
    assert found(hits) == near(points, points[:60], radius)
    assert int(hits.count[0]) < 20
    assert int(hits.count[-1]) == 500


@pytest.mark.row("S29")
def test_cells_that_share_a_code_are_told_apart():
    """The curve repeats every 1024 cells; with tiny cells most of the cloud wraps around."""
    points = cloud("box", 1500)
    hits = ask(built(points, cell=0.0008), points[:100], 0.2)
    assert found(hits) == near(points, points[:100], 0.2)


@pytest.mark.row("S29")
def test_hits_beyond_k_are_counted_not_lost_silently():
    points = cloud("box", CAPACITY)
    hits = ask(built(points, cell=0.5), points[:50], 1.8)
    expected = near(points, points[:50], 1.8)
    counts = np.array([len(row) for row in expected])
    assert counts.max() > MOST > counts.min()
    assert hits.count.tolist() == counts.tolist()
    assert hits.overflow.tolist() == np.maximum(counts - MOST, 0).tolist()
    for got, all_of_them in zip(found(hits), expected, strict=True):
        assert got <= all_of_them
        assert len(got) == min(len(all_of_them), MOST)


@pytest.mark.row("S29")
def test_invalid_and_unusable_rows_are_never_found():
    points = cloud("box", 600)
    valid = np.arange(600) % 3 > 0
    points[1], points[2] = np.nan, np.inf
    usable = valid & np.isfinite(points).all(-1)
    index = built(points, valid)
    assert int(index.count) == usable.sum()
    centers = np.concatenate([points[3:60], [[np.nan, 0, 0]]]).astype(np.float32)
    hits = ask(index, centers, 0.5)
    ids = np.flatnonzero(usable)
    assert found(hits)[:-1] == near(points[usable], centers[:-1], 0.5, ids)
    assert int(hits.count[-1]) == 0


@pytest.mark.row("S29")
@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.full((5, 3), np.nan), np.ones((70, 3))])
def test_degenerate_clouds(points):
    hits = ask(built(points), np.ones((2, 3)), 0.01)
    assert hits.count.tolist() == [int(np.isfinite(points).all(-1).sum())] * 2


@pytest.mark.row("S29")
def test_batches_inserted_one_by_one_are_found_like_a_cloud_built_at_once():
    count, size = 4000, 150
    points = cloud("far sheet", count)
    rng = np.random.default_rng(2)
    centers = points[rng.integers(0, count, 100)]
    index = init_index(CAPACITY, cell=0.2, origin=jnp.asarray(points.min(0)), batch=BATCH)
    valid = rng.random(count) < 0.8
    sizes = []
    for begin in range(0, count, size):
        part = slice(begin, begin + size)
        index = inserted(index, points[part], begin, valid[part])
        sizes.append([int(run.count) for run in index.runs])
        if begin % 1500 == 0:
            ids = np.flatnonzero(valid[: begin + size])
            assert found(ask(index, centers, 0.15)) == near(points[ids], centers, 0.15, ids)
    assert int(index.count) == valid.sum() == sum(sizes[-1])
    assert int(index.overflow) == 0
    # The large run is touched rarely: that is what makes an update cheap.
    touched = (np.diff(np.array(sizes)[:, -1]) != 0).sum()
    assert 0 < touched <= len(sizes) / 3


@pytest.mark.row("S29")
def test_a_batch_that_does_not_fit_is_refused_whole_and_counted():
    points = cloud("box", CAPACITY + 100)
    index = built(points[: CAPACITY - 100])
    full = inserted(index, points[:150])
    assert (int(full.count), int(full.overflow)) == (CAPACITY - 100, 150)
    assert found(ask(full, points[:5], 0.5)) == found(ask(index, points[:5], 0.5))
    part = inserted(full, points[-100:], 5000)
    assert (int(part.count), int(part.overflow)) == (CAPACITY, 150)
    assert 5000 in found(ask(part, points[-100:], 0.0))[0]


def cameras(rng, count):
    w2c = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    for camera in w2c:
        axis, _ = np.linalg.qr(rng.normal(size=(3, 3)))
        camera[:3, :3] = axis * np.sign(np.linalg.det(axis))
        camera[:3, 3] = rng.uniform(-1, 1, 3)
    intrinsics = np.array([[60, 0, 40], [0, 60, 30], [0, 0, 1]], np.float32)
    return jnp.asarray(w2c), jnp.tile(jnp.asarray(intrinsics), (count, 1, 1))


def look(index, w2c, intrinsics, near=0.0, far=np.inf):
    near, far = jnp.float32(near), jnp.float32(far)
    return query_frustum(
        index, w2c, intrinsics, height=60, width=80, near=near, far=far, k=CAPACITY
    )


@pytest.mark.row("S29")
@pytest.mark.parametrize("kind", ["box", "sheet"])
def test_frustum_queries_equal_brute_force(kind):
    points = jnp.asarray(cloud(kind, CAPACITY))
    valid = np.arange(CAPACITY) % 5 > 0
    w2c, intrinsics = cameras(np.random.default_rng(3), 6)
    index = built(points, valid, cell=0.1)
    for near_z, far_z in ((0.0, np.inf), (0.5, 2.0)):
        hits = look(index, w2c, intrinsics, near=near_z, far=far_z)
        for camera in range(6):
            pixels, z = project(points, w2c[camera], intrinsics[camera])
            inside = (pixels >= 0).all(-1) & (pixels[:, 0] < 80) & (pixels[:, 1] < 60)
            inside = inside & (z > near_z) & (z <= far_z) & valid
            assert found(hits)[camera] == set(np.flatnonzero(np.asarray(inside)).tolist())
    assert int(hits.count.max()) > 50


@pytest.mark.row("S29")
def test_blocks_outside_a_frustum_are_not_looked_into():
    """A block's box, not its entries, decides: entries smuggled outside their box stay unseen."""
    index = built(cloud("sheet", CAPACITY), cell=0.1)
    w2c = jnp.tile(jnp.eye(4).at[2, 3].set(4.0), (6, 1, 1))
    intrinsics = jnp.tile(jnp.array([[400.0, 0, 40], [0, 400, 30], [0, 0, 1]]), (6, 1, 1))
    count = int(look(index, w2c, intrinsics).count[0])
    run = index.runs[-1]
    moved = run.replace(position=jnp.zeros_like(run.position))
    smuggled = index.replace(runs=(*index.runs[:-1], moved))
    touched = int(look(smuggled, w2c, intrinsics).count[0])
    assert 0 < count < touched < CAPACITY / 4


@pytest.mark.row("S29")
@pytest.mark.row("S30")
def test_entries_are_removed_and_renumbered_as_a_bank_is_compacted():
    points = cloud("sheet", 1000)
    kept = np.random.default_rng(5).random(1000) < 0.5
    new_id = np.where(kept, np.cumsum(kept) - 1, -1).astype(np.int32)
    index = init_index(CAPACITY, cell=0.2, batch=BATCH)
    for begin in range(0, 1000, 150):
        index = inserted(index, points[begin : begin + 150], begin)
    pruned = renumber_entries(index, jnp.asarray(new_id))
    assert int(pruned.count) == kept.sum()
    assert found(ask(pruned, points[:80], 0.2)) == near(points[kept], points[:80], 0.2)


@pytest.mark.row("S29")
def test_inside_scan_and_under_64_bits():
    points = cloud("box", 640)

    def grow(index, part):
        position, entry = part
        return insert_entries(index, position, entry, jnp.ones(64, bool)), index.count

    parts = jnp.asarray(points).reshape(10, 64, 3), jnp.arange(640, dtype=jnp.int32).reshape(10, 64)
    index, counts = jax.lax.scan(grow, init_index(640, cell=0.5, batch=128), parts)
    assert counts.tolist() == list(range(0, 640, 64))
    lattice = index.lattice
    entry, valid = jnp.arange(640, dtype=jnp.int32), jnp.ones(640, bool)
    run = sort_run(jnp.asarray(points), entry, valid, lattice)
    assert run.code.dtype == jnp.uint32
    assert (run.code[1:] >= run.code[:-1]).all()
    with jax.enable_x64(True):
        again = sort_run(jnp.asarray(points), entry, valid, lattice)
    assert again.entry.tolist() == run.entry.tolist()
    merged = index.runs[-1]
    assert int(merged.count) == 640
    assert merged.code.tolist() == run.code.tolist()


@pytest.mark.row("S38")
def test_a_scaled_and_shifted_world_gives_the_same_hits():
    points = cloud("sheet", 1000)
    plain = ask(built(points, cell=0.2), points[:50], 0.1)
    large = points * 64 + np.float32(1000)
    other = ask(built(large, cell=12.8), large[:50], 6.4)
    assert found(plain) == found(other)


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match="positive capacity"):
        init_index(0, cell=1.0)
    with pytest.raises(InputError, match="cannot be built from 10 rows"):
        build_index(jnp.zeros((10, 3)), jnp.ones(10, bool), cell=1.0, capacity=5)


def test_an_empty_index_has_the_types_that_updates_give_it():
    """Weak types would have every function compiled once more for its own output."""
    leaves = jax.tree.leaves(entry_index.init_index(256, cell=0.1, batch=64))
    assert not any(leaf.weak_type for leaf in leaves)
