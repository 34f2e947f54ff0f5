import json
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.cli.camera_paths import (
    CameraChoice,
    Job,
    PresetPath,
    cameras_of,
    path_through_memory,
    plan_jobs,
    spread,
)
from worldstereo_jax.cli.scene_input import read_working_scene
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.sampling.world import Cameras, RolloutConfig, empty_memory, init_memory

_FRAMES = 9
_K = np.array([[100.0, 0, 60], [0, 100.0, 36], [0, 0, 1]], np.float32)


def _plan(path, trajectories=(), **options: Any) -> list[Job]:
    scene, own_size = read_working_scene(path)
    return plan_jobs(scene, own_size, _FRAMES, CameraChoice(**options), trajectories)


def _cameras(job: Job) -> Cameras:
    assert isinstance(job.path, Cameras)
    assert job.path.w2c.shape == (_FRAMES, 4, 4)
    assert job.path.intrinsics.shape == (_FRAMES, 3, 3)
    return job.path


def test_without_camera_a_scene_goes_its_own_path(scene):
    (job,) = _plan(scene)
    assert (job.name, job.prompt) == ("", "waves")
    own = np.asarray(make_path("right", 12))
    np.testing.assert_allclose(np.asarray(_cameras(job).w2c)[[0, -1]], own[[0, -1]], atol=1e-6)


def test_intrinsics_of_a_file_belong_to_the_size_it_names_or_else_to_the_image(tmp_path, picture):
    path = np.asarray(make_path("left", _FRAMES))
    stacked = np.stack([_K] * _FRAMES)
    # The picture is 72x120 and becomes 96x160.
    for size, scale in ((None, 160 / 120), ((72, 120), 160 / 120), ((36, 60), 160 / 60)):
        write_cameras_json(tmp_path / "path.json", path, stacked, size)
        (job,) = _plan(picture, camera=str(tmp_path / "path.json"))
        np.testing.assert_allclose(_cameras(job).w2c, path, atol=1e-6)
        expected = _K * np.array([[scale], [scale], [1]])
        np.testing.assert_allclose(_cameras(job).intrinsics[0], expected, rtol=1e-5)
    stacked[:, 0, 2] = 540
    write_cameras_json(tmp_path / "path.json", path, stacked, None)
    with pytest.raises(InputError, match="its intrinsics belong to another size"):
        _plan(picture, camera=str(tmp_path / "path.json"))


def test_long_paths_are_thinned_and_short_ones_interpolated():
    path = np.asarray(make_path("orbit", 81))
    # Away from the origin: a path need not start there.
    path = path @ np.linalg.inv(path[20])
    stacked = np.stack([_K] * 81)
    thinned = spread(path, stacked, _FRAMES)
    np.testing.assert_allclose(thinned.w2c, path[::10], atol=1e-6)

    wider = np.stack([_K, _K * np.array([[2.0], [2.0], [1.0]], np.float32)])
    short = spread(path[[0, 20]], wider, _FRAMES)
    np.testing.assert_allclose(short.w2c[0], path[0], atol=1e-5)
    np.testing.assert_allclose(short.w2c[-1], path[20], atol=1e-5)
    centres = np.asarray(camera_centers(short.w2c))
    ends = centres[-1] - centres[0]
    progress = (centres - centres[0]) @ ends / (ends @ ends)
    assert np.all(np.diff(progress) > 0)
    focal = np.asarray(short.intrinsics)[:, 0, 0]
    assert np.all(np.diff(focal) > 0)
    np.testing.assert_allclose(focal[[0, 4, -1]], [100, 150, 200], rtol=1e-5)


def test_a_spline_goes_through_every_camera_of_a_short_path():
    path = np.asarray(make_path("spiral", 5))
    stacked = np.stack([_K] * 5)
    dense = np.asarray(camera_centers(spread(path, stacked, 401).w2c))
    for centre in np.asarray(camera_centers(path)):
        assert np.linalg.norm(dense - centre, axis=-1).min() < 2e-3


def test_a_preset_starts_at_the_first_view_and_turns_about_its_middle():
    config = RolloutConfig(
        frames=_FRAMES, height=32, width=48, bank_capacity=2, point_capacity=4096
    )
    start = np.asarray(make_path("up", 5))[-1]
    depth = np.full((32, 48), 9.0, np.float32)
    depth[8:-8, 12:-12] = 3.0
    memory = init_memory(
        config, jnp.zeros((32, 48, 3)), jnp.asarray(depth), jnp.asarray(start), jnp.asarray(_K)
    )
    found = cameras_of(Job("", "", PresetPath("left", 0.5)), memory, _FRAMES)
    np.testing.assert_allclose(found.w2c[0], start, atol=1e-5)
    expected = np.asarray(make_path("left", _FRAMES, amplitude=0.5, pivot_depth=3.0)) @ start
    np.testing.assert_allclose(found.w2c, expected, atol=1e-5)
    np.testing.assert_allclose(found.intrinsics[-1], _K)


def test_a_panorama_makes_its_paths_in_the_official_order(panorama):
    names = [job.name for job in _plan(panorama)]
    assert names == ["view0/traj0", "target1/traj0"]
    # However they are asked for.
    chosen = _plan(panorama, trajectories=["target1/traj0", "view0/traj0"])
    assert [job.name for job in chosen] == names
    assert [job.prompt for job in chosen] == ["view0", "target1"]
    (job,) = _plan(panorama, trajectories=["target1/traj0"])
    assert job.name == "target1/traj0"
    (job,) = _plan(panorama, camera="left")
    assert (job.name, job.prompt, job.path) == ("", "", PresetPath("left", 1.0))


def test_a_preset_is_not_taken_for_a_file_of_its_name(tmp_path, picture, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "orbit").mkdir()
    (job,) = _plan(picture, camera="orbit", amplitude=-0.5)
    assert job.path == PresetPath("orbit", -0.5)
    (tmp_path / "mine").write_text(json.dumps({}))
    with pytest.raises(InputError, match="mine has no field 'extrinsic'"):
        _plan(picture, camera="mine")


def test_a_memory_alone_is_passed_as_the_scene_it_was_begun_from(scene, tmp_path):
    """Presets and files, whatever size the file names; without one it has the first view's lens."""
    found, _ = read_working_scene(scene)
    config = RolloutConfig()
    memory = empty_memory(config)
    depth = jnp.full((config.height, config.width), 3.0)
    memory = memory.replace(
        stereo=memory.stereo.replace(
            depth=memory.stereo.depth.at[0].set(depth),
            w2c=memory.stereo.w2c.at[0].set(found.w2c[0]),
            intrinsics=memory.stereo.intrinsics.at[0].set(found.intrinsics[0]),
        )
    )
    for camera in ("spiral", str(scene / "camera.json")):
        (job,) = _plan(scene, camera=camera)
        expected = cameras_of(job, memory, _FRAMES)
        found = path_through_memory(memory, CameraChoice(camera), _FRAMES)
        np.testing.assert_allclose(found.w2c, expected.w2c, atol=1e-6)
        np.testing.assert_allclose(found.intrinsics, expected.intrinsics, rtol=1e-5)
    zooming = np.stack([_K, _K * np.array([[2.0], [2.0], [1.0]], np.float32)])
    path = np.asarray(make_path("left", 2))
    for size in (None, (72, 120)):
        write_cameras_json(tmp_path / "path.json", path, zooming, size)
        found = path_through_memory(memory, CameraChoice(str(tmp_path / "path.json")), 2)
        np.testing.assert_allclose(
            found.intrinsics, zooming * [[160 / 120], [160 / 120], [1]], rtol=1e-5
        )
