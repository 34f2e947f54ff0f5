"""Keys of a path, and the view that a key is meant to be."""

import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.key_path import KeyPath, snap_to_view
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.geometry.trajectories import make_path


@pytest.fixture
def keys():
    """Four cameras of an orbit in a world whose origin is elsewhere."""
    path = np.asarray(make_path("spiral", 10, amplitude=2.0))
    return (path @ np.linalg.inv(path[4]))[[0, 3, 6, 9]]


def test_a_path_goes_through_its_keys_in_their_world(keys):
    path = KeyPath()
    for key in keys:
        path = path.add(key)
    found = path.cameras(31)
    np.testing.assert_array_equal(found[0], keys[0])
    np.testing.assert_allclose(found[-1], keys[-1], atol=1e-5)
    for key in keys:
        assert np.abs(found - key).max((1, 2)).min() < 0.03
    steps = np.linalg.norm(np.diff(np.asarray(camera_centers(found)), axis=0), axis=-1)
    assert steps[0] < 0.3 * steps.max()
    assert steps.max() < 3 * np.median(steps)


def test_a_key_is_taken_away_by_its_number(keys):
    path = KeyPath(tuple(keys))
    shorter = path.without(1)
    assert len(path.keys) == 4
    np.testing.assert_array_equal(np.stack(shorter.keys), keys[[0, 2, 3]])
    with pytest.raises(InputError, match="keys 0 to 3, not 4"):
        path.without(4)
    with pytest.raises(InputError, match="at least 2 keys"):
        KeyPath((keys[0],)).cameras(9)


def test_a_camera_all_but_at_a_view_is_that_view(keys):
    near = keys[2].copy()
    near[:3, 3] += 0.004
    found, number = snap_to_view(near, keys, scale=1.0)
    assert number == 2
    np.testing.assert_array_equal(found, keys[2])
    for scale, moved in ((0.1, near), (1.0, keys[1] @ near)):
        found, number = snap_to_view(moved, keys[2:], scale=scale)
        assert number is None
        np.testing.assert_array_equal(found, moved)
    assert snap_to_view(near, keys[:0], scale=1.0)[1] is None
