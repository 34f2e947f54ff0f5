"""Training clips are what a rollout would see, and survive the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.models.vae_tiny import encode_frames
from worldstereo_jax.sampling.conditions import example_conditions
from worldstereo_jax.sampling.world import ESTIMATED, remember_frames
from worldstereo_jax.training import clip_preparation
from worldstereo_jax.training.clip_preparation import (
    blur,
    from_fields,
    long_world_clips,
    prepare_pair,
    smooth_noise,
    to_fields,
)


@pytest.fixture(scope="module")
def long_clips(world, params, scene):
    """Of a world of three paths, the last one of which becomes a clip."""
    names = ("image", "depth", "w2c", "intrinsics")
    paths = ("", "revisit_", "")
    item = {name: jnp.stack([scene[path + name] for path in paths]) for name in names}
    return list(long_world_clips(world, params.vae, first=2)(item, jax.random.key(1)))


@pytest.mark.slow
@pytest.mark.row("S28")
def test_late_clips_of_long_worlds_read_entries_of_views_they_do_not_attend_to(long_clips, world):
    ((conditions, target),) = long_clips
    assert conditions.reference_valid.all()
    assert int(conditions.entries.valid.sum()) > 10
    back, _ = from_fields(to_fields(conditions, target), example_conditions(world))
    np.testing.assert_array_equal(back.entries.valid, conditions.entries.valid)
    np.testing.assert_allclose(back.entries.features, conditions.entries.features, atol=1e-3)
    fields = to_fields(conditions, target)
    del fields["entries.valid"]
    with pytest.raises(InputError, match=r"no field 'entries\.valid': build their cache again"):
        from_fields(fields, example_conditions(world))


@pytest.fixture(scope="module")
def told():
    """What was told of the frames that the pair's memory was given."""
    return {}


@pytest.fixture(scope="module")
def pair(world, params, scene, told):
    def remember(*frames, **how):
        told.update(how)
        return remember_frames(*frames, **how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip_preparation, "remember_frames", remember)
        return prepare_pair(world, params.vae, scene, jax.random.key(0))


@pytest.mark.slow
@pytest.mark.row("S6")
def test_depth_that_the_memory_did_not_know_counts_as_estimated(pair, told):
    sure, known = np.asarray(told["confidence"]), np.asarray(told["inherited"]) > 0
    assert known.any()
    assert not known.all()
    assert sure[known].max() > ESTIMATED
    assert 0 < sure[~known].max() <= ESTIMATED


@pytest.mark.slow
def test_targets_are_the_latents_of_the_true_clips(pair, world, params, scene):
    (_, first), (_, revisit) = pair
    encode = jax.jit(encode_frames, static_argnums=0)
    for found, name in ((first, "image"), (revisit, "revisit_image")):
        truth = np.asarray(encode(world.vae, params.vae, scene[name][None]))[0]
        np.testing.assert_allclose(found, truth, atol=1e-5)


@pytest.mark.slow
@pytest.mark.row("S13")
def test_the_revisit_sees_more_through_the_memory_of_the_first_clip(pair):
    (first, _), (revisit, _) = pair
    assert int(first.reference_valid.sum()) == 1
    assert int(revisit.reference_valid.sum()) == 2
    cover = [float(c.warped_features[1:, ..., 0, 16].mean()) for c in (first, revisit)]
    assert cover[1] > cover[0]


@pytest.mark.slow
def test_cached_fields_come_back(pair, world):
    conditions, target = pair[1]
    back, back_target = from_fields(to_fields(conditions, target), example_conditions(world))
    np.testing.assert_allclose(back_target, target, rtol=1e-3, atol=1e-3)
    for found, expected in zip(jax.tree.leaves(back), jax.tree.leaves(conditions), strict=True):
        assert found.dtype == expected.dtype
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)


def test_smooth_noise_has_unit_scale_and_no_fine_detail():
    noise = np.asarray(smooth_noise(jax.random.key(0), 200, 48, 64))
    assert 0.5 < noise.std() < 1.2
    step = np.abs(np.diff(noise, axis=2)).mean()
    assert step < 0.1 * noise.std()


def test_blur_keeps_the_mean_and_removes_the_finest_detail():
    checker = jnp.asarray((np.indices((1, 16, 16)).sum(0) % 2)[..., None], jnp.float32)
    image = jnp.broadcast_to(checker, (1, 16, 16, 3))
    np.testing.assert_array_equal(blur(image, jnp.zeros(())), image)
    smooth = blur(image, jnp.ones(()))
    np.testing.assert_allclose(smooth[:, 1:-1, 1:-1], 0.5, atol=1e-6)
