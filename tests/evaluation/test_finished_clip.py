"""Which stored views are a clip's, and measures that need no run; the rest is in
`cli/test_evaluate.py`."""

import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.finished_clip import (
    FinishedClip,
    camera_scores,
    number_of_clip,
    revisit_scores,
    stored_frames,
)


@pytest.fixture(scope="module")
def clip(scene):
    return FinishedClip(*(np.asarray(scene[name]) for name in ("image", "w2c", "intrinsics")))


def test_a_stored_view_is_known_by_camera_and_picture(memory, clip):
    assert stored_frames(memory.stereo, clip) == {0: 0}
    # What it began with is no frame that a clip added.
    assert number_of_clip(memory.stereo, clip) is None
    turned = clip._replace(video=clip.video[::-1], w2c=clip.w2c[::-1])
    assert number_of_clip(memory.stereo, turned) == 0
    assert stored_frames(memory.stereo, clip._replace(video=-clip.video)) == {}
    assert stored_frames(memory.stereo, clip._replace(video=clip.video[:, 2:])) == {}


def test_cameras_as_asked_for_have_no_error_in_any_unit(clip):
    scaled = clip.w2c.copy()
    scaled[:, :3, 3] *= 3.0
    found = camera_scores(scaled, clip.w2c)
    assert all(value < 1e-3 for value in found.values()), found


def test_clips_that_cannot_be_laid_over_each_other_are_refused(memory, clip):
    zooming = clip.intrinsics * np.array([2.0, 2.0, 1.0], np.float32)[None, :, None]
    for other, said in (
        (clip._replace(intrinsics=zooming), "none of them zooms"),
        (clip._replace(video=clip.video[:, :, 2:]), "cannot be compared"),
    ):
        with pytest.raises(InputError, match=said):
            revisit_scores(clip, other, memory.entries)
