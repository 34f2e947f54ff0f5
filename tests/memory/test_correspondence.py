import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.memory import correspondence
from worldstereo_jax.memory.correspondence import (
    bank_correspondence,
    find_correspondence,
    patch_correspondence,
    store_correspondences,
)
from worldstereo_jax.memory.warping import splat_depth

dense_correspondence = jax.jit(correspondence.dense_correspondence)
hidden_pixels = jax.jit(correspondence.hidden_pixels)


def _truth(one, i, other, j):
    """Pixels of `other[j]` for each pixel of `one[i]`, and whether it is seen, in float64."""
    k, depth = np.asarray(one.intrinsics[i], float), np.asarray(one.depth[i], float)
    h, w = depth.shape
    y, x = np.mgrid[:h, :w] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(k).T
    move = np.asarray(other.w2c[j], float) @ np.linalg.inv(np.asarray(one.w2c[i], float))
    points = (rays * depth[..., None]) @ move[:3, :3].T + move[:3, 3]
    q = points @ k.T
    pixels = q[..., :2] / q[..., 2:]
    column, row = np.floor(pixels[..., 0]).astype(int), np.floor(pixels[..., 1]).astype(int)
    inside = (column >= 0) & (row >= 0) & (column < w) & (row < h)
    shown = np.asarray(other.depth[j])[np.clip(row, 0, h - 1), np.clip(column, 0, w - 1)]
    return pixels, inside & (np.abs(shown - points[..., 2]) < 0.03 * points[..., 2])


def _args(views, i):
    return views.depth[i], views.w2c[i], views.intrinsics[i]


@pytest.mark.row("S8")
@pytest.mark.row("S10")
def test_dense_correspondence_is_exact_where_the_surface_is_seen(room):
    pixels, valid = jax.jit(bank_correspondence)(
        *_args(room.target, 0),
        room.bank.depth,
        room.bank.w2c,
        room.bank.intrinsics,
        room.bank.valid.at[3].set(False),
    )
    assert not bool(valid[3].any())
    for view in range(3):
        wanted, seen = _truth(room.target, 0, room.bank, view)
        found = np.asarray(valid[view])
        assert (found & seen).sum() / found.sum() > 0.98
        assert (found & seen).sum() / seen.sum() > 0.97
        assert np.abs(np.asarray(pixels[view]) - wanted)[found].max() < 0.01


@pytest.mark.row("S34")
def test_occlusion_on_a_real_scene_agrees_with_a_brute_force_z_buffer(motorcycle):
    m = motorcycle
    h, w = m.disparity.shape
    rows, columns = np.mgrid[:h, :w]
    known = np.isfinite(m.disparity)
    place = np.where(known, columns - np.nan_to_num(m.disparity), -1.0)
    landed = np.floor(place + 0.5).astype(int)
    inside = known & (landed >= 0) & (landed < w)
    buffer = np.full((h, w), -np.inf)
    np.maximum.at(buffer, (rows[inside], landed[inside]), m.disparity[inside])
    hidden = inside & (m.disparity < buffer[rows, np.clip(landed, 0, w - 1)] - 1.5)

    seen_depth = jax.jit(splat_depth)(
        m.depth[None],
        jnp.ones((1, h, w)),
        m.left_w2c[None],
        m.left_intrinsics[None],
        jnp.ones((1,), bool),
        m.right_w2c,
        m.right_intrinsics,
    )
    pixels, valid = dense_correspondence(
        m.depth, m.left_w2c, m.left_intrinsics, seen_depth, m.right_w2c, m.right_intrinsics
    )
    np.testing.assert_allclose(np.asarray(pixels)[inside][:, 0] - 0.5, place[inside], atol=0.01)
    assert np.asarray(valid)[hidden].mean() < 0.03
    found = inside & np.asarray(
        hidden_pixels(
            m.depth, m.left_w2c, m.left_intrinsics, seen_depth, m.right_w2c, m.right_intrinsics
        )
    )
    assert (found & hidden).sum() / hidden.sum() > 0.97
    assert (found & hidden).sum() / found.sum() > 0.97


@pytest.mark.row("S8")
def test_explicit_and_implicit_correspondences_are_the_same(room):
    bank = room.bank
    pairs = jnp.array([[0, 1], [2, 0], [3, 1]])
    stored = jax.jit(store_correspondences)(bank.depth, bank.w2c, bank.intrinsics, pairs)
    pixels, valid = find_correspondence(stored, 2, 0)
    wanted, wanted_valid = dense_correspondence(*_args(bank, 2), *_args(bank, 0))
    np.testing.assert_array_equal(valid, wanted_valid)
    np.testing.assert_allclose(
        np.asarray(pixels)[np.asarray(valid)], np.asarray(wanted)[np.asarray(valid)], atol=1e-3
    )
    assert not bool(find_correspondence(stored, 1, 0)[1].any())


@pytest.mark.row("S8")
def test_patches_match_by_counting(room):
    pixels, valid = (
        np.asarray(x) for x in dense_correspondence(*_args(room.target, 0), *_args(room.bank, 1))
    )
    matches = patch_correspondence(jnp.asarray(pixels), jnp.asarray(valid), 80, 112, patch=16, k=4)
    counts = np.zeros((5 * 7, 5 * 7))
    for row in range(80):
        for column in range(112):
            if valid[row, column]:
                x, y = pixels[row, column]
                counts[row // 16 * 7 + column // 16, int(y) // 16 * 7 + int(x) // 16] += 1
    for query in range(35):
        wanted = np.sort(counts[query])[::-1][:4]
        np.testing.assert_allclose(np.asarray(matches.share[query]) * 256, wanted, atol=1e-3)
        for key, share in zip(matches.key[query], matches.share[query], strict=True):
            assert (int(key) == -1) == (float(share) == 0.0)
            if int(key) >= 0:
                assert counts[query, int(key)] == pytest.approx(float(share) * 256)


def test_patches_must_divide_the_views(room):
    with pytest.raises(InputError, match="whole number of patches of 24"):
        patch_correspondence(jnp.zeros((80, 112, 2)), jnp.ones((80, 112), bool), 80, 112, patch=24)


@pytest.mark.row("S36")
def test_views_without_depth_correspond_nowhere(room):
    none = jnp.zeros((80, 112))
    for a, b in ((none, room.bank.depth[0]), (room.bank.depth[0], none)):
        pixels, valid = dense_correspondence(
            a, *_args(room.bank, 0)[1:], b, *_args(room.bank, 1)[1:]
        )
        assert not bool(valid.any())
        assert bool(jnp.isfinite(pixels).all())


@pytest.mark.row("S8")
@pytest.mark.row("S14")
def test_the_two_sides_of_a_thin_wall_do_not_correspond(room):
    """Two cameras on either side of the plane z = 4, of which each sees a side at 45 degrees."""
    y, x = np.mgrid[:80, :112] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(room.intrinsics).T
    seen = []
    for eye in ([-3.0, 0.0, 1.0], [-3.0, 0.0, 7.0], [-2.0, 0.4, 1.0]):
        w2c = room.look(eye, [0.0, 0.0, 4.0])
        towards = (rays @ np.linalg.inv(w2c)[:3, :3].T)[..., 2]
        depth = jnp.asarray((4.0 - eye[2]) / towards, jnp.float32)
        seen.append((depth, jnp.asarray(w2c, jnp.float32), jnp.asarray(room.intrinsics)))
    assert not bool(dense_correspondence(*seen[0], *seen[1])[1].any())
    assert float(dense_correspondence(*seen[0], *seen[2])[1].mean()) > 0.5
