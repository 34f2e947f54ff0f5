"""A clip from a memory and the memory after it: pure, repeatable, compiled once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.sampling.conditions import gather_conditions, without_global, without_stereo
from worldstereo_jax.sampling.denoise import denoise
from worldstereo_jax.sampling.rollout import (
    Clip,
    complete_depth,
    generate_clip,
    make_rollout,
    write_back,
)
from worldstereo_jax.sampling.world import Cameras


@pytest.fixture(scope="module")
def rollout(world):
    return make_rollout(world)


@pytest.fixture(scope="module")
def finished(rollout, params, memory, cameras):
    return rollout(params, memory, cameras, jax.random.key(0))


@pytest.fixture(scope="module")
def conditions(world, params, memory, cameras):
    return jax.jit(lambda m, c: gather_conditions(world, params.vae, m, c)[0])(memory, cameras)


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


def test_the_stages_one_by_one_make_the_same_clip(finished, world, params, memory, cameras):
    gather = jax.jit(lambda m, c: gather_conditions(world, params.vae, m, c))
    conditions, guidance = gather(memory, cameras)
    generate = jax.jit(lambda c, g, k: generate_clip(world, params, c, g, k))
    video = generate(conditions, guidance, jax.random.key(0))
    depth = jax.jit(lambda v, d: complete_depth(world, params, v, d))(video, guidance.depth)
    clip = Clip(video=video, depth=depth, cameras=cameras, guidance=guidance)
    after = jax.jit(lambda m, c: write_back(world, m, c, 1))(memory, clip)
    np.testing.assert_allclose(video, finished[0].video, atol=2e-4)
    np.testing.assert_allclose(after.stereo.images, finished[1].stereo.images, atol=2e-4)


def test_known_depth_is_kept_and_the_rest_is_estimated(finished):
    clip, _ = finished
    known = np.asarray(clip.guidance.depth) > 0
    np.testing.assert_array_equal(
        np.asarray(clip.depth)[known], np.asarray(clip.guidance.depth)[known]
    )
    assert (~known).any()


@pytest.mark.row("S17")
def test_a_removed_memory_is_not_read(world, params, conditions):
    """With a memory off, what it says must not reach the output by any way."""

    @jax.jit
    def output(conditions):
        batch = jax.tree.map(lambda leaf: leaf[None], conditions)
        noisy = 0.5 * jax.random.normal(jax.random.key(5), batch.render_latent.shape)
        return denoise(world.denoiser, params.denoiser, noisy, jnp.array([400.0]), batch)

    stereo = ("reference_latent", "warped_features")
    shifted = {name: getattr(conditions, name) + 1.0 for name in stereo}
    other_views = dataclasses.replace(conditions, **shifted)
    assert np.abs(output(conditions) - output(other_views)).max() > 1e-4
    np.testing.assert_allclose(
        output(without_stereo(conditions)), output(without_stereo(other_views)), atol=1e-5
    )
    other_points = dataclasses.replace(conditions, render_latent=conditions.render_latent + 1.0)
    assert np.abs(output(conditions) - output(other_points)).max() > 1e-4
    np.testing.assert_allclose(
        output(without_global(conditions)), output(without_global(other_points)), atol=1e-5
    )
