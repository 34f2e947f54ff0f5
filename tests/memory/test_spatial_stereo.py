import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.memory import spatial_stereo
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes

_insert = jax.jit(insert_keyframes)
bank_points = jax.jit(spatial_stereo.bank_points)
depth_confidence = jax.jit(spatial_stereo.depth_confidence)


def _frames(views, *index):
    at = jnp.array(index)
    return views.images[at], views.depth[at], views.w2c[at], views.intrinsics[at]


@pytest.mark.row("S7")
def test_keyframes_are_stored_in_order_of_arrival(room):
    memory = _insert(init_spatial_memory(6, 80, 112), *_frames(room.bank, 2, 0), source=3)
    memory = _insert(memory, *_frames(room.target, 1), source=4)
    assert int(memory.count) == 3
    np.testing.assert_array_equal(memory.valid, [True] * 3 + [False] * 3)
    np.testing.assert_array_equal(memory.source[:3], [3, 3, 4])
    np.testing.assert_array_equal(memory.images[1], room.bank.images[0])
    np.testing.assert_array_equal(memory.depth[2], room.target.depth[1])
    np.testing.assert_array_equal(memory.w2c[0], room.bank.w2c[2])
    np.testing.assert_array_equal(memory.images[3:], 0.0)


@pytest.mark.row("S12")
def test_the_same_keyframe_twice_adds_nothing(room):
    memory = _insert(init_spatial_memory(6, 80, 112), *_frames(room.bank, 0, 1, 0))
    assert int(memory.count) == 2
    again = _insert(memory, *_frames(room.bank, 1, 0))
    for before, after in zip(jax.tree.leaves(memory), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(before, after)
    other_clip = _insert(memory, *_frames(room.bank, 0), source=1)
    assert int(other_clip.count) == 3


@pytest.mark.row("S38")
def test_what_counts_as_the_same_camera_does_not_depend_on_the_unit(room):
    for scale in (1e-3, 1.0, 1e3):
        images, depth, w2c, intrinsics = _frames(room.bank, 0)
        near = w2c.at[:, 0, 3].add(0.05)
        w2c, near = (x.at[:, :3, 3].multiply(scale) for x in (w2c, near))
        memory = _insert(init_spatial_memory(6, 80, 112), images, scale * depth, w2c, intrinsics)
        memory = _insert(memory, images, scale * depth, near, intrinsics)
        memory = _insert(memory, images, scale * depth, w2c, intrinsics)
        assert int(memory.count) == 2, scale


@pytest.mark.row("S7")
def test_overflow_is_counted_and_overwrites_nothing(room):
    memory = _insert(init_spatial_memory(3, 80, 112), *_frames(room.bank, 0, 1, 2, 3))
    assert (int(memory.count), int(memory.overflow)) == (3, 1)
    np.testing.assert_array_equal(memory.images, room.bank.images[:3])
    memory = _insert(memory, *_frames(room.target, 0, 1))
    assert (int(memory.count), int(memory.overflow)) == (3, 3)
    np.testing.assert_array_equal(memory.images, room.bank.images[:3])


def test_one_by_one_in_a_donated_scan_is_all_at_once(room):
    frames = _frames(room.bank, 0, 1, 2, 3)

    def step(memory, frame):
        return insert_keyframes(memory, *(x[None] for x in frame)), memory.count

    run = jax.jit(lambda memory: jax.lax.scan(step, memory, frames)[0], donate_argnums=0)
    one_by_one = run(init_spatial_memory(5, 80, 112))
    at_once = _insert(init_spatial_memory(5, 80, 112), *frames)
    for a, b in zip(jax.tree.leaves(one_by_one), jax.tree.leaves(at_once), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.row("S6")
def test_confidence_falls_with_slant_at_edges_and_without_depth(room):
    k = jnp.asarray(room.intrinsics, jnp.float32)
    frontal, slanted = (
        depth_confidence(
            jnp.asarray(room.take(camera, room.intrinsics)[1]), jnp.asarray(camera, jnp.float32), k
        )
        for camera in (room.look([0, -1, 0], [0, -1, 6]), room.look([-4, -1, 4], [0, -1, 6.01]))
    )
    assert float(frontal[20, 56]) > 0.97
    assert float(slanted[20, 56]) < 0.8
    step = jnp.full((12, 16), 2.0).at[:, 8:].set(4.0).at[3, 3].set(0.0)
    found = depth_confidence(step, jnp.eye(4), k.at[0, 2].set(8.0).at[1, 2].set(6.0))
    assert float(found[6, 7]) < 0.3 * float(found[6, 3])
    assert float(found[6, 8]) < 0.3 * float(found[6, 12])
    assert float(found[3, 3]) == 0.0
    assert float(found.max()) <= 1.0
    bled = depth_confidence(step.at[:, 8].set(2.8), jnp.eye(4), k)
    np.testing.assert_array_equal(bled[4:, 8], 0.0)


@pytest.mark.row("S26")
def test_the_bank_exports_as_points_on_the_surface(room):
    memory = _insert(init_spatial_memory(3, 80, 112), *_frames(room.bank, 0, 3))
    cloud = bank_points(memory)
    keep = np.asarray(cloud.valid)
    assert keep.shape == (3 * 80 * 112,)
    assert 0.9 < keep[: 2 * 80 * 112].mean() <= 1.0
    assert not keep[2 * 80 * 112 :].any()
    points = np.asarray(cloud.points)[keep]
    # Every surface of the room lies on one of these planes.
    faces = [(2, 6.0), (1, 2.0), (0, -5.0), (0, 5.0), (2, 3.4), (0, -1.6), (0, -0.5), (1, 0.2)]
    faces += [(2, 2.9), (0, 0.6), (0, 1.7), (1, 0.8)]
    distance = np.min([np.abs(points[:, axis] - value) for axis, value in faces], axis=0)
    assert np.quantile(distance, 0.999) < 1e-3


def test_sizes_must_be_positive():
    with pytest.raises(InputError, match="at least 1"):
        init_spatial_memory(0, 80, 112)


@pytest.mark.row("S36")
def test_depth_that_is_no_depth_is_stored_as_unknown(room):
    """Readers of the bank ask for 0: a number that is none would hide what lies behind it."""
    images, depth, w2c, intrinsics = _frames(room.bank, 0)
    none = jnp.array([jnp.nan, jnp.inf, -1.0])
    odd = depth.at[0, 10, :3].set(none)
    memory = _insert(init_spatial_memory(6, 80, 112), images, odd, w2c, intrinsics)
    np.testing.assert_array_equal(memory.depth[0], depth[0].at[10, :3].set(0.0))
    np.testing.assert_array_equal(memory.confidence[0, 10, :3], 0.0)


@pytest.mark.usefixtures("unchecked")
def test_frames_that_do_not_fit_the_bank_are_named(room):
    images, depth, w2c, intrinsics = _frames(room.bank, 0, 1)
    memory = init_spatial_memory(6, 80, 112)
    with pytest.raises(InputError, match=r"image must have shape \[2, 80, 112, 3\], got \[2, 64,"):
        _insert(memory, images[:, :64], depth[:, :64], w2c, intrinsics)
    with pytest.raises(InputError, match=r"intrinsics must have shape \[2, 3, 3\], got \[3, 3\]"):
        _insert(memory, images, depth, w2c, intrinsics[0])
