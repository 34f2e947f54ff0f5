"""Stages compiled apart make what one program makes."""

import jax
import numpy as np
import pytest

from worldstereo_jax.sampling.compiled import compile_rollout
from worldstereo_jax.sampling.conditions import without_stereo


@pytest.mark.slow
def test_the_stages_one_by_one_make_the_same_clip(finished, world, params, memory, cameras):
    rollout = compile_rollout(world, params)
    key = jax.random.key(0)
    clip, after = rollout(params, memory, cameras, key)
    np.testing.assert_allclose(clip.video, finished[0].video, atol=2e-4)
    np.testing.assert_allclose(clip.depth, finished[0].depth, rtol=1e-3)
    np.testing.assert_allclose(after.stereo.images, finished[1].stereo.images, atol=2e-4)
    assert int(after.entries.count) == int(finished[1].entries.count)
    conditions, guidance = rollout.gather(params, memory, cameras)
    other = rollout.clip(params, (without_stereo(conditions), guidance), cameras, key)
    assert np.abs(np.asarray(other.video - clip.video)).max() > 1e-3
