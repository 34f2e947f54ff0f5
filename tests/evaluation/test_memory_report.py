"""Figures of a stored memory."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.evaluation.memory_picture import memory_picture
from worldstereo_jax.evaluation.memory_report import (
    report_entries,
    report_memory,
    report_stride,
    shared_surface,
)
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_codec import quantise_entries
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes

_H, _W = 32, 48
_K = np.array([[40.0, 0, 24.0], [0, 40.0, 16.0], [0, 0, 1]], np.float32)


def _wall(shifts, *, capacity=6, source=0):
    """Views of a wall at z = 2, from cameras shifted along x (world units)."""
    count = len(shifts)
    w2c = np.tile(np.eye(4, dtype=np.float32), (count, 1, 1))
    w2c[:, 0, 3] = -np.asarray(shifts, np.float32)
    images = np.random.default_rng(0).uniform(-1, 1, (count, _H, _W, 3)).astype(np.float32)
    depth = np.full((count, _H, _W), 2.0, np.float32)
    return insert_keyframes(
        init_spatial_memory(capacity, _H, _W),
        jnp.asarray(images),
        jnp.asarray(depth),
        jnp.asarray(w2c),
        jnp.broadcast_to(jnp.asarray(_K), (count, 3, 3)),
        source=source,
    )


@pytest.mark.row("S8")
def test_the_shared_surface_is_what_lies_in_both_views():
    # A shift of 0.6 at depth 2 and focal length 40 moves the wall by 12 of 48 pixels.
    memory = _wall([0.0, 0.6])
    views = memory.depth[:2], memory.w2c[:2], memory.intrinsics[:2], memory.valid[:2]
    for stride in (1, 4):
        shared = shared_surface(*views, stride=stride)
        np.testing.assert_allclose(np.diag(shared), 1.0)
        np.testing.assert_allclose(shared[0, 1], 0.75, atol=0.03)
        np.testing.assert_allclose(shared[1, 0], 0.75, atol=0.03)
    assert [report_stride(views, 480, 832) for views in (5, 30, 300)] == [1, 3, 8]


def test_counts_are_those_of_the_stored_views():
    memory = _wall([0.0, 0.6, 3.0], source=4)
    report = report_memory(memory)
    assert report.views == 3
    assert report.sources == {4: 3}
    assert report.confidence.sum() == 3 * _H * _W
    assert report.bytes_per_view == 4 * (_H * _W * 5 + 16 + 9)
    np.testing.assert_allclose(report.known, 1.0)
    assert report.shared[0, 2] == 0
    # A view without depth is known nowhere and shares nothing.
    blind = dataclasses.replace(memory, depth=memory.depth.at[1].set(0.0))
    report = report_memory(blind)
    np.testing.assert_allclose(report.known, [1, 0, 1])
    assert report.shared[1].max() == 0


def test_an_empty_memory_has_no_figures():
    report = report_memory(init_spatial_memory(2, _H, _W))
    assert (report.views, report.sources, report.confidence.sum()) == (0, {}, 0)


@pytest.mark.parametrize("shifts", [[0.0], [0.0, 3.0], [0.0, 0.3, 0.6]])
def test_any_memory_can_be_drawn(shifts):
    memory = _wall(shifts)
    picture = memory_picture(memory, report_memory(memory), title="of $\\x$ \udcff")
    assert picture.shape[2] == 3
    assert picture.dtype == np.uint8
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) > 20


def test_entries_are_reported_alike_however_they_are_stored():
    bank = init_entries(EntryConfig(6, widths=(4, 3)))
    bank = bank.replace(
        valid=bank.valid.at[:4].set(True),
        views=bank.views.at[0, 0].set(7).at[1:4, 0].set(2),
        confidence=bank.confidence.at[:4].set(0.55),
        features=(bank.features[0].at[:3].set(0.5), bank.features[1].at[:6].set(0.25)),
        count=jnp.asarray(4, jnp.int32),
    )
    plain, small = report_entries(bank), report_entries(quantise_entries(bank))
    for report in (plain, small):
        assert (report.entries, report.widths, report.levels) == (4, (4, 3), (3, 4))
        assert report.confidence.tolist() == [0, 0, 0, 0, 0, 4, 0, 0, 0, 0]
        assert report.views.tolist() == [0, 3, 0, 1]
    # Of 7 feature channels and 18 numbers of appearance, a byte each instead of four.
    assert plain.bytes_per_entry - small.bytes_per_entry == 3 * (7 + 18)
