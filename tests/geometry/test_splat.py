import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry import rotations, splat

H, W = 12, 18
K = np.array([[13.0, 0.0, 9.3], [0.0, 11.0, 5.6], [0.0, 0.0, 1.0]], np.float32)


def rasterise(points, colors, valid, w2c, k, height, width, radius_ndc, limit):
    """The definition, point by point, in float64; also how far every pixel is from a disc's rim."""
    radius = radius_ndc * min(height, width) / 2
    local = points.astype(float) @ w2c[:3, :3].T.astype(float) + w2c[:3, 3]
    z = local[:, 2]
    with np.errstate(all="ignore"):
        uv = (local @ k.T.astype(float))[:, :2] / z[:, None]
    order = [i for i in np.argsort(z, kind="stable") if valid[i] and z[i] > 0]
    y, x = np.mgrid[:height, :width] + 0.5
    image = np.zeros((height, width, colors.shape[1]))
    mask, depth = np.ones((height, width)), np.zeros((height, width))
    light, taken = np.ones((height, width)), np.zeros((height, width), int)
    rim = np.full((height, width), np.inf)
    for i in order:
        d = np.hypot(uv[i, 0] - x, uv[i, 1] - y)
        rim = np.minimum(rim, np.abs(d - radius))
        hit = (d < radius) & (taken < limit)
        depth[hit & (taken == 0)] = z[i]
        alpha = np.where(hit, 1 - (d / radius) ** 2, 0.0)
        image += (light * alpha)[..., None] * colors[i]
        light *= 1 - alpha
        mask[hit] = 0.0
        taken += hit
    return image, mask, depth, rim


def a_cloud(seed: int, count: int, channels: int = 3):
    """Points in front of, beside and behind the camera; some not valid, some of equal depth."""
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)) * [1.0, 0.8, 1.0] + [0.0, 0.0, 1.2]
    points[: count // 4, 2] = np.round(points[: count // 4, 2])
    w2c = np.eye(4, dtype=np.float32)
    w2c[:3, 3] = [0.1, -0.05, 0.0]
    colors = rng.uniform(-1, 1, (count, channels))
    valid = rng.random(count) < 0.85
    return points.astype(np.float32), colors.astype(np.float32), valid, w2c


def assert_equal(render, expected):
    image, mask, depth, rim = expected
    # Rounding decides whether a rim passes a pixel's centre; the alpha there is nearly 0.
    sure = rim > 1e-4
    np.testing.assert_allclose(render.image, image, atol=2e-3)
    np.testing.assert_allclose(np.asarray(render.image)[sure], image[sure], atol=2e-5)
    np.testing.assert_array_equal(np.asarray(render.mask)[sure], mask[sure])
    np.testing.assert_allclose(np.asarray(render.depth)[sure], depth[sure], rtol=1e-5)


@pytest.mark.parametrize(
    ("radius_pixels", "count", "limit"),
    [
        (0.4, 300, 20),
        (0.5, 300, 20),
        (1.0, 200, 20),
        (1.92, 200, 20),
        (5.4, 150, 20),
        (3.0, 200, 3),
    ],
)
def test_equals_the_brute_force_rasteriser(radius_pixels: float, count: int, limit: int):
    points, colors, valid, w2c = a_cloud(int(radius_pixels * 100), count)
    radius = splat.pixel_radius(H, W, radius_pixels)
    render = splat.render_points(
        points,
        colors,
        valid,
        w2c,
        K,
        height=H,
        width=W,
        radius_ndc=radius,
        points_per_pixel=limit,
    )
    assert_equal(render, rasterise(points, colors, valid, w2c, K, H, W, radius, limit))


@pytest.mark.parametrize("limit", [1, 20])
def test_chunks_join_without_a_seam(limit: int, monkeypatch: pytest.MonkeyPatch):
    radius = splat.pixel_radius(H, W, 2.5)
    # 25 pixels per disc: 16 points per chunk, 6 chunks, and more than 20 points on a pixel.
    monkeypatch.setattr(splat, "_PAIR_BUDGET", 400)
    chunked = jax.jit(
        functools.partial(
            inspect.unwrap(splat.render_points),
            height=H,
            width=W,
            radius_ndc=radius,
            points_per_pixel=limit,
        )
    )
    for seed in range(5):
        points, colors, valid, w2c = a_cloud(seed, 90, channels=2)
        expected = rasterise(points, colors, valid, w2c, K, H, W, radius, limit)
        assert_equal(chunked(points, colors, valid, w2c, K), expected)


def cache_size(jitted: Any) -> int:
    """How many programs a jitted function has compiled."""
    return jitted._cache_size()


def one_point(x: float, y: float, z: float = 2.0):
    """A point that projects to pixel position (x, y)."""
    return np.array([(x - K[0, 2]) / K[0, 0] * z, (y - K[1, 2]) / K[1, 1] * z, z], np.float32)


def draw(points, colors, radius_pixels, **options):
    points = np.asarray(points, np.float32)
    return splat.render_points(
        points,
        np.asarray(colors, np.float32),
        np.ones(len(points), bool),
        np.eye(4, dtype=np.float32),
        K,
        height=H,
        width=W,
        radius_ndc=splat.pixel_radius(H, W, radius_pixels),
        **options,
    )


def test_alpha_falls_with_the_square_and_is_not_renormalised():
    render = draw([one_point(4.5, 3.5)], [[1.0, 0.5, -1.0]], 2.0)
    np.testing.assert_allclose(render.image[3, 4], [1.0, 0.5, -1.0], atol=1e-5)
    np.testing.assert_allclose(render.image[3, 5, 0], 1 - 1 / 4, atol=1e-5)
    np.testing.assert_allclose(render.image[4, 5, 0], 1 - 2 / 4, atol=1e-5)
    assert render.mask[3, 6] == 1, "a centre at the radius itself lies outside"
    assert int((render.mask == 0).sum()) == 9
    np.testing.assert_array_equal(np.asarray(render.image)[np.asarray(render.mask) == 1], 0.0)
    np.testing.assert_allclose(render.depth[3, 4], 2.0, rtol=1e-6)
    assert render.depth[0, 0] == 0


def test_the_smallest_cloud_draws_one_pixel():
    render = draw([one_point(4.5, 3.5)], [[1.0, 0.5, -1.0]], 0.4)
    np.testing.assert_allclose(render.image[3, 4], [1.0, 0.5, -1.0], atol=1e-5)
    assert int((render.mask == 0).sum()) == 1


def test_equal_depths_composite_in_the_order_given():
    where = one_point(4.5, 3.5)
    render = draw([where, where, where], [[0.2, 0, 0], [0, 1, 0], [0, 0, 1]], 2.0)
    # At (5, 3) every alpha is 3/4.
    np.testing.assert_allclose(
        render.image[3, 5], [0.75 * 0.2, 0.25 * 0.75, 0.0625 * 0.75], atol=1e-5
    )


def test_only_the_nearest_points_count():
    depths = np.linspace(1.0, 5.0, 60)
    rng = np.random.default_rng(0)
    order = rng.permutation(60)
    points = np.stack([one_point(5.2, 3.5, z) for z in depths])[order]
    colors = np.where(np.arange(60)[:, None] < 20, 0.0, 1.0)[order] * np.ones((1, 3))
    # Twenty black discs of small alpha at (3, 6) hide forty white ones from being counted at all.
    render = draw(points, colors, 1.35)
    assert float(jnp.abs(render.image).max()) == 0.0
    more = draw(points, colors, 1.35, points_per_pixel=21)
    assert float(more.image[3, 6, 0]) > 1e-3


def test_points_behind_the_camera_and_unused_entries_leave_no_trace():
    behind = -one_point(4.5, 3.5)
    points = np.stack([behind, one_point(4.5, 3.5), np.full(3, np.nan, np.float32)])
    render = splat.render_points(
        points,
        np.array([[1, 1, 1], [0.5, 0.5, 0.5], [np.nan] * 3], np.float32),
        np.array([True, False, False]),
        np.eye(4, dtype=np.float32),
        K,
        height=H,
        width=W,
        radius_ndc=0.3,
    )
    assert (render.mask == 1).all()
    assert (render.image == 0).all()
    assert (render.depth == 0).all()


def test_one_ndc_unit_is_half_the_shorter_side():
    assert splat.pixel_radius(480, 832, 1.92) == pytest.approx(splat.OFFICIAL_RADIUS_NDC)
    assert splat.pixel_radius(832, 480, 1.92) == pytest.approx(splat.OFFICIAL_RADIUS_NDC)
    tall = splat.render_points(
        one_point(4.5, 3.5)[None],
        np.ones((1, 3), np.float32),
        np.ones(1, bool),
        np.eye(4, dtype=np.float32),
        K,
        height=20,
        width=10,
        radius_ndc=0.4,
    )
    np.testing.assert_allclose(tall.image[3, 5, 0], 1 - 1 / 4, atol=1e-5)


def test_a_path_is_its_frames_and_compiles_once():
    points, colors, valid, _ = a_cloud(3, 120)
    turns = rotations.axis_angle_to_matrix(
        jnp.stack([jnp.zeros(3), jnp.array([0.0, 0.2, 0.0]), jnp.array([0.1, -0.3, 0.0])])
    )
    w2c = jnp.tile(jnp.eye(4)[None], (3, 1, 1)).at[:, :3, :3].set(turns)
    k = jnp.tile(jnp.asarray(K)[None], (3, 1, 1))
    path = splat.render_path(points, colors, valid, w2c, k, height=H, width=W, radius_ndc=0.35)
    for frame in range(3):
        alone = splat.render_points(
            points, colors, valid, w2c[frame], K, height=H, width=W, radius_ndc=0.35
        )
        np.testing.assert_allclose(path.image[frame], alone.image, atol=1e-6)
        np.testing.assert_array_equal(path.mask[frame], alone.mask)
        np.testing.assert_allclose(path.depth[frame], alone.depth, rtol=1e-6)
    compiled = cache_size(splat.render_path)
    splat.render_path(points * 2, colors, valid, w2c, k, height=H, width=W, radius_ndc=0.35)
    assert cache_size(splat.render_path) == compiled


def test_memory_does_not_grow_with_the_pairs():
    cloud = jax.ShapeDtypeStruct((400_000, 3), jnp.float32)
    program = splat.render_path.lower(
        cloud,
        cloud,
        jax.ShapeDtypeStruct((400_000,), bool),
        jax.ShapeDtypeStruct((21, 4, 4), jnp.float32),
        jax.ShapeDtypeStruct((21, 3, 3), jnp.float32),
        height=480,
        width=832,
    ).compile()
    # All pairs of one frame at once (6.4 million with key, weight and colour) are 150 MB.
    usage = program.memory_analysis()
    assert usage is not None
    assert usage.temp_size_in_bytes < 64e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius_ndc": 0.0}, "radius_ndc"),
        ({"radius_ndc": float("nan")}, "radius_ndc"),
        ({"points_per_pixel": 0}, "points_per_pixel"),
    ],
)
def test_senseless_options_are_refused(options: dict, message: str):
    with pytest.raises(InputError, match=message):
        splat.render_points(
            np.zeros((2, 3), np.float32),
            np.zeros((2, 3), np.float32),
            np.ones(2, bool),
            np.eye(4, dtype=np.float32),
            K,
            height=H,
            width=W,
            **options,
        )


def test_no_points_and_too_many_pixels_are_refused():
    empty = np.zeros((0, 3), np.float32)
    with pytest.raises(InputError, match="points"):
        splat.render_points(empty, empty, np.zeros(0, bool), np.eye(4), K, height=H, width=W)
    one = np.zeros((1, 3), np.float32)
    with pytest.raises(InputError, match="too many pixels"):
        splat.render_points(one, one, np.ones(1, bool), np.eye(4), K, height=1 << 16, width=1 << 16)


def test_alpha_is_the_light_of_discs_and_solid_colours_do_not_fade():
    points, _, valid, w2c = a_cloud(4, 40)
    sizes = {"height": H, "width": W, "radius_ndc": 0.3}
    grey = jnp.full((40, 3), 0.7)
    render = splat.render_points(points, grey, valid, w2c, K, **sizes)
    assert 0.0 < float(render.alpha[render.mask < 0.5].min()) < 0.5
    faded = np.repeat(0.7 * np.asarray(render.alpha)[..., None], 3, -1)
    np.testing.assert_allclose(render.image, faded, atol=1e-6)
    solid = np.asarray(splat.solid_image(render))
    known = np.asarray(render.mask) < 0.5
    np.testing.assert_allclose(solid[known], 0.7, atol=1e-5)
    assert (solid[~known] == 0.0).all()


def test_derivatives_are_those_of_finite_differences_and_finite_beside_what_is_not_valid():
    """By points, colours and camera; the chunks' loop has none backwards by itself."""
    random = np.random.default_rng(3)
    points = random.uniform([-0.6, -0.4, 2.0], [0.6, 0.4, 4.0], (40, 3)).astype(np.float32)
    colors = random.uniform(-1, 1, (40, 3)).astype(np.float32)
    weight = random.standard_normal((H, W, 3)).astype(np.float32)
    valid = np.arange(40) != 5
    points[5] = np.nan

    @jax.jit
    def total(points, colors, w2c):
        found = splat.render_points(
            points, colors, valid, w2c, K, height=H, width=W, radius_ndc=0.25
        )
        return (found.image * weight).sum() + (found.depth * weight[..., 0]).sum()

    given = (jnp.asarray(points), jnp.asarray(colors), jnp.eye(4))
    slopes = jax.jit(jax.grad(total, (0, 1, 2)))(*given)
    for number, (at, slope) in enumerate(zip(given, slopes, strict=True)):
        assert np.isfinite(slope).all()
        way = random.standard_normal(at.shape).astype(np.float32)
        way[3 if number == 2 else 5] = 0.0
        small = (3e-4, 1e-1, 3e-4)[number] * way / np.linalg.norm(way)
        ends = [
            float(total(*(x + side * small if i == number else x for i, x in enumerate(given))))
            for side in (1.0, -1.0)
        ]
        wanted, expected = 0.5 * (ends[0] - ends[1]), float((slope * small).sum())
        np.testing.assert_allclose(wanted, expected, rtol=0.03, atol=3e-5)
