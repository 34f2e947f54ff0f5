import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.memory.entries import init_entries
from worldstereo_jax.memory.entry_edit import (
    begin_clip,
    delete_entries,
    keep_entries,
    merge_entries,
    renumber_views,
    select_box,
    select_source,
    select_view,
    undo_clip,
)
from worldstereo_jax.memory.entry_views import count_views


@pytest.fixture(scope="module")
def clips(room):
    """Two clips of two views each, from places near one another."""
    w2c = es.cameras(room, 10)[[0, 1, 2, 3]]
    images, depth = es.photographs(room, w2c)
    depth = es.noisy(depth)
    first = es.frames(images[:2], depth[:2], w2c[:2], source=1)
    return first, es.frames(images[2:], depth[2:], w2c[2:], source=2, views=[2, 3])


@pytest.fixture(scope="module")
def banks(clips):
    return tuple(es.build(clip) for clip in clips)


@pytest.mark.row("S33")
def test_a_box_a_view_or_a_clip_is_selected_and_deleted(clips, banks):
    bank = es.build(clips[1], bank=banks[0])
    low, high = np.array([[-2.0, -1.0, 3.0], [0.0, 3.0, 6.5]], np.float32)
    inside = np.asarray(select_box(bank, jnp.asarray(low), jnp.asarray(high)))
    position = np.asarray(bank.position)
    by_hand = ((position >= low) & (position <= high)).all(1) & np.asarray(bank.valid)
    np.testing.assert_array_equal(inside, by_hand)
    assert 0 < inside.sum() < int(bank.count)
    part, rest = keep_entries(bank, jnp.asarray(inside)), delete_entries(bank, jnp.asarray(inside))
    assert int(part.count) + int(rest.count) == int(bank.count)
    np.testing.assert_array_equal(part.position[: inside.sum()], position[inside])
    assert not select_box(rest, jnp.asarray(low), jnp.asarray(high)).any()
    third = np.asarray(select_view(bank, 2))
    np.testing.assert_array_equal(third, (np.asarray(bank.views[:, 0]) & 4) > 0)
    assert third.sum() > 1000
    second = select_source(bank, 2)
    assert int(second.sum()) == int(bank.count) - int(banks[0].count)
    left = delete_entries(bank, second)
    assert int(left.count) == int(banks[0].count)
    np.testing.assert_array_equal(left.anchor, banks[0].anchor)


@pytest.mark.row("S33")
def test_undoing_the_last_clip_is_exact(clips, banks):
    history = begin_clip(banks[0])
    history = history.replace(current=es.build(clips[1], bank=history.current))
    assert int(history.current.count) > int(banks[0].count)
    es.assert_equal_banks(undo_clip(history), banks[0])


@pytest.mark.row("S33")
@pytest.mark.row("S12")
def test_merged_banks_know_what_one_bank_of_all_frames_knows(clips, banks):
    merged = merge_entries(*banks, rule=es.RULE)
    together = es.build(clips[1], bank=banks[0])
    n = int(banks[0].count)
    views = np.asarray(count_views(merged.views))[:n]
    assert (views >= 3).mean() > 0.5
    assert (views >= 3).mean() > 0.6 * (np.asarray(count_views(together.views))[:n] >= 3).mean()
    # Joined entries are better, if not by the root of two: places are matched by where they lie.
    both = views == 4
    rms = [
        np.sqrt(np.mean(np.square(es.surface_error(x.position)[:n][both])))
        for x in (merged, banks[0])
    ]
    assert rms[0] < 0.93 * rms[1]
    held = np.asarray(merged.valid)
    assert held[: int(merged.count)].all()
    assert int(merged.count) < int(banks[0].count) + 0.6 * int(banks[1].count)
    np.testing.assert_array_equal(merged.source[:n], 1)
    np.testing.assert_array_equal(merged.source[n : int(merged.count)], 2)
    assert int(merged.overflow) == 0
    es.assert_finite(merged)


@pytest.mark.row("S33")
def test_merging_with_nothing_or_with_itself_changes_nothing(banks):
    bank, nothing = banks[0], init_entries(es.CONFIG)
    es.assert_equal_banks(merge_entries(bank, nothing, rule=es.RULE), bank)
    es.assert_equal_banks(merge_entries(bank, bank, rule=es.RULE), bank)
    moved = merge_entries(nothing, bank, rule=es.RULE, view_offset=40, source_offset=5)
    assert int(moved.count) == int(bank.count)
    np.testing.assert_array_equal(moved.position, bank.position)
    np.testing.assert_array_equal(moved.views[:, 1], bank.views[:, 0] << 8)
    np.testing.assert_array_equal(moved.source[: int(bank.count)], 6)


@pytest.mark.row("S33")
def test_what_a_merge_finds_no_room_for_is_counted(banks):
    full = banks[0].replace(count=jnp.asarray(es.CONFIG.capacity - 10, jnp.int32))
    apart = banks[1].replace(position=banks[1].position + 100.0)
    merged = merge_entries(full, apart, rule=es.RULE)
    assert int(merged.overflow) == int(banks[1].count) - 10
    assert int(merged.count) == es.CONFIG.capacity


@pytest.mark.row("S5")
def test_renumbered_views_are_those_of_a_set():
    bits = jax.random.bits(jax.random.key(0), (5, 2), "uint32")
    for offset, words in ((0, 2), (7, 3), (33, 3), (-5, 1), (50, 2)):
        found = np.asarray(renumber_views(bits, offset, words=words))
        for row, new in zip(np.asarray(bits), found, strict=True):
            old = {32 * w + i for w in range(2) for i in range(32) if row[w] >> i & 1}
            meant = {i + offset for i in old if 0 <= i + offset < 32 * words}
            assert {32 * w + i for w in range(words) for i in range(32) if new[w] >> i & 1} == meant
