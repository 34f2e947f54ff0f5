"""Keyframes pruned, selected and merged, with the entries' bits in step."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.memory import entry_scene as es
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.memory.coverage import view_coverage
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_update import update_entries
from worldstereo_jax.memory.entry_views import count_views, has_view, used_views
from worldstereo_jax.memory.keyframe_edit import (
    Views,
    keep_keyframes,
    keyframes_in_box,
    merge_keyframes,
    next_number,
    prune_keyframes,
    useful_keyframes,
)
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes

CAPACITY = 7


_insert = jax.jit(insert_keyframes)


@pytest.fixture(scope="module")
def shots(room):
    """Eight views: four on a small loop, one all but equal to the second, one aside, two more."""
    loop = es.cameras(room, 10)
    aside = room.look([0.0, -0.2, 0.0], [-4.5, 0.4, 1.5])
    w2c = np.stack([*loop[[0, 2, 4, 6, 2]], aside, *loop[[1, 8]]]).astype(np.float32)
    w2c[4, 0, 3] += 0.01
    images, depth = es.photographs(room, w2c)
    depth = es.noisy(depth, noise=0.002)
    return images, depth, w2c, es.frames(images, depth, w2c)


def views_of(shots, chosen, sources):
    *pictures, stacked = shots
    stereo = init_spatial_memory(CAPACITY, es.HEIGHT, es.WIDTH)
    entries = init_entries(EntryConfig(9000, pyramid_widths()))
    for number, (shot, source) in enumerate(zip(chosen, sources, strict=True)):
        source = jnp.asarray(source, jnp.int32)
        frame = [jnp.asarray(x[shot : shot + 1]) for x in pictures]
        stereo = _insert(stereo, *frame, jnp.asarray(es.INTRINSICS)[None], source=source)
        named = es.one(stacked, shot).replace(view=jnp.asarray(number, jnp.int32), source=source)
        entries = update_entries(entries, named, rule=es.RULE)
    return Views(stereo, entries)


@pytest.fixture(scope="module")
def views(shots):
    return views_of(shots, range(6), [0, 3, 3, 4, 4, 9])


def assert_bits_name_what_saw(found):
    """Each entry that has a keyframe's bit lies on the surface that this keyframe shows."""
    stereo, entries = found
    for slot in range(int(stereo.count)):
        saw = np.asarray(has_view(entries.views, jnp.asarray(slot)) & entries.valid)
        pixel, z = project(entries.anchor, stereo.w2c[slot], stereo.intrinsics[slot])
        x, y = np.floor(np.asarray(pixel)[saw]).astype(int).T
        assert saw.sum() > 300
        inside = (x >= 0) & (y >= 0) & (x < es.WIDTH) & (y < es.HEIGHT)
        assert inside.mean() > 0.99
        shown = np.asarray(stereo.depth[slot])[y[inside], x[inside]]
        assert (np.abs(np.asarray(z)[saw][inside] / shown - 1) < 0.1).mean() > 0.95


@pytest.mark.row("S30")
def test_redundant_keyframes_go_first_and_protected_ones_stay(views):
    stereo = views.stereo
    five = np.asarray(useful_keyframes(stereo, 5))
    # The second and the fifth show the same: one of them goes, before any that is alone.
    assert five[[0, 2, 3, 5]].all()
    assert five[[1, 4]].sum() == 1
    two = np.asarray(useful_keyframes(stereo, 2))
    assert set(np.flatnonzero(two)) == {0, 5}
    marked = jnp.zeros((CAPACITY,), bool).at[jnp.array([1, 4])].set(True)
    assert set(np.flatnonzero(useful_keyframes(stereo, 2, protected=marked))) == {1, 4}
    # Beyond the budget as well, and nothing else is taken when there is room.
    assert set(np.flatnonzero(useful_keyframes(stereo, 0, protected=marked))) == {1, 4}
    np.testing.assert_array_equal(useful_keyframes(stereo, 6), stereo.valid)
    np.testing.assert_array_equal(useful_keyframes(stereo, 99), stereo.valid)


@pytest.mark.row("S30")
def test_each_step_drops_the_keyframe_whose_cells_the_others_show_best(views):
    stereo = views.stereo
    shown = np.asarray(jax.jit(view_coverage)(stereo, stereo.w2c, stereo.intrinsics))
    shown = shown[np.asarray(stereo.valid)].swapaxes(0, 1).reshape(CAPACITY, -1)
    shown = shown / np.maximum((shown > 0).sum(0), 1)
    kept = list(range(6))
    while len(kept) > 3:
        total = shown[kept].max(0).sum()
        loss = {v: total - shown[[k for k in kept if k != v]].max(0).sum() for v in kept[1:]}
        kept.remove(min(reversed(loss), key=lambda v: loss[v]))
    assert set(np.flatnonzero(useful_keyframes(stereo, 3))) == set(kept)


@pytest.mark.row("S30")
@pytest.mark.row("S33")
def test_entries_know_their_views_after_some_are_gone(views):
    keep = jnp.array([True, False, True, True, False, True, False])
    found = keep_keyframes(*views, keep)
    stereo, entries = found
    assert (int(stereo.count), int(stereo.overflow)) == (4, 0)
    np.testing.assert_array_equal(stereo.valid, np.arange(CAPACITY) < 4)
    for name in ("images", "depth", "confidence", "w2c", "intrinsics"):
        old, new = (np.asarray(getattr(x, name)) for x in (views.stereo, stereo))
        np.testing.assert_array_equal(new[:4], old[[0, 2, 3, 5]])
        assert (new[4:] == old[6]).all()
    np.testing.assert_array_equal(stereo.source[:4], [0, 1, 2, 3])
    for slot, before in enumerate((0, 2, 3, 5)):
        for bits in ("views", "denied"):
            told = (getattr(x, bits) for x in (entries, views.entries))
            now, then = (
                has_view(b, jnp.asarray(v)) for b, v in zip(told, (slot, before), strict=True)
            )
            np.testing.assert_array_equal(now, then)
    # Views that are gone still count, under numbers where no keyframe will ever stand.
    np.testing.assert_array_equal(count_views(entries.views), count_views(views.entries.views))
    used = set(np.flatnonzero(used_views(entries.views)))
    assert used == {0, 1, 2, 3, CAPACITY, CAPACITY + 1}
    np.testing.assert_array_equal(entries.position, views.entries.position)
    assert_bits_name_what_saw(found)
    assert int(next_number(stereo, entries)) == 4
    # Once more: those that were gone before stay told apart from those that go now.
    again = keep_keyframes(*found, jnp.arange(CAPACITY) < 2)
    np.testing.assert_array_equal(count_views(again.entries.views), count_views(entries.views))
    assert_bits_name_what_saw(again)
    pruned = prune_keyframes(*views, 4)
    assert int(pruned.stereo.count) == 4
    assert_bits_name_what_saw(pruned)


@pytest.mark.row("S33")
def test_clips_are_numbered_anew_in_their_order(views):
    found = keep_keyframes(*views, jnp.array([True, False, False, True, False, True, False]))
    np.testing.assert_array_equal(found.stereo.source[:3], [0, 1, 2])
    old, new = (np.asarray(x.entries.source) for x in (views, found))
    held = np.asarray(views.entries.valid)
    # What clip 3 put there, of which no keyframe is left, goes to the clip before it.
    for before, after in ((0, 0), (3, 0), (4, 1), (9, 2)):
        assert (old[held] == before).sum() > 0
        np.testing.assert_array_equal(new[held & (old == before)], after)


@pytest.mark.row("S30")
def test_bits_without_room_are_left_out_and_counted(views):
    everyone = views.entries.views.at[0].set(jnp.uint32(0xFFFFFFFF))
    crowded = views.entries.replace(views=everyone)
    found = keep_keyframes(views.stereo, crowded, jnp.arange(CAPACITY) < 2)
    # Of 62 views that are gone, 57 find a number past the capacity.
    assert int(found.entries.uncounted) == 5
    assert set(np.flatnonzero(used_views(found.entries.views))) == {0, 1, *range(CAPACITY, 64)}
    assert_bits_name_what_saw(
        Views(found.stereo, found.entries.replace(valid=found.entries.valid.at[0].set(False)))
    )


@pytest.mark.row("S33")
def test_the_next_view_gets_its_slot_or_a_number_past_all_others(views):
    assert int(next_number(*views)) == 6
    full = views.stereo.replace(count=jnp.asarray(CAPACITY, jnp.int32))
    assert int(next_number(full, views.entries)) == CAPACITY
    beyond = views.entries.views.at[0, 1].set(jnp.uint32(1 << 4))
    assert int(next_number(full, views.entries.replace(views=beyond))) == 37


@pytest.mark.row("S33")
def test_keyframes_of_a_box_are_those_that_show_it(views):
    stereo = views.stereo
    side = jnp.array([-5.5, -3.0, 0.0]), jnp.array([-4.5, 2.0, 1.5])
    assert set(np.flatnonzero(keyframes_in_box(stereo, *side))) == {5}
    nowhere = jnp.full((3,), 50.0), jnp.full((3,), 60.0)
    assert not keyframes_in_box(stereo, *nowhere).any()


@pytest.mark.row("S33")
def test_merged_views_are_those_of_both_and_entries_name_them(shots):
    left = views_of(shots, (0, 1, 2), [0, 1, 1])
    right = views_of(shots, (0, 5, 3), [0, 1, 2])
    found, new = merge_keyframes(left, right, rule=es.RULE)
    np.testing.assert_array_equal(np.flatnonzero(new), [1, 2])
    stereo, entries = found
    assert int(stereo.count) == 5
    np.testing.assert_array_equal(stereo.images[:5], shots[0][[0, 1, 2, 5, 3]])
    np.testing.assert_array_equal(stereo.source[:5], [0, 1, 1, 2, 3])
    assert_bits_name_what_saw(found)
    assert set(np.flatnonzero(used_views(entries.views))) == set(range(5))
    assert int(entries.count) < int(left.entries.count) + int(right.entries.count)
    assert int(entries.count) > int(left.entries.count) + 300


@pytest.mark.row("S33")
def test_keyframes_that_find_no_room_in_a_merge_are_counted(shots, views):
    found, new = merge_keyframes(views, views_of(shots, (0, 6, 7), [0, 1, 1]), rule=es.RULE)
    assert int(new.sum()) == 2
    assert (int(found.stereo.count), int(found.stereo.overflow)) == (CAPACITY, 1)
    np.testing.assert_array_equal(found.stereo.images[6], shots[0][6])
    assert set(np.flatnonzero(used_views(found.entries.views))) == set(range(8))
    assert_bits_name_what_saw(found)


@pytest.mark.row("S33")
def test_merging_with_itself_changes_nothing(views):
    plain = keep_keyframes(*views, views.stereo.valid)
    found, new = merge_keyframes(plain, plain, rule=es.RULE)
    assert not new.any()
    es.assert_equal_banks(found, plain)


def test_other_sizes_are_refused(views):
    other = Views(init_spatial_memory(2, 16, 16), init_entries(es.CONFIG))
    with pytest.raises(InputError, match="cannot be merged"):
        merge_keyframes(views, other)


def test_all_works_inside_jit(views):
    @jax.jit
    def run(stereo, entries):
        return prune_keyframes(stereo, entries, 3)

    es.assert_equal_banks(run(*views), prune_keyframes(*views, 3))
