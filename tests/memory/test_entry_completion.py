"""Entries draw what no warped view shows."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_completion import add_entries, entries_beyond
from worldstereo_jax.memory.warping import Warped


@pytest.mark.row("S28")
def test_entries_speak_where_no_view_that_was_warped_does(memory, cameras):
    """With the only view left out of the warp, the entries made from it take its place."""
    _, height, width = memory.stereo.depth.shape
    frames = len(cameras.w2c)
    nothing = Warped(
        features=jnp.zeros((frames, height, width, 3)),
        mask=jnp.ones((frames, height, width)),
        depth=jnp.zeros((frames, height, width)),
        weight=jnp.zeros((frames, height, width)),
        confidence=jnp.zeros((frames, height, width)),
    )

    @jax.jit
    def completed(valid):
        beyond = entries_beyond(memory.entries, jnp.zeros((1,), jnp.int32), valid)
        return add_entries(nothing, beyond, cameras.w2c, cameras.intrinsics)

    np.testing.assert_array_equal(completed(jnp.array([True])).mask, 1.0)
    found = completed(jnp.array([False]))
    covered = np.asarray(found.mask[0]) < 0.5
    assert covered.mean() > 0.8
    seen = np.asarray(found.features[0])[covered]
    assert np.abs(seen - np.asarray(memory.stereo.images[0])[covered]).mean() < 0.05
    depth = np.asarray(memory.stereo.depth[0])[covered]
    assert np.median(np.abs(np.asarray(found.depth[0])[covered] - depth) / depth) < 0.01


@pytest.mark.row("S28")
def test_entries_of_views_without_a_number_are_beyond_all_that_have_one():
    """Frames past the bitset and points of a cloud are on record nowhere, and still add."""
    bank = init_entries(EntryConfig(4, (3,)))
    bank = bank.replace(
        valid=jnp.array([True, True, True, False]),
        views=bank.views.at[0, 0].set(1).at[1, 0].set(3),
    )
    index, there = jnp.array([0, 1], jnp.int32), jnp.array([True, False])
    np.testing.assert_array_equal(
        entries_beyond(bank, index, there).valid, [False, True, True, False]
    )
