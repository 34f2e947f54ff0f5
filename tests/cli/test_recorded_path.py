"""Paths recorded elsewhere: where they start, how far they go, through which lens."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from tests.posed_cameras import random_cameras
from worldstereo_jax.cli.camera_paths import (
    CameraChoice,
    Job,
    cameras_of,
    path_through_memory,
    plan_jobs,
)
from worldstereo_jax.cli.recorded_path import (
    RecordedPath,
    begun_by,
    placed_at,
    scene_units,
)
from worldstereo_jax.cli.scene_input import read_working_scene
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import FORMATS, PosedCameras, inverse, write_cameras
from worldstereo_jax.geometry.trajectories import DOLLY, make_path
from worldstereo_jax.sampling.world import Cameras, RolloutConfig, empty_memory

FRAMES = 9
DEPTH = np.full((8, 8), 4.0, np.float32)


def plan(picture, file, **options) -> Job:
    scene, own_size = read_working_scene(picture)
    (job,) = plan_jobs(scene, own_size, FRAMES, CameraChoice(str(file), **options))
    return job


def recording(path="left", frames=FRAMES, size=(72, 120)) -> PosedCameras:
    """A named path about a pivot at depth 1, in a world turned, moved and enlarged 5 times."""
    world = random_cameras(2, seed=3).w2c[0]
    w2c = np.asarray(make_path(path, frames), np.float64)
    w2c[:, :3, 3] *= 5
    k = np.array([[90.0, 0, size[1] / 2], [0, 90, size[0] / 2], [0, 0, 1]])
    names = tuple(f"{i:04d}.png" for i in range(frames))
    times = np.arange(frames) / 8.0
    return PosedCameras(w2c @ world, np.stack([k] * frames), size, names, times)


@pytest.mark.parametrize("name", [name for name in FORMATS if FORMATS[name].write is not None])
def test_every_format_gives_the_same_path(tmp_path, picture, name):
    if name == "worldstereo":
        return
    write_cameras(tmp_path / "path", recording(), name)
    path = plan(picture, tmp_path / "path").path
    assert isinstance(path, RecordedPath)
    expected = np.asarray(make_path("left", FRAMES)).copy()
    expected[:, :3, 3] *= 5
    np.testing.assert_allclose(path.w2c, expected, atol=2e-5)
    np.testing.assert_array_equal(path.w2c[0], np.eye(4))
    if path.lenses is None:
        assert name in ("tum", "kitti")
    else:
        # The picture's 72 x 120 pixels become 96 x 160.
        np.testing.assert_allclose(
            path.lenses[-1], [[120, 0, 80], [0, 120, 48], [0, 0, 1]], rtol=1e-6
        )
    # Metres are the scene's; else the pivot, 5 away, is as far as the middle of the picture.
    assert scene_units(path, DEPTH) == pytest.approx(1 if path.metric else 4 / 5, rel=1e-4)


def test_the_unit_is_what_was_asked_or_what_the_first_camera_looks_at(tmp_path, picture):
    given = recording("dolly")
    write_cameras(tmp_path / "a", given, "colmap")
    straight = plan(picture, tmp_path / "a").path
    # A straight path turns about nothing: its end is where a dolly's is.
    reach = np.linalg.norm(inverse(straight.w2c.astype(float))[-1, :3, 3])
    assert scene_units(straight, DEPTH) * reach == pytest.approx(DOLLY * 4)
    asked = plan(picture, tmp_path / "a", camera_scale=0.25).path
    assert scene_units(asked, DEPTH) == 0.25
    # Points 7 before the first camera in the middle of its image, others elsewhere and behind.
    local = np.array(
        [[0.1 * i, 0, 7, 1] for i in range(-5, 6)] + [[6, 0, 10, 1], [0, 0, -3, 1]] * 19
    )
    points = (local @ inverse(given.w2c[0]).T)[:, :3]
    write_cameras(tmp_path / "b", dataclasses.replace(given, points=points), "colmap")
    assert scene_units(plan(picture, tmp_path / "b").path, DEPTH) == pytest.approx(4 / 7, rel=1e-5)
    # Too few in the middle: all that the image shows.
    few = (local[8:] @ inverse(given.w2c[0]).T)[:, :3]
    write_cameras(tmp_path / "c", dataclasses.replace(given, points=few), "colmap")
    found = scene_units(plan(picture, tmp_path / "c").path, DEPTH)
    assert found == pytest.approx(4 / 10, rel=1e-5)


def test_a_turn_on_the_spot_has_no_unit_and_no_depth_is_said_so():
    still = RecordedPath(np.stack([np.eye(4)] * 3), None, None, False, None)
    assert scene_units(still, DEPTH) == 1
    with pytest.raises(InputError, match="--camera-scale is needed"):
        scene_units(still, 0 * DEPTH)
    assert scene_units(dataclasses.replace(still, scale=3.0), 0 * DEPTH) == 3


def test_it_starts_at_the_first_view_with_its_lens_and_zooms_as_recorded():
    view = random_cameras(1, seed=5)
    w2c = np.asarray(make_path("left", 3), np.float64)
    lenses = np.stack([np.diag([f, f, 1.0]) for f in (10.0, 20.0, 30.0)])
    path = RecordedPath(w2c, lenses, None, False, None)
    found, lens = placed_at(path, 2.0, view.w2c[0], view.intrinsics[0])
    np.testing.assert_allclose(found[0], view.w2c[0])
    moved = found @ inverse(view.w2c[0])
    np.testing.assert_allclose(moved[:, :3, 3], 2 * w2c[:, :3, 3], atol=1e-12)
    np.testing.assert_allclose(moved[:, :3, :3], w2c[:, :3, :3], atol=1e-12)
    np.testing.assert_allclose(lens[0], view.intrinsics[0])
    np.testing.assert_allclose(lens[:, 0, 0], np.array([1, 2, 3]) * view.intrinsics[0, 0, 0])
    _, still = placed_at(
        dataclasses.replace(path, lenses=None), 2.0, view.w2c[0], view.intrinsics[0]
    )
    np.testing.assert_array_equal(still, view.intrinsics[[0, 0, 0]])


def test_a_bare_picture_has_the_recorded_lens_and_a_scene_keeps_its_own(tmp_path, picture, scene):
    write_cameras(tmp_path / "model", recording(), "colmap")
    path = plan(picture, tmp_path / "model").path
    bare, _ = read_working_scene(picture)
    np.testing.assert_allclose(begun_by(bare, path).intrinsics, path.lenses[:1])
    folder, _ = read_working_scene(scene)
    assert begun_by(folder, path) is folder
    # Cameras in the scene's world start at the picture: it stands at the first of them.
    cameras = Cameras(w2c=jnp.asarray(path.w2c)[1:], intrinsics=jnp.asarray(path.lenses)[1:])
    standing = begun_by(bare, cameras)
    np.testing.assert_array_equal(standing.w2c, cameras.w2c[:1])
    np.testing.assert_array_equal(standing.intrinsics, cameras.intrinsics[:1])
    for other in (dataclasses.replace(path, lenses=None), None):
        assert begun_by(bare, other) is bare


def test_the_job_ends_in_the_memory_s_world(tmp_path, picture):
    # Fewer cameras than frames: a spline.
    write_cameras(tmp_path / "model", recording(frames=5), "nerfstudio")
    start = np.asarray(make_path("up", 5))[-1]
    k = np.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]], np.float32)
    config = RolloutConfig(frames=FRAMES, height=32, width=48, bank_capacity=2, point_capacity=64)
    memory = empty_memory(config)
    stereo = dataclasses.replace(
        memory.stereo,
        depth=memory.stereo.depth.at[0].set(3.0),
        w2c=memory.stereo.w2c.at[0].set(start),
        intrinsics=memory.stereo.intrinsics.at[0].set(k),
    )
    memory = dataclasses.replace(memory, stereo=stereo)
    found = cameras_of(plan(picture, tmp_path / "model"), memory, FRAMES)
    np.testing.assert_allclose(found.w2c[0], start, atol=1e-6)
    expected = np.asarray(make_path("left", 5, pivot_depth=3.0)) @ start
    np.testing.assert_allclose(found.w2c[-1], expected[-1], atol=1e-4)
    np.testing.assert_allclose(found.intrinsics, np.stack([k] * FRAMES), rtol=1e-5)


def test_what_does_not_fit_is_named(tmp_path, picture, scene):
    def refused(said: str, camera: object, **options) -> None:
        with pytest.raises(InputError, match=said):
            plan(scene, camera, **options)

    tum = tmp_path / "tum.txt"
    write_cameras(tum, recording().take(np.array([0])), "tum")
    refused(r"tum\.txt holds 1 camera, but a path needs at least 2", tum)
    for scale in (0.0, -1.0, float("nan")):
        refused("--camera-scale must be a positive number", tum, camera_scale=scale)
    refused("camera format called 'tumm': did you mean 'tum'", tum, camera_format="tumm")
    refused("line 2 has 8 columns instead of 12", tum, camera_format="kitti")
    refused("is no COLMAP model", tmp_path)
    refused("stand in the scene's world", scene / "camera.json", camera_scale=2.0)
    for option in ({"camera_format": "tum"}, {"camera_scale": 2.0}):
        refused("--camera-format and --camera-scale are for a FILE of --camera", "left", **option)
        with pytest.raises(InputError, match="are for a FILE of --camera"):
            plan_jobs(*read_working_scene(scene), FRAMES, CameraChoice(**option))


def test_a_memory_alone_is_passed_as_by_a_clip_that_goes_on_from_it(tmp_path, picture):
    """As above, without the scene: previews see the path that the clip will take."""
    memory = empty_memory(RolloutConfig())
    k = np.array([[150.0, 0.0, 80.0], [0.0, 150.0, 48.0], [0.0, 0.0, 1.0]], np.float32)
    stereo = memory.stereo.replace(
        depth=memory.stereo.depth.at[0].set(3.0),
        w2c=memory.stereo.w2c.at[0].set(np.eye(4)),
        intrinsics=memory.stereo.intrinsics.at[0].set(k),
    )
    memory = dataclasses.replace(memory, stereo=stereo)
    write_cameras(tmp_path / "tum.txt", recording(), "tum")
    expected = cameras_of(plan(picture, tmp_path / "tum.txt", camera_scale=0.5), memory, FRAMES)
    choice = CameraChoice(str(tmp_path / "tum.txt"), camera_format="tum", camera_scale=0.5)
    found = path_through_memory(memory, choice, FRAMES)
    np.testing.assert_array_equal(found.w2c, expected.w2c)
    np.testing.assert_array_equal(found.intrinsics, expected.intrinsics)
    assert np.abs(found.w2c[-1] - found.w2c[0]).max() > 0.01
