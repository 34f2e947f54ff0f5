"""A world's whole memory edited: points, keyframes and entries stay in step."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.small_world import ROLLOUT, WORLD
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.memory.entry_views import has_view
from worldstereo_jax.sampling.compiled import CompiledRollout
from worldstereo_jax.sampling.official_rollout import OfficialClip, OfficialRollout
from worldstereo_jax.sampling.rollout import Clip, write_back
from worldstereo_jax.sampling.world import Cameras, WorldMemory, empty_memory, remember_frames
from worldstereo_jax.sampling.world_edit import (
    begin_clip,
    forget_last_clip,
    merge_worlds,
    prune_world,
    replay_keyframes,
    select_world,
    undo_clip,
)


def remembered(scene, memory, frames, source):
    told = parts_of(scene, frames)
    # From the second clip on a third of the depth is the memory's own.
    inherited = np.zeros(told[1].shape, np.float32)
    if isinstance(source, int) and source > 1:
        inherited[:, :16] = 0.5
    inherited = jax.device_put(inherited)
    return remember_frames(ROLLOUT, memory, *told, source, inherited=inherited)


def parts_of(scene, frames):
    """Images, depth and cameras of some frames of a scene."""
    part = np.asarray(frames)
    names = ("image", "depth", "w2c", "intrinsics")
    image, depth, *path = jax.device_put([np.asarray(scene[name])[part] for name in names])
    return image, depth, Cameras(*path)


@pytest.fixture(scope="module")
def begun(scene):
    return remembered(scene, empty_memory(ROLLOUT), [0], 0)


@pytest.fixture(scope="module")
def first(scene, begun):
    return remembered(scene, begun, [1], 1)


@pytest.fixture(scope="module")
def second(scene, first):
    return remembered(scene, first, [2, 3], 2)


def assert_same(left, right):
    for a, b in zip(jax.tree.leaves(left), jax.tree.leaves(right), strict=True):
        np.testing.assert_array_equal(a, b)


@jax.jit
def seen_by(memory, slot):
    """Which entries have a keyframe's bit, and where it sees each."""
    saw = has_view(memory.entries.views, slot) & memory.entries.valid
    camera = memory.stereo.w2c[slot], memory.stereo.intrinsics[slot]
    return saw, *project(memory.entries.anchor, *camera)


def assert_in_step(memory):
    """Entries with a keyframe's bit lie on what it shows."""
    for slot in range(int(memory.stereo.count)):
        saw, pixel, z = jax.device_get(seen_by(memory, np.int32(slot)))
        x, y = np.clip(np.floor(pixel[saw]).astype(int).T, 0, [[63], [47]])
        shown = np.asarray(memory.stereo.depth)[slot, y, x]
        assert saw.sum() > 300
        assert (np.abs(z[saw] / shown - 1) < 0.1).mean() > 0.9


@pytest.mark.row("S26")
def test_all_parts_grow_by_the_same_frames(begun, first):
    for part in ("points", "stereo", "entries"):
        before, after = (int(getattr(x, part).count) for x in (begun, first))
        assert after > before > 0, part
    assert_in_step(first)


@pytest.mark.row("S33")
def test_the_last_clip_is_undone_bit_by_bit_from_the_keyframes_alone(begun, first, second):
    assert int(second.entries.count) > int(first.entries.count)
    assert np.asarray(second.entries.inherited).any()
    assert not np.asarray(second.stereo.measured).all()
    assert_same(forget_last_clip(ROLLOUT, second), first)
    assert_same(forget_last_clip(ROLLOUT, forget_last_clip(ROLLOUT, second)), begun)
    assert_same(replay_keyframes(ROLLOUT, second, np.asarray(second.stereo.valid)), second)
    with pytest.raises(InputError, match="no clip to undo"):
        forget_last_clip(ROLLOUT, begun)


@pytest.mark.row("S33")
@pytest.mark.row("S35")
def test_frames_in_another_light_are_stored_as_shown_and_replayed_bit_by_bit(scene, begun):
    """Entries keep the light of the first frame; a keyframe keeps its own."""
    gain = np.array([0.8, 0.9, 0.85], np.float32)
    darker = scene | {"image": (np.asarray(scene["image"]) + 1) * gain - 1}
    grown, plain = (remembered(x, begun, [1, 2], 1) for x in (darker, scene))
    np.testing.assert_array_equal(np.asarray(grown.stereo.images)[1:3], darker["image"][1:3])
    assert_same(replay_keyframes(ROLLOUT, grown, np.asarray(grown.stereo.valid)), grown)
    assert_same(forget_last_clip(ROLLOUT, grown), begun)
    seen = np.asarray(begun.entries.valid)
    away, left = (
        np.abs((np.asarray(x.entries.features[0]) - begun.entries.features[0])[seen]).mean()
        for x in (grown, plain)
    )
    assert away < 1.1 * left, (away, left)
    assert int(grown.entries.count) == int(plain.entries.count) > int(begun.entries.count)


@pytest.mark.row("S33")
def test_a_history_undoes_whatever_was_done(scene, first):
    history = begin_clip(first)
    history = history.replace(current=remembered(scene, history.current, [2, 3], 2))
    assert int(history.current.stereo.count) == 4
    assert_same(undo_clip(history), first)


def _goes_on(scene, memory, frame: int) -> list[WorldMemory]:
    """The memory after a clip of one frame, as every rollout remembers it."""
    # The first of a clip is never a keyframe.
    video, depth, cameras = parts_of(scene, [frame] * 2)
    config = dataclasses.replace(ROLLOUT, frames=2, keyframes=1)
    nothing = jax.device_put(np.zeros(depth.shape, np.float32))
    clip = Clip(video, depth, cameras, None, nothing)
    world = dataclasses.replace(WORLD, rollout=config)
    compiled = types.SimpleNamespace(config=config)
    official = types.SimpleNamespace(world=world)
    return [
        write_back(world, memory, clip),
        CompiledRollout.remember(compiled, memory, clip),
        OfficialRollout.remember(
            official, memory, OfficialClip(video, depth, cameras, None, None, nothing)
        ),
    ]


@pytest.mark.row("S33")
def test_after_a_selection_the_clip_that_comes_next_is_the_one_undone(scene, second):
    # Views of the beginning and of clip 2: as many as there are clips.
    chosen = replay_keyframes(ROLLOUT, second, np.isin(np.arange(second.stereo.capacity), [0, 3]))
    assert np.asarray(chosen.stereo.source[:2]).tolist() == [0, 2]
    for grown in _goes_on(scene, chosen, 1):
        assert np.asarray(grown.stereo.source[:3]).tolist() == [0, 2, 3]
        assert_same(forget_last_clip(ROLLOUT, grown), chosen)


@pytest.mark.row("S30")
@pytest.mark.row("S33")
def test_a_pruned_world_grows_on_with_its_entries_in_step(scene, second):
    budget = int(second.entries.count) // 2
    pruned = prune_world(second, views=2, entries=budget)
    assert int(pruned.stereo.count) == 2
    assert int(pruned.entries.count) == budget
    np.testing.assert_array_equal(pruned.stereo.images[0], second.stereo.images[0])
    assert_same(pruned.points, second.points)
    assert_in_step(pruned)
    assert_same(prune_world(second), second)
    # What comes next takes the freed slots, and their bits, without being taken for what is gone.
    kept, poses = np.asarray(pruned.stereo.w2c[:2]), np.asarray(second.stereo.w2c[:4])
    gone = np.flatnonzero(~(kept[:, None] == poses[None]).all((2, 3)).any(0))
    assert len(gone) == 2
    grown = remembered(scene, pruned, gone, pruned.stereo.count)
    assert int(grown.stereo.count) == 4
    assert_in_step(grown)
    sources = np.asarray(grown.stereo.source[:4])
    assert (sources[2:] > sources[:2].max()).all()


@pytest.mark.row("S33")
def test_a_box_keeps_what_lies_in_it(second):
    position = np.asarray(second.entries.position)[np.asarray(second.entries.valid)]
    low, high = np.quantile(position, 0.2, axis=0), np.quantile(position, 0.8, axis=0)
    found = select_world(second, jnp.asarray(low), jnp.asarray(high))
    inside = ((position >= low) & (position <= high)).all(1)
    assert 0 < inside.sum() < len(position)
    assert int(found.entries.count) == inside.sum()
    points = np.asarray(second.points.positions)[np.asarray(second.points.valid)]
    kept = points[((points >= low) & (points <= high)).all(1)]
    np.testing.assert_array_equal(np.asarray(found.points.positions)[: len(kept)], kept)
    assert int(found.points.count) == len(kept) > 0
    assert 0 < int(found.stereo.count) <= 4


@pytest.mark.row("S33")
def test_two_continuations_of_one_world_are_merged(scene, begun, first):
    other = remembered(scene, begun, [2, 3], 1)
    merged = merge_worlds(ROLLOUT, first, other)
    assert int(merged.stereo.count) == 4
    np.testing.assert_array_equal(np.asarray(merged.stereo.images)[:4], scene["image"])
    np.testing.assert_array_equal(np.asarray(merged.stereo.source)[:4], [0, 1, 2, 2])
    assert_in_step(merged)
    assert int(merged.points.count) > int(first.points.count)
    # Points that both know are there once.
    new = int(merged.points.count) - int(first.points.count)
    assert new <= int(other.points.count) - int(begun.points.count)
    assert_same(merge_worlds(ROLLOUT, first, first), first)
