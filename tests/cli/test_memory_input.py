import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.cli.memory_input import (
    begin_memory,
    estimate_depth,
    read_memory,
    with_capacity,
    with_room,
)
from worldstereo_jax.cli.scene_input import AnyScene, read_working_scene
from worldstereo_jax.config import PRESETS
from worldstereo_jax.data import images
from worldstereo_jax.data.scene_folders import PanoramaScene, SingleViewScene
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.memory.entry_folder import entry_fields
from worldstereo_jax.memory.folder import save_memory
from worldstereo_jax.models.depth_tiny import TinyDepth
from worldstereo_jax.models.vae_tiny import TinyVae
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.world import Cameras, RolloutConfig, World, WorldMemory, WorldParams

_CONFIG = RolloutConfig(bank_capacity=4, point_capacity=20_000, entry_capacity=16_000)
_CAPACITIES = ("bank_capacity", "point_capacity", "entry_capacity")


class _FlatDepth(TinyDepth):
    """A depth network that finds 2 m everywhere, plus the image's mean."""

    def __call__(self, image):
        return 2.0 + jnp.broadcast_to(image.mean((1, 2, 3), keepdims=True)[..., 0], image.shape[:3])


_WORLD = World("tiny", _CONFIG, WorldStereo(PRESETS["tiny"]), TinyVae(), _FlatDepth())
_PARAMS = WorldParams(denoiser={}, vae={}, depth={})


def _single_view(path) -> SingleViewScene:
    found, _ = read_working_scene(path)
    assert isinstance(found, SingleViewScene)
    return found


def _panorama(path) -> PanoramaScene:
    found, _ = read_working_scene(path)
    assert isinstance(found, PanoramaScene)
    return found


def _begin(found: AnyScene, depth=None) -> WorldMemory:
    return begin_memory(_WORLD, _PARAMS, found, depth, [])


def test_a_picture_stands_at_the_origin_with_assumed_intrinsics(picture):
    found = _single_view(picture)
    memory = _begin(found, np.full((96, 160), 3.0, np.float32))
    stereo = memory.stereo
    assert int(stereo.count) == 1
    np.testing.assert_array_equal(stereo.w2c[0], np.eye(4))
    np.testing.assert_allclose(stereo.intrinsics[0, :2, 2], [80, 48])
    np.testing.assert_array_equal(stereo.depth[0], np.full((96, 160), 3.0))
    np.testing.assert_array_equal(stereo.images[0], found.image)
    points = np.asarray(memory.points.positions)[np.asarray(memory.points.valid)]
    assert len(points) > 14_000
    np.testing.assert_allclose(points[:, 2], 3.0, atol=1e-5)


def test_a_scene_stands_at_the_first_camera_of_its_path(scene):
    found = _single_view(scene)
    assert found.w2c is not None
    assert found.intrinsics is not None
    memory = _begin(found)
    np.testing.assert_allclose(memory.stereo.intrinsics[0], found.intrinsics[0])
    np.testing.assert_array_equal(memory.stereo.w2c[0], found.w2c[0])
    # Depth that is not given is estimated.
    np.testing.assert_allclose(memory.stereo.depth[0], 2.0 + found.image.mean(), atol=1e-4)


def test_a_panorama_begins_with_every_view_of_its_bank(panorama):
    found = _panorama(panorama)
    memory = _begin(found)
    assert int(memory.stereo.count) == 3
    np.testing.assert_allclose(memory.stereo.w2c[:3], found.bank.w2c, atol=1e-6)
    np.testing.assert_array_equal(memory.stereo.images[:3], found.bank.images)


def test_views_are_estimated_one_by_one(panorama):
    found = _panorama(panorama)
    depth = estimate_depth(_WORLD, _PARAMS, found.bank.images)
    assert depth.shape == (3, 96, 160)
    np.testing.assert_allclose(depth[:, 0, 0], 2 + found.bank.images.mean((1, 2, 3)), atol=1e-4)


def test_a_saved_memory_is_read_back_for_its_scene_only(tmp_path, picture):
    found = _single_view(picture)
    memory = _begin(found)
    parts = (memory.points, memory.stereo)
    stored = entry_fields(memory.entries)
    save_memory(tmp_path / "memory", *parts, model="tiny", optional=stored)
    again = read_memory(tmp_path / "memory", "tiny", found)
    count = int(memory.entries.count)
    assert count == int(again.entries.count) > 1000
    for old, new in zip(
        jax.tree.leaves(memory.entries), jax.tree.leaves(again.entries), strict=True
    ):
        np.testing.assert_array_equal(*((a[:count] if a.ndim else a) for a in (old, new)))
    # An older folder has no entries: they are made from its views.
    save_memory(tmp_path / "memory", *parts, model="tiny")
    made = read_memory(tmp_path / "memory", "tiny", found).entries
    assert int(made.count) == count
    np.testing.assert_allclose(
        made.position[:count], memory.entries.position[:count], rtol=1e-5, atol=1e-5
    )
    np.testing.assert_array_equal(again.stereo.images, memory.stereo.images)
    np.testing.assert_array_equal(again.points.positions, memory.points.positions)

    images.write_image(tmp_path / "other.png", np.zeros((72, 120, 3), np.float32))
    with pytest.raises(InputError, match="begun from another image than other's"):
        read_memory(tmp_path / "memory", "tiny", _single_view(tmp_path / "other.png"))
    images.write_image(tmp_path / "square.png", np.zeros((72, 72, 3), np.float32))
    with pytest.raises(InputError, match=r"96x160 pixels .* 128x128"):
        read_memory(tmp_path / "memory", "tiny", _single_view(tmp_path / "square.png"))
    with pytest.raises(InputError, match="model 'tiny'"):
        read_memory(tmp_path / "memory", "large", found)


def test_room_is_made_for_all_that_the_clips_can_add(picture):
    memory = _begin(_single_view(picture))
    enough = with_capacity(_CONFIG, 0, 0, 0)
    assert enough == _CONFIG
    config = with_capacity(_CONFIG, 1, 15_000, 3)
    views = 1 + 3 * _CONFIG.keyframes
    wanted = (views, 15_000 + (views - 1) * 96 * 160, views * 96 * 160 // 2)
    found = tuple(getattr(config, name) for name in _CAPACITIES)
    # In steps, so that the next clips need no programs of other sizes.
    for capacity, least in zip(found, wanted, strict=True):
        assert least <= capacity <= 1.5 * least
    assert with_capacity(_CONFIG, 4, 77_000, 3) == with_capacity(config, 4, 77_000, 3) == config
    # Two clips of an image, or of three views, fit from the start.
    for views in (1, 3):
        assert with_capacity(RolloutConfig(), views, views * 96 * 160, 2) == RolloutConfig()
    small = {name: getattr(_CONFIG, name) for name in _CAPACITIES}
    assert dataclasses.replace(config, **small) == _CONFIG

    larger = with_room(memory, config)
    assert larger.stereo.capacity == config.bank_capacity
    assert larger.entries.capacity == config.entry_capacity
    np.testing.assert_array_equal(
        larger.entries.position[: memory.entries.capacity], memory.entries.position
    )
    assert larger.points.positions.shape == (config.point_capacity, 3)
    assert int(larger.stereo.count) == int(memory.stereo.count)
    assert not np.any(larger.stereo.valid[1:])
    assert not np.any(larger.points.valid[20_000:])
    np.testing.assert_array_equal(larger.points.positions[:20_000], memory.points.positions)
    # A memory is never made smaller.
    assert with_room(larger, _CONFIG).stereo.capacity == config.bank_capacity


def test_estimated_depth_takes_the_unit_of_a_path_about_a_pivot(picture):
    found = _single_view(picture)
    path = np.asarray(make_path("right", 9, pivot_depth=7.0))
    cameras = Cameras(w2c=jnp.asarray(path), intrinsics=jnp.broadcast_to(jnp.eye(3), (9, 3, 3)))
    depth = np.asarray(begin_memory(_WORLD, _PARAMS, found, None, [cameras]).stereo.depth[0])
    assert np.median(depth[depth > 0]) == pytest.approx(7.0, rel=1e-3)


def test_given_depth_keeps_its_unit(picture):
    found = _single_view(picture)
    path = jnp.asarray(make_path("right", 9, pivot_depth=7.0))
    cameras = Cameras(w2c=path, intrinsics=jnp.broadcast_to(jnp.eye(3), (9, 3, 3)))
    given = np.full((96, 160), 3.0, np.float32)
    depth = np.asarray(begin_memory(_WORLD, _PARAMS, found, given, [cameras]).stereo.depth[0])
    np.testing.assert_allclose(depth[depth > 0], 3.0, rtol=1e-6)
