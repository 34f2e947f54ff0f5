"""A ray caster for `Scene`: exact depth and normals, anti-aliased photographs of surfaces.

Rays are cast with camera z = 1 along the optical axis, so the ray parameter is the depth. The
nearest primitive is found first, by one pass per primitive; what it looks like is worked out
afterwards, once per ray. Lighting does not depend on the view, so the same point has the same
colour in every frame.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Float, Int, UInt32, ndarray
from worldstereo_jax.data.scene_types import (
    MAX_BOXES,
    MAX_SPHERES,
    Scene,
    SceneFrames,
)
from worldstereo_jax.data.textures import TEXTURE_LEVELS, TEXTURE_SIZE

_FIRST_SPHERE = 1 + MAX_BOXES
_FIRST_CYLINDER = _FIRST_SPHERE + MAX_SPHERES
_NEAR = 1e-3
_FAR = 1e6
_AMBIENT, _DIFFUSE, _SHADOW, _FALLOFF = 0.6, 0.7, 0.25, 7.0
"""Shares of ambient and lamp light, what is left of the latter in shadow, its reach in metres."""

# Accelerators round the factors of float32 products to fewer bits unless told otherwise.
_product = functools.partial(jnp.matmul, precision=jax.lax.Precision.HIGHEST)


class Rays(NamedTuple):
    """Rays that leave one point: `origin` [3] and direction components [n], in the room frame."""

    origin: Float[Array, "3"]
    x: Float[Array, "n"]
    y: Float[Array, "n"]
    z: Float[Array, "n"]


class Hits(NamedTuple):
    """Nearest hits: distance [n] in units of the direction, primitive number [n]."""

    distance: Float[Array, "n"]
    primitive: Int[Array, "n"]


class Surfaces(NamedTuple):
    """What rays hit: room-frame normal components [n], texture row [n], texel coordinates [n]."""

    normal: tuple[Array, Array, Array]
    texture: Int[Array, "n"]
    u: Float[Array, "n"]
    v: Float[Array, "n"]
    texels_per_metre: Float[Array, "n"]


def _nonzero(x):
    """Directions parallel to a slab are moved a little, which keeps every quotient finite."""
    return jnp.where(jnp.abs(x) < 1e-7, 1e-7, x)


def _nearest(scene: Scene, rays: Rays) -> Hits:
    """The first surface on each ray. A room wall ends every ray that nothing else stops."""
    half, origin = scene.room_half, rays.origin
    exits = [
        (jnp.where(d > 0, half[i], -half[i]) - (origin[i] + (half[1] if i == 1 else 0.0)))
        / _nonzero(d)
        for i, d in enumerate((rays.x, rays.y, rays.z))
    ]
    distance = jnp.minimum(jnp.minimum(exits[0], exits[1]), exits[2])
    hits = Hits(distance, jnp.zeros(distance.shape, jnp.int32))

    def closer(hits: Hits, t, number) -> Hits:
        hit = (t > _NEAR) & (t < hits.distance)
        return Hits(jnp.where(hit, t, hits.distance), jnp.where(hit, number, hits.primitive))

    def box(hits: Hits, item):
        center, size, yaw, number = item
        cos, sin = jnp.cos(yaw), jnp.sin(yaw)
        offset = origin - center
        near, far = -_FAR, _FAR
        for o, d, s in (
            (cos * offset[0] - sin * offset[2], cos * rays.x - sin * rays.z, size[0]),
            (offset[1], rays.y, size[1]),
            (sin * offset[0] + cos * offset[2], sin * rays.x + cos * rays.z, size[2]),
        ):
            inverse = 1.0 / _nonzero(d)
            middle, reach = -o * inverse, s * jnp.abs(inverse)
            near = jnp.maximum(near, middle - reach)
            far = jnp.minimum(far, middle + reach)
        return closer(hits, jnp.where(near < far, near, _FAR), number), None

    def sphere(hits: Hits, item):
        center, radius, number = item
        offset = origin - center
        a = rays.x**2 + rays.y**2 + rays.z**2
        b = offset[0] * rays.x + offset[1] * rays.y + offset[2] * rays.z
        inside = b**2 - a * (jnp.sum(offset**2) - radius**2)
        t = (-b - jnp.sqrt(jnp.maximum(inside, 0.0))) / a
        return closer(hits, jnp.where(inside > 0, t, _FAR), number), None

    def cylinder(hits: Hits, item):
        center, radius, half_height, number = item
        offset = origin - center
        a = _nonzero(rays.x**2 + rays.z**2)
        b = offset[0] * rays.x + offset[2] * rays.z
        inside = b**2 - a * (offset[0] ** 2 + offset[2] ** 2 - radius**2)
        root = jnp.sqrt(jnp.maximum(inside, 0.0))
        inverse = 1.0 / _nonzero(rays.y)
        middle, reach = -offset[1] * inverse, half_height * jnp.abs(inverse)
        near = jnp.maximum((-b - root) / a, middle - reach)
        far = jnp.minimum((-b + root) / a, middle + reach)
        return closer(hits, jnp.where((inside > 0) & (near < far), near, _FAR), number), None

    numbers = jnp.arange(scene.surface_texture.shape[0], dtype=jnp.int32)
    boxes = (scene.box_center, scene.box_half, scene.box_yaw, numbers[1:_FIRST_SPHERE])
    spheres = (scene.sphere_center, scene.sphere_radius, numbers[_FIRST_SPHERE:_FIRST_CYLINDER])
    cylinders = (
        scene.cylinder_center,
        scene.cylinder_radius,
        scene.cylinder_half_height,
        numbers[_FIRST_CYLINDER:],
    )
    hits, _ = jax.lax.scan(box, hits, boxes)
    hits, _ = jax.lax.scan(sphere, hits, spheres)
    hits, _ = jax.lax.scan(cylinder, hits, cylinders)
    return hits


def _primitive_table(scene: Scene) -> Float[Array, "primitives 8"]:
    """Row per primitive: centre, half extents, cosine and sine of its yaw."""
    room_center = jnp.stack(
        [jnp.zeros((), jnp.float32), -scene.room_half[1], jnp.zeros((), jnp.float32)]
    )
    radius, cylinder_radius = scene.sphere_radius[:, None], scene.cylinder_radius[:, None]
    center = jnp.concatenate(
        [room_center[None], scene.box_center, scene.sphere_center, scene.cylinder_center]
    )
    half = jnp.concatenate(
        [
            scene.room_half[None],
            scene.box_half,
            jnp.repeat(radius, 3, axis=1),
            jnp.concatenate(
                [cylinder_radius, scene.cylinder_half_height[:, None], cylinder_radius], axis=1
            ),
        ]
    )
    yaw = jnp.zeros(center.shape[0], jnp.float32).at[1:_FIRST_SPHERE].set(scene.box_yaw)
    return jnp.concatenate([center, half, jnp.cos(yaw)[:, None], jnp.sin(yaw)[:, None]], axis=1)


def _surfaces(scene: Scene, rays: Rays, hits: Hits) -> Surfaces:
    """Normal and texture coordinates where each ray ends."""
    cx, cy, cz, hx, hy, hz, cos, sin = _primitive_table(scene)[hits.primitive].T
    ox, oy, oz = rays.origin[0] - cx, rays.origin[1] - cy, rays.origin[2] - cz
    o = (cos * ox - sin * oz, oy, sin * ox + cos * oz)
    d = (cos * rays.x - sin * rays.z, rays.y, sin * rays.x + cos * rays.z)
    p = tuple(oi + hits.distance * di for oi, di in zip(o, d, strict=True))

    # A box is entered through the last of its three near planes, a room left through the first
    # of its far planes; with the sign of `side` both are one maximum.
    side = jnp.where(hits.primitive == 0, -1.0, 1.0)
    entry = [
        side * (-side * jnp.sign(di) * hi - oi) / _nonzero(di)
        for oi, di, hi in zip(o, d, (hx, hy, hz), strict=True)
    ]
    is_x = (entry[0] >= entry[1]) & (entry[0] >= entry[2])
    is_y = ~is_x & (entry[1] >= entry[2])
    is_z = ~is_x & ~is_y

    is_sphere = (hits.primitive >= _FIRST_SPHERE) & (hits.primitive < _FIRST_CYLINDER)
    is_cylinder = hits.primitive >= _FIRST_CYLINDER
    is_cap = is_cylinder & (jnp.abs(p[1]) > hy * (1.0 - 1e-4))
    is_round = is_sphere | (is_cylinder & ~is_cap)
    is_y = is_y & ~is_cylinder | is_cap

    def normal(i, flat):
        across = jnp.where(is_sphere | (i != 1), p[i] / jnp.maximum(hx, 1e-6), 0.0)
        return jnp.where(is_round, across, jnp.where(flat, -jnp.sign(d[i]), 0.0))

    n = (normal(0, is_x & ~is_cap), normal(1, is_y), normal(2, is_z & ~is_cap))

    # Outward side of a box face and the wall of a room are named by the same axis and sign.
    sign = [jnp.where(di * side > 0, 0, 1) for di in d]
    face = jnp.where(is_x, sign[0], jnp.where(is_y, 2 + sign[1], 4 + sign[2]))
    face = jnp.where(is_round | is_cylinder, 0, face)
    row = hits.primitive * 6 + face
    texture = scene.surface_texture.reshape(-1)[row]
    scale, u0, v0 = scene.surface_uv.reshape(-1, 3)[row].T
    around = jnp.arctan2(p[0], p[2]) * hx
    u = jnp.where(is_round, around, jnp.where(is_x, p[2], p[0]))
    v = jnp.where(is_y, p[2], p[1])
    world = (cos * n[0] + sin * n[2], n[1], cos * n[2] - sin * n[0])
    return Surfaces(world, texture, u * scale + u0, v * scale + v0, scale)


def _sample_texture(
    textures: UInt32[Array, "k texels"],
    texture: Int[Array, "n"],
    u: Float[Array, "n"],
    v: Float[Array, "n"],
    footprint: Float[Array, "n"],
) -> tuple[Array, Array, Array]:
    """Bilinear colour, 0 to 255, on the pyramid level whose texels are about one footprint wide.

    Textures repeat mirrored, so no surface shows a seam.
    """
    level = jnp.clip(jnp.round(jnp.log2(jnp.maximum(footprint, 1e-3))), 0, TEXTURE_LEVELS - 1)
    level = level.astype(jnp.int32)
    size = TEXTURE_SIZE >> level
    start = texture * textures.shape[1] + (TEXTURE_SIZE**2 - size * size) // 3 * 4
    shrink = jnp.exp2(-level.astype(jnp.float32))

    def corner(x):
        x = TEXTURE_SIZE - jnp.abs(TEXTURE_SIZE - jnp.mod(x, 2.0 * TEXTURE_SIZE))
        x = jnp.clip(x * shrink - 0.5, 0.0, (size - 1).astype(jnp.float32))
        low = jnp.minimum(x.astype(jnp.int32), size - 2)
        return low, x - low.astype(jnp.float32)

    column, fu = corner(u)
    row, fv = corner(v)
    flat = textures.reshape(-1)
    index = start + row * size + column
    texels = [flat[index], flat[index + 1], flat[index + size], flat[index + size + 1]]
    weights = [(1 - fu) * (1 - fv), fu * (1 - fv), (1 - fu) * fv, fu * fv]

    def channel(shift):
        parts = [
            w * ((t >> shift) & 255).astype(jnp.float32)
            for w, t in zip(weights, texels, strict=True)
        ]
        return parts[0] + parts[1] + parts[2] + parts[3]

    return channel(0), channel(8), channel(16)


def _shade(scene: Scene, rays: Rays, hits: Hits, surfaces: Surfaces) -> Float[Array, "n"]:
    """Brightness from ambient light and a lamp with shadows; the same from every camera."""
    directions = (rays.x, rays.y, rays.z)
    from_light = [
        rays.origin[i] + hits.distance * d - scene.light[i] for i, d in enumerate(directions)
    ]
    squared = from_light[0] ** 2 + from_light[1] ** 2 + from_light[2] ** 2
    facing = sum(a * b for a, b in zip(from_light, surfaces.normal, strict=True))
    facing = jnp.maximum(-facing * jax.lax.rsqrt(squared + 1e-6), 0.0)
    # Cast from the lamp, so that shadow rays share an origin too; 1 is the surface itself.
    reached = _nearest(scene, Rays(scene.light, *from_light)).distance > 0.997
    lamp = _DIFFUSE * facing / (1.0 + squared / _FALLOFF**2)
    return _AMBIENT + lamp * jnp.where(reached, 1.0, _SHADOW)


def _rays(room_from_camera, intrinsics, height: int, width: int, samples: int) -> Rays:
    """Rays through the middles of `samples` x `samples` cells of every pixel, row by row."""
    y = (jnp.arange(height * samples, dtype=jnp.float32) + 0.5) / samples
    x = (jnp.arange(width * samples, dtype=jnp.float32) + 0.5) / samples
    y = (y[:, None] - intrinsics[1, 2]) / intrinsics[1, 1]
    x = (x[None, :] - intrinsics[0, 2] - intrinsics[0, 1] * y) / intrinsics[0, 0]
    y = jnp.broadcast_to(y, x.shape).reshape(-1)
    x = x.reshape(-1)
    m = room_from_camera
    d = [m[i, 0] * x + m[i, 1] * y + m[i, 2] for i in range(3)]
    return Rays(m[:3, 3], d[0], d[1], d[2])


def _room_from_camera(scene: Scene, w2c: Float[Array, "4 4"]) -> Float[Array, "3 4"]:
    rotation = w2c[:3, :3].T
    camera = jnp.concatenate([rotation, -_product(rotation, w2c[:3, 3])[:, None]], axis=1)
    a = scene.room_from_world
    return jnp.concatenate(
        [
            _product(a[:3, :3], camera[:, :3]),
            (_product(a[:3, :3], camera[:, 3]) + a[:3, 3])[:, None],
        ],
        axis=1,
    )


def _image(scene: Scene, rays: Rays, focal) -> Float[Array, "n 3"]:
    hits = _nearest(scene, rays)
    surfaces = _surfaces(scene, rays, hits)
    length = jnp.sqrt(rays.x**2 + rays.y**2 + rays.z**2)
    n = surfaces.normal
    cosine = jnp.abs(n[0] * rays.x + n[1] * rays.y + n[2] * rays.z) / length
    # Isotropic stand-in for the sheared footprint: its geometric mean width, in texels.
    footprint = hits.distance * length / focal * surfaces.texels_per_metre
    footprint = footprint * jax.lax.rsqrt(jnp.maximum(cosine, 0.05))
    red, green, blue = _sample_texture(
        scene.textures, surfaces.texture, surfaces.u, surfaces.v, footprint
    )
    light = _shade(scene, rays, hits, surfaces)
    return jnp.minimum(jnp.stack([red, green, blue], -1) * light[:, None] / 255.0, 1.0)


def _geometry(scene: Scene, rays: Rays) -> tuple[Float[Array, "n"], Float[Array, "n 3"]]:
    hits = _nearest(scene, rays)
    normal = jnp.stack(_surfaces(scene, rays, hits).normal, -1)
    # Those of round things are off by the rounding of the distance.
    normal = normal / jnp.linalg.norm(normal, axis=-1, keepdims=True)
    return hits.distance, _product(normal, scene.room_from_world[:3, :3])


@functools.partial(jax.jit, static_argnames=("height", "width"))
def trace_depth(
    scene: Scene,
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    *,
    height: int,
    width: int,
) -> Float[Array, "f {height} {width}"]:
    """Exact camera-z depth (m) at pixel centres, without images."""

    def frame(camera):
        rays = _rays(_room_from_camera(scene, camera[0]), camera[1], height, width, 1)
        return _nearest(scene, rays).distance.reshape(height, width)

    return jax.lax.map(frame, (w2c, intrinsics))


@functools.partial(jax.jit, static_argnames=("height", "width", "supersample"))
def render_scene(
    scene: Scene,
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    *,
    height: int,
    width: int,
    supersample: int = 2,
) -> SceneFrames:
    """Render a scene along a camera path.

    Args:
        scene: what to render.
        w2c: world-to-camera, OpenCV axes; the world is the scene's first camera.
        intrinsics: pixels, pixel centres at +0.5.
        height, width: size of the frames, px.
        supersample: rays per pixel and axis for the image; depth and normals are exact values
            at pixel centres whatever it is.
    """

    def frame(camera):
        pose = _room_from_camera(scene, camera[0])
        depth, normal = _geometry(scene, _rays(pose, camera[1], height, width, 1))
        rays = _rays(pose, camera[1], height, width, supersample)
        colors = _image(scene, rays, camera[1][0, 0] * supersample)
        cells = colors.reshape(height, supersample, width, supersample, 3)
        image = cells.mean((1, 3)) * 2.0 - 1.0
        return SceneFrames(image, depth.reshape(height, width), normal.reshape(height, width, 3))

    return jax.lax.map(frame, (w2c, intrinsics))
