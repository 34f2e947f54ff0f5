"""The renderer against a plain numpy ray caster, and its ground truth against itself."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.data import scene_render
from worldstereo_jax.data.scene_distance import signed_distance
from worldstereo_jax.data.scene_layouts import make_scene
from worldstereo_jax.data.scene_render import render_scene, trace_depth
from worldstereo_jax.data.scene_trajectories import sample_trajectory, scene_intrinsics
from worldstereo_jax.data.textures import pack_texture
from worldstereo_jax.geometry.cameras import pixel_grid, project, unproject

HEIGHT, WIDTH = 48, 80


def _rectangle(origin, ray, center, axes, half, axis, side):
    """Parameter at which a ray crosses one face of a box, or infinity."""
    normal = axes[axis] * side
    along = ray @ normal
    if abs(along) < 1e-12:
        return np.inf
    t = ((center + normal * half[axis]) - origin) @ normal / along
    point = origin + t * ray - center
    others = [i for i in range(3) if i != axis]
    inside = all(abs(point @ axes[i]) <= half[i] + 1e-9 for i in others)
    return t if t > 1e-6 and inside else np.inf


def _brute_force(scene, origin, ray):
    """Nearest surface by trying every face of everything: distance, room-frame normal."""
    best, normal = np.inf, None
    half = np.asarray(scene.room_half, np.float64)
    boxes = [(np.array([0, -half[1], 0]), half, 0.0)]
    boxes += [
        (c, h, y)
        for c, h, y in zip(
            *(np.asarray(a, np.float64) for a in (scene.box_center, scene.box_half, scene.box_yaw)),
            strict=True,
        )
        if h[0] > 0
    ]
    for center, size, yaw in boxes:
        c, s = np.cos(yaw), np.sin(yaw)
        axes = np.array([[c, 0, -s], [0, 1, 0], [s, 0, c]])
        for axis in range(3):
            for side in (-1, 1):
                t = _rectangle(origin, ray, center, axes, size, axis, side)
                if t < best:
                    best, normal = t, axes[axis] * side
    for center, radius in zip(
        np.asarray(scene.sphere_center), np.asarray(scene.sphere_radius), strict=True
    ):
        roots = np.roots(
            [
                ray @ ray,
                2 * ray @ (origin - center),
                (origin - center) @ (origin - center) - radius**2,
            ]
        )
        for t in roots[np.isreal(roots)].real:
            if radius > 0 and 1e-6 < t < best:
                best, normal = t, (origin + t * ray - center) / radius
    for center, radius, high in zip(
        np.asarray(scene.cylinder_center),
        np.asarray(scene.cylinder_radius),
        np.asarray(scene.cylinder_half_height),
        strict=True,
    ):
        if radius == 0:
            continue
        o, d = (origin - center)[[0, 2]], ray[[0, 2]]
        roots = np.roots([d @ d, 2 * d @ o, o @ o - radius**2])
        for t in roots[np.isreal(roots)].real:
            point = origin + t * ray - center
            if 1e-6 < t < best and abs(point[1]) <= high:
                best, normal = t, np.array([point[0], 0, point[2]]) / radius
        for side in (-1, 1):
            t = (center[1] + side * high - origin[1]) / ray[1]
            point = origin + t * ray - center
            if 1e-6 < t < best and np.hypot(point[0], point[2]) <= radius:
                best, normal = t, np.array([0.0, side, 0.0])
    assert normal is not None
    return best, (normal if normal @ ray < 0 else -normal)


@pytest.mark.parametrize("seed", [0, 3, 6])
def test_depth_normals_and_lighting_match_a_brute_force_caster(seed):
    height, width = 12, 20
    scene = make_scene(seed, "train")
    grey = pack_texture(np.full((256, 256, 3), 150, np.uint8))
    scene = dataclasses.replace(
        scene, textures=jnp.broadcast_to(jnp.asarray(grey)[None], scene.textures.shape)
    )
    w2c, k = sample_trajectory(seed, scene, 3, height=height, width=width)
    frames = render_scene(scene, w2c[2:], k[2:], height=height, width=width, supersample=1)

    room = np.asarray(scene.room_from_world, np.float64)
    pose = np.asarray(w2c[2], np.float64)
    rotation = room[:3, :3] @ pose[:3, :3].T
    origin = room[:3, :3] @ (-pose[:3, :3].T @ pose[:3, 3]) + room[:3, 3]
    light = np.asarray(scene.light, np.float64)
    focal = float(k[0, 0, 0])
    depth, normal = np.zeros((height, width)), np.zeros((height, width, 3))
    shade = np.zeros((height, width))
    for row in range(height):
        for column in range(width):
            x, y = column + 0.5 - width / 2, row + 0.5 - height / 2
            ray = rotation @ np.array([x / focal, y / focal, 1.0])
            t, n = _brute_force(scene, origin, ray)
            depth[row, column] = t
            normal[row, column] = room[:3, :3].T @ n
            from_light = origin + t * ray - light
            distance = np.linalg.norm(from_light)
            shadow = _brute_force(scene, light, from_light)[0] < 0.997
            lamp = 0.7 * max(-from_light @ n / distance, 0) / (1 + (distance / 7) ** 2)
            shade[row, column] = 0.6 + lamp * (0.25 if shadow else 1.0)
    expected = np.minimum(150 / 255 * shade, 1) * 2 - 1

    # A ray that grazes an edge may fall on either side of it.
    same = np.abs(np.asarray(frames.depth[0]) - depth) < 1e-3 * depth
    assert same.mean() > 0.99
    assert np.abs(np.asarray(frames.normal[0]) - normal)[same].max() < 2e-3
    lit = np.abs(np.asarray(frames.image[0]) - expected[..., None]).max(-1)[same] < 2e-3
    assert lit.mean() > 0.985


def test_depth_and_normals_do_not_depend_on_supersampling():
    scene = make_scene(1, "train")
    w2c, k = sample_trajectory(1, scene, 3, height=HEIGHT, width=WIDTH)
    one = render_scene(scene, w2c, k, height=HEIGHT, width=WIDTH, supersample=1)
    three = render_scene(scene, w2c, k, height=HEIGHT, width=WIDTH, supersample=3)
    np.testing.assert_array_equal(one.depth, three.depth)
    np.testing.assert_array_equal(one.normal, three.normal)
    np.testing.assert_allclose(
        one.depth, trace_depth(scene, w2c, k, height=HEIGHT, width=WIDTH), rtol=1e-6
    )
    # More rays smooth the picture without changing it.
    assert 0.005 < float(jnp.abs(one.image - three.image).mean()) < 0.1
    assert abs(float(one.image.mean() - three.image.mean())) < 0.01


def _bilinear(image, pixels):
    x, y = pixels[..., 0] - 0.5, pixels[..., 1] - 0.5
    column = np.clip(np.floor(x).astype(int), 0, image.shape[1] - 2)
    row = np.clip(np.floor(y).astype(int), 0, image.shape[0] - 2)
    u, v = x - column, y - row
    if image.ndim == 3:
        u, v = u[..., None], v[..., None]
    top = image[row, column] * (1 - u) + image[row, column + 1] * u
    return top * (1 - v) + (image[row + 1, column] * (1 - u) + image[row + 1, column + 1] * u) * v


@pytest.mark.parametrize("seed", [0, 2, 5])
def test_views_agree_where_they_see_the_same_surface(seed):
    scene = make_scene(seed, "train")
    w2c, k = sample_trajectory(seed, scene, 3, "lateral")
    frames = render_scene(scene, w2c, k, height=96, width=160)
    points = unproject(pixel_grid(96, 160), frames.depth[2], w2c[2], k[2])
    pixels, z = (np.asarray(x) for x in project(points, w2c[0], k[0]))
    inside = (z > 0) & (pixels > 1).all(-1) & (pixels[..., 0] < 159) & (pixels[..., 1] < 95)
    # Inverse depth is linear over the image of a plane, so it may be interpolated.
    inverse = _bilinear(1.0 / np.asarray(frames.depth[0]), pixels)
    visible = inside & (z * inverse < 1.05)
    assert visible.mean() > 0.3
    error = np.abs(z * inverse - 1.0)[visible]
    assert np.median(error) < 1e-4
    assert (error < 5e-3).mean() > 0.9
    color = np.abs(_bilinear(np.asarray(frames.image[0]), pixels) - np.asarray(frames.image[2]))
    difference = color.mean(-1)[visible & (np.abs(z * inverse - 1.0) < 1e-3)]
    assert np.median(difference) < 0.05
    assert difference.mean() < 0.1


def test_normals_are_unit_face_the_camera_and_follow_the_depth():
    scene = make_scene(4, "train")
    w2c, k = sample_trajectory(4, scene, 3, height=HEIGHT, width=WIDTH)
    frames = render_scene(scene, w2c, k, height=HEIGHT, width=WIDTH, supersample=1)
    for i in range(3):
        points = np.asarray(unproject(pixel_grid(HEIGHT, WIDTH), frames.depth[i], w2c[i], k[i]))
        normal = np.asarray(frames.normal[i])
        np.testing.assert_allclose(np.linalg.norm(normal, axis=-1), 1, atol=1e-4)
        pose = np.asarray(w2c[i])
        view = points + pose[:3, :3].T @ pose[:3, 3]
        assert (np.einsum("hwc,hwc->hw", normal, view) < 1e-3).all()

        across = points[1:-1, 2:] - points[1:-1, :-2]
        down = points[2:, 1:-1] - points[:-2, 1:-1]
        measured = np.cross(down, across)
        measured /= np.linalg.norm(measured, axis=-1, keepdims=True)
        inner = normal[1:-1, 1:-1]
        neighbours = [normal[1:-1, 2:], normal[1:-1, :-2], normal[2:, 1:-1], normal[:-2, 1:-1]]
        inverse = 1 / np.asarray(frames.depth[i])
        bend = np.abs(inverse[1:-1, 2:] + inverse[1:-1, :-2] - 2 * inverse[1:-1, 1:-1])
        bend += np.abs(inverse[2:, 1:-1] + inverse[:-2, 1:-1] - 2 * inverse[1:-1, 1:-1])
        flat = (bend < 1e-4) & np.all([(n * inner).sum(-1) > 0.999 for n in neighbours], axis=0)
        assert flat.mean() > 0.5
        agree = (measured * inner).sum(-1)[flat]
        assert (agree > 0.99).mean() > 0.98


@pytest.mark.parametrize("seed", [0, 3, 8, 17])
def test_every_rendered_point_lies_on_a_surface(seed):
    scene = make_scene(seed, "train")
    k = scene_intrinsics(scene, 1, height=HEIGHT, width=WIDTH)
    eye = jnp.eye(4)[None]
    depth = trace_depth(scene, eye, k, height=HEIGHT, width=WIDTH)[0]
    points = np.asarray(unproject(pixel_grid(HEIGHT, WIDTH), depth, eye[0], k[0])).reshape(-1, 3)
    assert np.abs(signed_distance(scene, points)).max() < 2e-3
    assert signed_distance(scene, 0.7 * points).min() > 0


def test_texture_lookup_is_bilinear_and_mirrored():
    rng = np.random.default_rng(0)
    texture = rng.integers(0, 256, (256, 256, 3)).astype(np.uint8)
    packed = jnp.asarray(np.stack([np.zeros_like(pack_texture(texture)), pack_texture(texture)]))
    u = rng.uniform(1, 255, 50).astype(np.float32)
    v = rng.uniform(1, 255, 50).astype(np.float32)
    one = jnp.ones(50, jnp.int32)

    def look(u, v, footprint):
        at = (jnp.asarray(u), jnp.asarray(v), jnp.full(50, footprint, jnp.float32))
        return np.stack(scene_render._sample_texture(packed, one, *at), -1)

    expected = _bilinear(texture.astype(float), np.stack([u, v], -1))
    np.testing.assert_allclose(look(u, v, 1.0), expected, atol=0.05)
    np.testing.assert_allclose(look(512 - u, v, 1.0), expected, atol=0.1)
    np.testing.assert_allclose(look(u - 512, -v, 1.0), expected, atol=0.1)
    # Wide footprints see averages: the coarsest level is nearly one colour.
    assert look(u, v, 64.0).std(0).max() < 5 < look(u, v, 1.0).std(0).min()
