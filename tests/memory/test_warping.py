import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.compiling import ALIKE
from worldstereo_jax.geometry.cameras import resize_intrinsics
from worldstereo_jax.geometry.points import depth_to_points
from worldstereo_jax.memory.warping import (
    Candidates,
    fuse_candidates,
    splat_depth,
    warp_candidates,
    warp_views,
)

_candidates = jax.jit(functools.partial(warp_candidates, k=4), compiler_options=ALIKE)
_warp = jax.jit(warp_views, compiler_options=ALIKE)
# Where nothing is compared with another program's output, which takes thrice as long to compile.
_quick_candidates = jax.jit(functools.partial(warp_candidates, k=4))
_quick_warp = jax.jit(warp_views)
_splat_depth = jax.jit(splat_depth, compiler_options=ALIKE)


def _bank(views, **change):
    names = ("images", "depth", "confidence", "w2c", "intrinsics", "valid")
    fields = {name: getattr(views, name) for name in names} | change
    return tuple(fields.values())


def _camera(views, i):
    return views.w2c[i], views.intrinsics[i]


def _psnr(found, truth, where):
    return 10 * np.log10(4 / np.mean((np.asarray(found) - np.asarray(truth))[where] ** 2))


def forward_warp(views, w2c, intrinsics, bilinear):
    """Plain forward warp in numpy: z-buffered nearest pixels, or bilinear splats averaged."""
    images, depths = np.asarray(views.images), np.asarray(views.depth, float)
    h, w = depths.shape[1:]
    y, x = np.mgrid[:h, :w] + 0.5
    places, depth, colour = [], [], []
    for image, z, pose, k in zip(images, depths, views.w2c, views.intrinsics, strict=True):
        rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(np.asarray(k, float)).T
        move = np.asarray(w2c, float) @ np.linalg.inv(np.asarray(pose, float))
        points = (rays * z[..., None]) @ move[:3, :3].T + move[:3, 3]
        q = (points @ np.asarray(intrinsics, float).T)[z > 0]
        places.append(q[:, :2] / q[:, 2:])
        depth.append(q[:, 2])
        colour.append(image[z > 0])
    places, depth, colour = (np.concatenate(a) for a in (places, depth, colour))
    corner = np.floor(places - 0.5 * bilinear).astype(int)
    part = places - 0.5 - corner
    buffer, total = np.full((h, w), np.inf), np.zeros((h, w, 4))
    steps = [(0, 0), (0, 1), (1, 0), (1, 1)] if bilinear else [(0, 0)]
    for fill in (False, True):
        for dy, dx in steps:
            i, j = corner[:, 0] + dx, corner[:, 1] + dy
            inside = (i >= 0) & (j >= 0) & (i < w) & (j < h) & (depth > 0)
            i, j, z = i[inside], j[inside], depth[inside]
            if not fill:
                np.minimum.at(buffer, (j, i), z)
                continue
            weight = np.ones(len(i))
            if bilinear:
                weight = np.abs(1 - dx - part[inside, 0]) * np.abs(1 - dy - part[inside, 1])
            weight *= z <= (1.02 if bilinear else 1.0) * buffer[j, i]
            entry = np.append(colour[inside], np.ones((len(i), 1)), 1)
            np.add.at(total, (j, i), entry * weight[:, None])
    return total[..., :3] / np.maximum(total[..., 3:], 1e-9), total[..., 3] > 1e-3


@pytest.mark.row("S18")
def test_beats_nearest_and_bilinear_forward_warps(room):
    one = SimpleNamespace(**{name: value[1:2] for name, value in vars(room.bank).items()})
    gains = []
    for views in (one, room.bank):
        for t in range(2):
            warp = _quick_warp if views is one else _warp
            found = warp(*_bank(views), *_camera(room.target, t))
            covered = np.asarray(found.mask) < 0.5
            for bilinear in (False, True):
                plain, filled = forward_warp(views, *_camera(room.target, t), bilinear)
                both = covered & filled
                truth = room.target.images[t]
                gains.append(_psnr(found.features, truth, both) - _psnr(plain, truth, both))
    assert min(gains) > 0.5
    assert np.mean(gains) > 2.5


@pytest.mark.row("S18")
def test_a_view_warped_into_itself_is_itself(room):
    views = room.bank
    only = jnp.arange(4) == 2
    found = _warp(*_bank(views, valid=only), *_camera(views, 2))
    assert float(found.mask.mean()) < 0.01
    covered = np.asarray(found.mask) < 0.5
    np.testing.assert_allclose(
        np.asarray(found.features)[covered], np.asarray(views.images[2])[covered], atol=2e-3
    )
    np.testing.assert_allclose(
        np.asarray(found.depth)[covered], np.asarray(views.depth[2])[covered], rtol=1e-4
    )


@pytest.mark.row("S18")
def test_latents_warp_by_the_same_function(room):
    """World positions as features, at an eighth of the resolution, arrive where they are."""
    size, small = (80, 112), (10, 14)
    k = resize_intrinsics(room.bank.intrinsics, size, small)
    depth = room.bank.depth[:, 4::8, 4::8]
    features = jax.vmap(depth_to_points)(depth, room.bank.w2c, k)
    # Depth is sampled at the corner shared by four pixels, half a pixel from the cell's centre.
    found = _quick_warp(
        features,
        depth,
        jnp.ones(depth.shape),
        room.bank.w2c,
        k,
        room.bank.valid,
        room.target.w2c[0],
        resize_intrinsics(room.target.intrinsics[0], size, small),
    )
    truth = depth_to_points(
        room.target.depth[0][4::8, 4::8],
        room.target.w2c[0],
        resize_intrinsics(room.target.intrinsics[0], size, small),
    )
    covered = np.asarray(found.mask) < 0.5
    assert covered.mean() > 0.8
    error = np.linalg.norm(np.asarray(found.features - truth), axis=-1)[covered]
    assert np.median(error) < 0.05
    assert np.quantile(error, 0.8) < 0.3


def test_fused_candidates_are_the_warp_and_best_come_first(room):
    found = _candidates(*_bank(room.bank), *_camera(room.target, 0))
    warped = _warp(*_bank(room.bank), *_camera(room.target, 0))
    fused = fuse_candidates(found)
    np.testing.assert_allclose(fused.features, warped.features, atol=1e-6)
    weights = np.asarray(found.log_weight)
    assert (weights[..., :-1] >= weights[..., 1:]).all()
    none = np.isneginf(weights)
    np.testing.assert_array_equal(np.asarray(found.features)[none], 0.0)
    np.testing.assert_array_equal(none.all(-1), np.asarray(found.mask) == 1)
    np.testing.assert_array_equal(np.asarray(warped.depth)[none.all(-1)], 0.0)


@pytest.mark.row("S15")
def test_the_sharper_and_the_more_frontal_view_weigh_more(room):
    k = room.intrinsics
    near, far = room.look([0, 0, 1.0], [0, 0, 6]), room.look([0, 0, -1.5], [0, 0, 6])
    aside = room.look([4.0, -0.5, 2.0], [0, -0.5, 6])
    cameras = [near, far, aside]
    taken = [room.take(camera, k) for camera in cameras]
    found = _quick_candidates(
        jnp.asarray(np.stack([image for image, _ in taken])),
        jnp.asarray(np.stack([depth for _, depth in taken])),
        jnp.ones((3, 80, 112)),
        jnp.asarray(np.stack(cameras), jnp.float32),
        jnp.asarray(np.stack([k] * 3), jnp.float32),
        jnp.ones((3,), bool),
        jnp.asarray(room.look([0, 0, 0.8], [0, 0, 6]), jnp.float32),
        jnp.asarray(k, jnp.float32),
    )
    wall = np.s_[10:24, 45:68]
    exists = np.isfinite(np.asarray(found.log_weight)[wall])
    order = np.where(exists, np.asarray(found.view)[wall], -1)
    assert (order[..., 0] == 0).mean() > 0.95
    weight = {v: np.asarray(found.log_weight)[wall][order == v] for v in (0, 1, 2)}
    assert weight[0].mean() > weight[1].mean() + 1.0
    assert weight[0].mean() > weight[2].mean() + 1.0


@pytest.mark.row("S6")
def test_confidence_decides_between_equal_views(room):
    def twice(a):
        return jnp.concatenate([a[1:2], a[1:2]])

    views = SimpleNamespace(**{name: twice(value) for name, value in vars(room.bank).items()})
    images = views.images.at[0].set(1.0).at[1].set(-1.0)
    confidence = views.confidence.at[0].set(0.2).at[1].set(0.6)
    bank = _bank(views, images=images, confidence=confidence)
    found = _quick_warp(*bank, *_camera(room.target, 0))
    covered = np.asarray(found.mask) < 0.5
    np.testing.assert_allclose(np.asarray(found.features)[covered], (0.2 - 0.6) / 0.8, atol=1e-4)


@pytest.mark.row("S38")
def test_rigid_motion_and_scale_of_the_world_change_nothing_but_depth(room):
    scale = 37.0
    world = jnp.asarray(room.look([1.0, 2.0, -3.0], [0.3, 1.0, 2.0]), jnp.float32)
    back = jnp.linalg.inv(world)

    def moved(w2c):
        w2c = jnp.matmul(w2c, back, precision="highest")
        return w2c.at[..., :3, 3].multiply(scale)

    plain = _warp(*_bank(room.bank), *_camera(room.target, 0))
    other = _warp(
        *_bank(room.bank, depth=scale * room.bank.depth, w2c=moved(room.bank.w2c)),
        moved(room.target.w2c[0]),
        room.target.intrinsics[0],
    )
    same = np.asarray(plain.mask == other.mask)
    assert same.mean() > 0.998
    gap = np.abs(np.asarray(plain.features - other.features))[same]
    assert np.quantile(gap, 0.99) < 2e-3
    ratio = np.asarray(other.depth)[same] / scale - np.asarray(plain.depth)[same]
    assert np.quantile(np.abs(ratio), 0.99) < 1e-3


def test_order_of_the_views_does_not_matter(room):
    order = jnp.array([2, 0, 3, 1])
    plain = _warp(*_bank(room.bank), *_camera(room.target, 1))
    other = _warp(*(value[order] for value in _bank(room.bank)), *_camera(room.target, 1))
    np.testing.assert_allclose(plain.features, other.features, atol=2e-4)
    np.testing.assert_allclose(plain.depth, other.depth, rtol=1e-5)


def test_depth_alone_is_that_of_the_warp(room):
    bank = _bank(room.bank)
    one = _warp(*bank, *_camera(room.target, 1))
    depth = _splat_depth(*bank[1:], *_camera(room.target, 1))
    covered = np.asarray(one.depth) > 0
    np.testing.assert_allclose(np.asarray(depth)[covered], np.asarray(one.depth)[covered])


@pytest.mark.row("S24")
def test_what_was_seen_from_nearly_the_same_direction_outweighs_what_was_not():
    """Colours of a glossy point in three views, of which the last does not exist."""
    turns = jnp.radians(jnp.array([15.0, 2.0, 0.0]))
    found = Candidates(
        features=jnp.array([1.0, -1.0, 0.0])[None, None, :, None],
        log_weight=jnp.array([-1.0, -1.2, -jnp.inf])[None, None],
        view=jnp.zeros((1, 1, 3), jnp.int32),
        cosine=jnp.cos(turns)[None, None],
        mask=jnp.zeros((1, 1)),
        depth=jnp.ones((1, 1)),
        confidence=jnp.ones((1, 1)),
    )
    fused = fuse_candidates(found)
    assert float(fused.features[0, 0, 0]) < -0.95
    np.testing.assert_allclose(fused.weight, np.exp(-1.0) + np.exp(-1.2), rtol=1e-5)
    # Seen from equally far around, they count by their weights alone, however small those are.
    for shift in (0.0, -80.0):
        even = found.replace(cosine=jnp.full((1, 1, 3), 0.99), log_weight=found.log_weight + shift)
        share = 1.0 / (1.0 + np.exp(-0.2))
        np.testing.assert_allclose(
            fuse_candidates(even).features[0, 0, 0], 2.0 * share - 1.0, atol=1e-5
        )


@pytest.mark.row("S36")
def test_an_empty_bank_is_all_hole(room):
    found = _candidates(*_bank(room.bank, valid=jnp.zeros((4,), bool)), *_camera(room.target, 0))
    warped = fuse_candidates(found)
    assert float(warped.mask.min()) == 1.0
    for leaf in jax.tree.leaves(warped):
        assert bool(jnp.isfinite(leaf).all())
    assert float(jnp.abs(warped.features).max()) == 0.0


@pytest.mark.row("S18")
def test_a_real_photograph_from_its_neighbour(motorcycle):
    """Middlebury's motorcycle: the right photograph from the left one and its true depth."""
    m = motorcycle
    views = SimpleNamespace(
        images=m.left[None],
        depth=m.depth[None],
        confidence=jnp.ones((1, *m.depth.shape)),
        w2c=m.left_w2c[None],
        intrinsics=m.left_intrinsics[None],
        valid=jnp.ones((1,), bool),
    )
    found = _quick_warp(*_bank(views), m.right_w2c, m.right_intrinsics)
    covered = np.asarray(found.mask) < 0.5
    assert covered.mean() > 0.8
    assert _psnr(found.features, m.right, covered) > 27.5
    plain, filled = forward_warp(views, m.right_w2c, m.right_intrinsics, bilinear=False)
    both = covered & filled
    gain = _psnr(found.features, m.right, both) - _psnr(plain, m.right, both)
    assert gain > 0.5


@pytest.mark.slow
def test_warps_have_finite_derivatives_by_everything_also_between_equal_cameras():
    """Seen by the camera that took it, a surface is stretched alike in all directions."""
    camera, k = jnp.eye(4), jnp.array([[12.0, 0, 6], [0, 12, 4], [0, 0, 1]])
    depth = jnp.full((2, 8, 12), 2.0).at[:, 3:5, 6:].set(0.0).at[1, 0, 0].set(jnp.nan)
    views = (
        jax.random.normal(jax.random.key(0), (2, 8, 12, 3)),
        depth,
        jnp.ones(depth.shape),
        jnp.stack([camera, camera.at[0, 3].set(0.1)]),
        jnp.stack([k, k]),
    )

    def total(views, camera, k):
        found = warp_views(*views, jnp.ones((2,), bool), camera, k)
        return jnp.sin(found.features).sum() + found.depth.sum() + found.weight.sum()

    value, slopes = jax.jit(jax.value_and_grad(total, (0, 1, 2)))(views, camera, k)
    for leaf in jax.tree.leaves((value, slopes)):
        assert np.isfinite(leaf).all()
    # Depth, cameras and intrinsics move what is seen.
    assert all(leaf.any() for leaf in jax.tree.leaves(slopes))
