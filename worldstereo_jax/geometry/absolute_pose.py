"""A camera's pose from world points and the pixels that show them, some of which are wrong.

RANSAC over minimal sets (Fischler and Bolles 1981) with a fixed number of hypotheses, so that it is
one program; each comes from three rays (P3P). The best are improved by Gauss-Newton steps on all
points, of which those count less that fit less, and the one that then fits best is taken.
"""

import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Key
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import pixel_directions
from worldstereo_jax.geometry.products import product
from worldstereo_jax.geometry.rotations import (
    axis_angle_to_matrix,
    matrix_from_quaternion,
    quaternion_from_matrix,
)

_AT_ONCE = 64  # minimal sets whose poses are scored together
_IMPROVED = 8  # hypotheses that are improved
_STEPS = 12  # Gauss-Newton steps
_NARROWING = 0.6  # share of the tolerance by which points count less and less far away
_SMALL = 1e-12


@typing.no_type_check
@flax.struct.dataclass
class CameraPose:
    """A pose and how well n points agree with it.

    w2c [4, 4]. inlier [n]: given points that the pose shows within the tolerance. miss [n]: pixels
    between where the pose shows them and where they were seen; infinite where not given or behind
    the camera. residual []: root mean square of the inliers' misses, pixels. turn [], place []:
    standard deviations of the rotation, radians, and of the camera's place, world units, if the
    inliers miss independently of each other; infinite where fewer than four are there.
    """

    w2c: Float[Array, "4 4"]
    inlier: Bool[Array, "n"]
    miss: Float[Array, "n"]
    residual: Float[Array, ""]
    turn: Float[Array, ""]
    place: Float[Array, ""]


@functools.partial(jax.jit, static_argnames="hypotheses")
def absolute_pose(
    points: Float[Array, "n 3"],
    pixels: Float[Array, "n 2"],
    weight: Float[Array, "n"],
    intrinsics: Float[Array, "3 3"],
    key: Key[Array, ""],
    *,
    tolerance: float | Float[Array, ""] = 2.0,
    hypotheses: int = 512,
) -> CameraPose:
    """The pose from which most points are seen where they were seen.

    Args:
        points: world units; any unit and origin.
        pixels: (x, y) of each, centres at +0.5.
        weight: how far to believe each, 0 for a point that is not given. Sets are drawn by it.
        intrinsics: of the camera, pixels.
        key: the same key gives the same pose.
        tolerance: pixels by which an inlier may miss.
        hypotheses: minimal sets drawn; of 512 at least one is all right with a probability of 0.98
            where a fifth of the points are.

    Raises:
        InputError: when there are fewer than four points.
    """
    if points.shape[0] < 4:
        raise InputError(f"a pose takes at least 4 points, got {points.shape[0]}")
    world, centre, scale = _unit_cloud(points, weight)
    rays = pixel_directions(pixels, intrinsics)
    rays = rays / jnp.linalg.norm(rays, axis=-1, keepdims=True)

    def fit(pose: Array) -> Array:
        square = _squared_misses(pose, world, pixels, intrinsics)
        return (weight * jnp.minimum(square / tolerance**2, 1.0)).sum()

    def try_set(chosen: Array) -> tuple[Array, Array]:
        poses, there = poses_of_three(world[chosen], rays[chosen])
        return poses, jnp.where(there, jax.vmap(fit)(poses), jnp.inf)

    # The largest of logarithms with Gumbel noise: drawn by weight, without repetition.
    chance = jnp.log(jnp.maximum(weight, _SMALL))[None]
    noise = jax.random.gumbel(key, (hypotheses, points.shape[0]))
    sets = lax.top_k(chance + noise, 3)[1]
    poses, cost = lax.map(try_set, sets, batch_size=_AT_ONCE)
    best = lax.top_k(-cost.reshape(-1), min(_IMPROVED, cost.size))[1]
    improve = functools.partial(
        _improved, points=world, pixels=pixels, weight=weight, intrinsics=intrinsics
    )
    improved = jax.vmap(lambda pose: improve(pose, tolerance=tolerance))(
        poses.reshape(-1, 3, 4)[best]
    )
    pose = improved[jax.vmap(fit)(improved).argmin()]
    return _judged(
        _to_world(pose, centre, scale), points, pixels, weight, intrinsics, tolerance=tolerance
    )


def poses_of_three(
    points: Float[Array, "3 3"], rays: Float[Array, "3 3"]
) -> tuple[Float[Array, "4 3 4"], Bool[Array, "4"]]:
    """The up to four poses that see three world points along three rays (P3P).

    Distances along the rays solve three quadrics, one for each side of the triangle; two quadratic
    forms in them vanish together, and a member of their pencil is a pair of planes (Persson and
    Nordberg, "Lambda Twist", ECCV 2018; the planes as in Richter-Gebert, "Perspectives on
    projective geometry", 11.1). On each plane one of the forms is solved.

    Args:
        points: one a row, no three on a line.
        rays: unit vectors of the camera's frame, one a row.

    Returns:
        [R | t] from world to camera, and which of them exist.
    """
    pairs = ((0, 1), (0, 2), (1, 2))
    sides = jnp.stack([((points[i] - points[j]) ** 2).sum() for i, j in pairs])
    cosines = jnp.stack([(rays[i] * rays[j]).sum() for i, j in pairs])
    forms = jnp.stack([_side_form(i, j, c) for (i, j), c in zip(pairs, cosines, strict=True)])
    first = forms[0] * sides[2] - forms[2] * sides[0]
    second = forms[1] * sides[2] - forms[2] * sides[1]
    size = jnp.abs(sides).max() + _SMALL
    first, second = first / size, second / size
    gamma = _real_root(*_pencil_determinant(first, second))
    planes, real = _plane_pair(first + gamma * second)
    # On either plane both forms are multiples of one another; the larger one is solved.
    form = jnp.where(jnp.abs(gamma) > 1.0, first, second)
    solved = [_directions_on_plane(form, plane) for plane in planes]
    distances = jnp.concatenate([directions for directions, _ in solved])
    there = jnp.concatenate([exists for _, exists in solved]) & real
    lengths = jnp.einsum("ki,ij,kj->k", distances, forms.sum(0), distances, precision="highest")
    there &= lengths > 0
    distances = distances * jnp.sqrt(sides.sum() / jnp.where(lengths > 0, lengths, 1.0))[:, None]
    distances = jnp.where(distances.sum(-1, keepdims=True) < 0, -distances, distances)
    for _ in range(2):
        distances = jax.vmap(lambda x: _polished(x, forms, sides))(distances)
    there &= (distances > 0).all(-1) & jnp.isfinite(distances).all(-1)
    distances = jnp.where(there[:, None], distances, 1.0)
    return jax.vmap(lambda x: _rigid(points, x[:, None] * rays))(distances), there


def _side_form(i: int, j: int, cosine: Float[Array, ""]) -> Float[Array, "3 3"]:
    """The quadratic form whose value at the distances is the squared side between points i, j."""
    form = jnp.zeros((3, 3), jnp.float32).at[i, i].set(1.0).at[j, j].set(1.0)
    return form.at[i, j].set(-cosine).at[j, i].set(-cosine)


def _pencil_determinant(
    a: Float[Array, "3 3"], b: Float[Array, "3 3"]
) -> tuple[Array, Array, Array, Array]:
    """Coefficients, highest first, of det(a + x b)."""

    def triple(u: Array, v: Array, w: Array) -> Array:
        return (u * jnp.cross(v, w)).sum()

    once = triple(b[0], a[1], a[2]) + triple(a[0], b[1], a[2]) + triple(a[0], a[1], b[2])
    twice = triple(a[0], b[1], b[2]) + triple(b[0], a[1], b[2]) + triple(b[0], b[1], a[2])
    return triple(*b), twice, once, triple(*a)


def _real_root(c3: Array, c2: Array, c1: Array, c0: Array) -> Float[Array, ""]:
    """A real root of a cubic, by Cardano's formulae and three of Newton's steps."""
    lead = jnp.where(jnp.abs(c3) > _SMALL, c3, _SMALL)
    b, c, d = c2 / lead, c1 / lead, c0 / lead
    p = c - b * b / 3
    q = b * (2 * b * b - 9 * c) / 27 + d
    inner = q * q / 4 + p**3 / 27
    u = jnp.cbrt(-q / 2 - jnp.where(q < 0, -1.0, 1.0) * jnp.sqrt(jnp.maximum(inner, 0.0)))
    single = u - p / (3 * jnp.where(jnp.abs(u) > _SMALL, u, _SMALL))
    radius = jnp.sqrt(jnp.maximum(-p / 3, _SMALL))
    angle = jnp.arccos(jnp.clip(-q / (2 * radius**3), -1.0, 1.0)) / 3
    root = jnp.where(inner > 0, single, 2 * radius * jnp.cos(angle)) - b / 3
    for _ in range(3):
        slope = (3 * root + 2 * b) * root + c
        value = ((root + b) * root + c) * root + d
        root = root - value / jnp.where(jnp.abs(slope) > _SMALL, slope, _SMALL)
    return root


def _plane_pair(form: Float[Array, "3 3"]) -> tuple[Float[Array, "2 3"], Bool[Array, ""]]:
    """Normals of the two planes where a form of rank two vanishes, and whether they are real."""
    r = form
    adjugate = jnp.stack([jnp.cross(r[1], r[2]), jnp.cross(r[2], r[0]), jnp.cross(r[0], r[1])])
    diagonal = jnp.diagonal(adjugate)
    i = jnp.abs(diagonal).argmax()
    real = diagonal[i] < 0
    x, y, z = adjugate[i] / jnp.sqrt(jnp.maximum(-diagonal[i], _SMALL))
    zero = jnp.zeros_like(x)
    outer = form + jnp.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]])
    row, column = jnp.unravel_index(jnp.abs(outer).argmax(), (3, 3))
    planes = jnp.stack([outer[row], outer[:, column]])
    return planes / jnp.maximum(jnp.linalg.norm(planes, axis=-1, keepdims=True), _SMALL), real


def _directions_on_plane(
    form: Float[Array, "3 3"], normal: Float[Array, "3"]
) -> tuple[Float[Array, "2 3"], Bool[Array, "2"]]:
    """The two directions of a plane through the origin along which a form vanishes."""
    axis = jnp.zeros(3, jnp.float32).at[jnp.abs(normal).argmin()].set(1.0)
    u = jnp.cross(normal, axis)
    u = u / jnp.maximum(jnp.linalg.norm(u), _SMALL)
    v = jnp.cross(normal, u)
    a, b, c = (product(x, product(form, y)) for x, y in ((u, u), (u, v), (v, v)))
    square = b * b - a * c
    # Each root where it is no difference of nearly equal numbers.
    q = -(b + jnp.where(b < 0, -1.0, 1.0) * jnp.sqrt(jnp.maximum(square, 0.0)))
    found = jnp.stack([q * u + a * v, c * u + q * v])
    length = jnp.linalg.norm(found, axis=-1, keepdims=True)
    return found / jnp.maximum(length, _SMALL), jnp.broadcast_to(square >= 0, (2,))


def _polished(
    distances: Float[Array, "3"], forms: Float[Array, "3 3 3"], sides: Float[Array, "3"]
) -> Float[Array, "3"]:
    """One of Newton's steps towards the distances whose sides are right."""
    slopes = 2 * jnp.einsum("kij,j->ki", forms, distances, precision="highest")
    excess = 0.5 * product(slopes, distances) - sides
    crossed = jnp.stack(
        [
            jnp.cross(slopes[1], slopes[2]),
            jnp.cross(slopes[2], slopes[0]),
            jnp.cross(slopes[0], slopes[1]),
        ]
    )
    determinant = (slopes[0] * crossed[0]).sum()
    step = product(excess, crossed) / jnp.where(jnp.abs(determinant) > _SMALL, determinant, jnp.inf)
    return distances - step


def _rigid(points: Float[Array, "3 3"], seen: Float[Array, "3 3"]) -> Float[Array, "3 4"]:
    """[R | t] that lays one triangle upon another: by the frames of their first sides."""
    here, there = _frame(points), _frame(seen)
    rotation = product(there, here.T)
    return jnp.concatenate(
        [rotation, (seen.mean(0) - product(rotation, points.mean(0)))[:, None]], -1
    )


def _frame(corners: Float[Array, "3 3"]) -> Float[Array, "3 3"]:
    """Orthonormal columns: along a triangle's first side, across it, and its normal."""
    along = corners[1] - corners[0]
    along = along / jnp.maximum(jnp.linalg.norm(along), _SMALL)
    normal = jnp.cross(along, corners[2] - corners[0])
    normal = normal / jnp.maximum(jnp.linalg.norm(normal), _SMALL)
    return jnp.stack([along, jnp.cross(normal, along), normal], -1)


def _unit_cloud(
    points: Float[Array, "n 3"], weight: Float[Array, "n"]
) -> tuple[Float[Array, "n 3"], Float[Array, "3"], Float[Array, ""]]:
    """The points about their mean and of unit size, so that float32 suffices in any world."""
    share = weight / jnp.maximum(weight.sum(), _SMALL)
    centre = (share[:, None] * points).sum(0)
    away = jnp.where(weight[:, None] > 0, points - centre[None], 0.0)
    scale = jnp.sqrt((share[:, None] * away * away).sum())
    scale = jnp.where(scale > 0, scale, 1.0)
    return away / scale, centre, scale


def _to_world(
    pose: Float[Array, "3 4"], centre: Float[Array, "3"], scale: Float[Array, ""]
) -> Float[Array, "4 4"]:
    rotation = matrix_from_quaternion(quaternion_from_matrix(pose[:, :3]))
    shift = scale * pose[:, 3] - product(rotation, centre)
    bottom = jnp.array([[0.0, 0.0, 0.0, 1.0]])
    return jnp.concatenate([jnp.concatenate([rotation, shift[:, None]], -1), bottom])


def _squared_misses(
    pose: Float[Array, "3 4"],
    points: Float[Array, "n 3"],
    pixels: Float[Array, "n 2"],
    intrinsics: Float[Array, "3 3"],
) -> Float[Array, "n"]:
    """Squared pixels between the points and where they were seen; infinite behind the camera."""
    local = _local(pose, points)
    miss = _shown(local, intrinsics) - pixels
    return jnp.where(local[:, 2] > 0, (miss * miss).sum(-1), jnp.inf)


def _local(pose: Float[Array, "3 4"], points: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
    return product(points, pose[:, :3].T) + pose[:, 3][None]


def _shown(local: Float[Array, "n 3"], intrinsics: Float[Array, "3 3"]) -> Float[Array, "n 2"]:
    """Pixels of points of the camera's frame; finite for all, right for those before it."""
    x, y, z = local.T
    z, k = jnp.where(z > _SMALL, z, 1.0), intrinsics
    return jnp.stack([(k[0, 0] * x + k[0, 1] * y) / z + k[0, 2], k[1, 1] * y / z + k[1, 2]], -1)


def _normal_equations(
    pose: Float[Array, "3 4"],
    points: Float[Array, "n 3"],
    pixels: Float[Array, "n 2"],
    weight: Float[Array, "n"],
    intrinsics: Float[Array, "3 3"],
) -> tuple[Float[Array, "6 6"], Float[Array, "6"]]:
    """Of the misses, for a turn (axis-angle) and a shift behind the pose, in the camera's frame."""
    local = _local(pose, points)
    x, y, z = local.T
    z = jnp.where(z > _SMALL, z, 1.0)
    k = intrinsics
    zero = jnp.zeros_like(x)
    along_x = jnp.stack([k[0, 0] / z, k[0, 1] / z, -(k[0, 0] * x + k[0, 1] * y) / z**2], -1)
    along_y = jnp.stack([zero, k[1, 1] / z, -k[1, 1] * y / z**2], -1)
    missing = pixels - _shown(local, intrinsics)
    square, right = jnp.zeros((6, 6), jnp.float32), jnp.zeros(6, jnp.float32)
    for gradient, miss in zip((along_x, along_y), missing.T, strict=True):
        slopes = jnp.concatenate([jnp.cross(local, gradient), gradient], -1)
        square += product(slopes.T, weight[:, None] * slopes)
        right += product(slopes.T, weight * miss)
    return square, right


def _improved(
    pose: Float[Array, "3 4"],
    points: Float[Array, "n 3"],
    pixels: Float[Array, "n 2"],
    weight: Float[Array, "n"],
    intrinsics: Float[Array, "3 3"],
    *,
    tolerance: float | Float[Array, ""],
) -> Float[Array, "3 4"]:
    """After Gauss-Newton steps in which a point counts less, the more it misses (Geman-McClure)."""

    def step(number: Array, pose: Array) -> Array:
        square = _squared_misses(pose, points, pixels, intrinsics)
        # Wide at first, to come near from a pose of three points; then narrow.
        width = tolerance * (1.0 - _NARROWING * number / (_STEPS - 1))
        counts = weight / (1.0 + square / width**2) ** 2
        matrix, right = _normal_equations(pose, points, pixels, counts, intrinsics)
        change = jnp.linalg.solve(matrix + _damping(matrix), right)
        change = jnp.where(jnp.isfinite(change).all(), change, 0.0)
        turn = axis_angle_to_matrix(change[:3])
        return product(turn, pose) + jnp.zeros((3, 4), jnp.float32).at[:, 3].set(change[3:])

    return lax.fori_loop(0, _STEPS, step, pose)


def _damping(matrix: Float[Array, "6 6"]) -> Float[Array, "6 6"]:
    """Next to nothing, but what keeps a system of too few points from being singular."""
    return jnp.diag(1e-6 * jnp.diagonal(matrix) + _SMALL)


def _judged(
    w2c: Float[Array, "4 4"],
    points: Float[Array, "n 3"],
    pixels: Float[Array, "n 2"],
    weight: Float[Array, "n"],
    intrinsics: Float[Array, "3 3"],
    *,
    tolerance: float | Float[Array, ""],
) -> CameraPose:
    """What the points say of a pose."""
    square = jnp.where(weight > 0, _squared_misses(w2c[:3], points, pixels, intrinsics), jnp.inf)
    inlier = square <= tolerance**2
    count = inlier.sum()
    total = jnp.where(inlier, square, 0.0).sum()
    matrix, _ = _normal_equations(w2c[:3], points, pixels, inlier.astype(jnp.float32), intrinsics)
    # Scaled, since a turn and a shift are counted in different units.
    size = jnp.sqrt(jnp.maximum(jnp.diagonal(matrix), _SMALL))
    scaled = matrix / (size[:, None] * size[None, :])
    inverse = jnp.diagonal(jnp.linalg.inv(scaled + _damping(scaled))) / size**2
    variance = inverse * total / jnp.maximum(2 * count - 6, 1)
    enough = count >= 4
    return CameraPose(
        w2c=w2c,
        inlier=inlier,
        miss=jnp.sqrt(square),
        residual=jnp.sqrt(total / jnp.maximum(count, 1)),
        turn=jnp.where(enough, jnp.sqrt(variance[:3].sum()), jnp.inf),
        place=jnp.where(enough, jnp.sqrt(variance[3:].sum()), jnp.inf),
    )
