"""A clip from a memory and the memory after it: pure, repeatable, compiled once."""

import dataclasses

import jax
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory
from worldstereo_jax.sampling.world import ESTIMATED, Cameras, measured_confidence


def test_the_clip_has_frames_and_depth_at_every_pixel(finished, world):
    clip, _ = finished
    config = world.rollout
    assert clip.video.shape == (config.frames, config.height, config.width, 3)
    assert np.isfinite(clip.video).all()
    assert np.abs(clip.video).max() <= 1
    assert (np.asarray(clip.depth) > 0).all()


@pytest.mark.row("S26")
def test_both_memories_grow_by_the_clip(finished, memory, world):
    _, after = finished
    assert int(after.stereo.count) == int(memory.stereo.count) + world.rollout.keyframes
    assert int(after.points.count) > int(memory.points.count)
    assert int(after.entries.count) > int(memory.entries.count)
    # Every keyframe has its own bit in the entries that it showed.
    seen = np.bitwise_or.reduce(np.asarray(after.entries.views)[: int(after.entries.count), 0])
    assert seen == 2 ** int(after.stereo.count) - 1
    chosen = keyframe_indices(world.rollout.frames, world.rollout.keyframes)
    stored = after.stereo.images[1 : 1 + len(chosen)]
    np.testing.assert_array_equal(stored, finished[0].video[chosen])
    np.testing.assert_array_equal(after.stereo.images[0], memory.stereo.images[0])


def test_the_same_key_gives_the_same_bits_and_another_key_another_clip(
    rollout, finished, params, memory, cameras
):
    again, _ = rollout(params, memory, cameras, jax.random.key(0))
    np.testing.assert_array_equal(again.video, finished[0].video)
    other, _ = rollout(params, memory, cameras, jax.random.key(1))
    assert np.abs(np.asarray(other.video - again.video)).max() > 1e-3


def test_a_second_clip_through_the_grown_memory_compiles_nothing(rollout, finished, params, scene):
    _, after = finished
    second = Cameras(w2c=scene["revisit_w2c"], intrinsics=scene["revisit_intrinsics"])
    before = rollout._cache_size()
    _, last = rollout(params, after, second, jax.random.key(2))
    assert rollout._cache_size() == before == 1
    assert int(last.stereo.count) == 5
    assert int(last.stereo.overflow) == 0


def test_known_depth_is_kept_and_the_rest_is_estimated(finished):
    clip, _ = finished
    known = np.asarray(clip.guidance.depth) > 0
    np.testing.assert_array_equal(
        np.asarray(clip.depth)[known], np.asarray(clip.guidance.depth)[known]
    )
    assert (~known).any()


@pytest.mark.row("S6")
def test_known_depth_is_written_back_as_what_was_read(finished, world):
    clip, after = finished
    inherited = np.asarray(clip.inherited)
    np.testing.assert_array_equal(inherited > 0, np.asarray(clip.guidance.depth) > 0)
    assert inherited.max() <= 1
    chosen = keyframe_indices(world.rollout.frames, world.rollout.keyframes)
    stored = slice(1, 1 + len(chosen))
    measured, confidence = (
        np.asarray(x[stored]) for x in (after.stereo.measured, after.stereo.confidence)
    )
    read = inherited[chosen] > 0
    np.testing.assert_array_equal(measured, ~read | (confidence == 0))
    assert (confidence <= inherited[chosen])[read].all()
    assert 0.1 < measured.mean() < 0.9
    # What the clip made up is no measurement: any that comes later outweighs it.
    stereo = after.stereo
    cameras = Cameras(w2c=stereo.w2c[stored], intrinsics=stereo.intrinsics[stored])
    sure = measured_confidence(stereo.depth[stored], cameras)
    np.testing.assert_allclose(confidence[~read], ESTIMATED * np.asarray(sure)[~read], rtol=1e-6)


@pytest.mark.usefixtures("unchecked")
def test_a_path_or_a_memory_of_other_sizes_is_named(rollout, params, memory, cameras):
    key = jax.random.key(0)
    frames = len(cameras.w2c)
    short = jax.tree.map(lambda x: x[1:], cameras)
    with pytest.raises(InputError, match=rf"w2c must have shape \[{frames}, 4, 4\], got"):
        jax.eval_shape(rollout, params, memory, short, key)
    one_lens = Cameras(w2c=cameras.w2c, intrinsics=cameras.intrinsics[0])
    with pytest.raises(InputError, match=rf"intrinsics must have shape \[{frames}, 3, 3\], got"):
        jax.eval_shape(rollout, params, memory, one_lens, key)
    other = dataclasses.replace(memory, stereo=init_spatial_memory(4, 32, 32))
    with pytest.raises(InputError, match="memory holds views of 32x32 pixels, but the rollout is"):
        jax.eval_shape(rollout, params, other, cameras, key)


@pytest.mark.usefixtures("unchecked")
def test_arguments_in_another_order_are_named(rollout, params, memory, cameras):
    key = jax.random.key(0)
    for wrong, said in (
        ((memory, params, cameras, key), "params must be a WorldParams, got a WorldMemory"),
        ((params, memory, memory, key), "cameras must be a Cameras, got a WorldMemory"),
        ((params, memory, cameras, 0), "key must be a random key"),
    ):
        with pytest.raises(InputError, match=said):
            rollout(*wrong)
