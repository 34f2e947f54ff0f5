import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.points import PointCloud
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_points import (
    entries_from_points,
    entries_to_points,
    entry_colors,
)
from worldstereo_jax.memory.global_geometric import init_global_memory, insert_points


@pytest.fixture(scope="module")
def shot(room):
    w2c = es.cameras(room, 1)
    images, depth = es.photographs(room, w2c)
    return images, es.frames(images, depth, w2c)


@pytest.mark.row("S26")
def test_entries_export_as_points_that_the_global_memory_takes(shot):
    images, stacked = shot
    bank = es.build(stacked)
    cloud = entries_to_points(bank, least_confidence=0.3)
    keep = np.asarray(cloud.valid)
    assert keep.sum() > 1200
    assert es.surface_error(cloud.points)[keep].max() < 1e-3
    # Every entry of a single frame has the colour of its own pixel.
    colours = {tuple(np.round(c, 4)) for c in images.reshape(-1, 3)}
    found = np.round(np.asarray(cloud.colors)[keep], 4)
    assert np.mean([tuple(c) in colours for c in found]) > 0.9
    memory = insert_points(init_global_memory(2000), cloud.points, cloud.colors, cloud.valid)
    assert int(memory.count) == keep.sum()


@pytest.mark.row("S26")
def test_points_become_entries_that_the_first_frame_makes_its_own(shot):
    _, stacked = shot
    seen = es.build(stacked)
    exact = entries_to_points(seen)
    grey = PointCloud(exact.points * 1.002, jnp.zeros_like(exact.colors), exact.valid)
    empty = init_entries(es.CONFIG)
    bank = entries_from_points(empty, grey, footprint=seen.footprint, source=9)
    n = int(bank.count)
    assert n == int(exact.valid.sum())
    assert (np.asarray(bank.source)[:n] == 9).all()
    assert not np.asarray(bank.views).any()
    assert 0 < float(bank.confidence[0]) <= 0.25
    np.testing.assert_array_equal(entry_colors(bank), 0.0)
    after = es.build(stacked, bank=bank)
    known = np.asarray(after.views[:n, 0]) == 1
    assert known.mean() > 0.95
    assert np.median(np.asarray(after.confidence)[:n]) > 0.6
    away = np.abs(np.asarray(entry_colors(after) - entry_colors(seen)))[:n][known]
    assert np.median(away) < 0.05
    # The frame adds next to nothing: the points are already there.
    assert int(after.count) - n < 0.1 * n


@pytest.mark.row("S26")
def test_points_that_are_invalid_or_do_not_fit_are_left_out():
    bank = init_entries(EntryConfig(3, (27, 27, 27)))
    points = jnp.arange(18.0).reshape(6, 3).at[1, 0].set(jnp.nan)
    cloud = PointCloud(points, jnp.ones((6, 3)), jnp.array([True, True, False, True, True, True]))
    footprint = jnp.array([0.1, 0.1, 0.1, 0.0, 0.1, 0.1])
    found = entries_from_points(bank, cloud, footprint=footprint)
    assert (int(found.count), int(found.overflow)) == (3, 0)
    np.testing.assert_array_equal(found.position[:, 0], [0, 12, 15])
    es.assert_finite(found)
    with pytest.raises(InputError, match="do not fit"):
        entries_from_points(init_entries(EntryConfig(3, (5,))), cloud, footprint=footprint)
