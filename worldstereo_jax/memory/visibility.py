"""What of the bank's surfaces a new camera sees, and where the bank's views show it.

First the views judge each other, once for all targets: a stored point at which more confidence
looks through to something behind it than shows it is left out (row S12); what it would have hidden
is seen then. The points that stand are splatted, at the size of their footprint, into a z-buffer of
the target camera; the buffer only proposes depths. Then each target ray is intersected with the
tangent planes of the surfaces proposed, in every view, and the intersection is believed where a
view really shows that surface (occlusion test), front first, by the same vote (row S34).

Every test is relative to depth, so nothing depends on the unit of length (row S38).
"""

import dataclasses
import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.memory.surface import (
    between_surfaces,
    farthest_around,
    inverse_depth,
    inverse_intrinsics,
    nearer_beside,
    nearest_around,
    one_surface,
    pixel_transfer,
    shines_through,
    tangent_planes,
)
from worldstereo_jax.memory.transfer import (
    Parts,
    carry,
    determinant,
    dot,
    grid_parts,
    stretches,
    surface_jacobian,
    vector_parts,
)

_LEVELS = 4  # splats up to 2**3 target pixels wide; a surface nearer than that shows cracks
_NEAR = 0.02  # a depth below this share of the other camera's depth is cut off
_BEHIND = 5.0  # tolerances by which a surface lies behind another, not on it
# Tolerances by which a point must lie before the surface that a view shows to be looked through.
# Up to 2 the front and what is behind it are averaged, so that no front escapes both.
_THROUGH = 1.75
_THROUGH_BESIDE = 3.0  # the same before the nearer one of two surfaces, beside a jump of depth
JUDGES = 32
"""Most views, itself among them, that judge the points of one."""
_COARSE = 12  # points along a view's shorter side by which those are found that look at it
_REPEATS = 0.1  # worth of a judge that measured nothing, where one that measured all has 1.1
# A view that read its depth may have widened a silhouette, or drawn what it read a pixel aside:
# it says so much less than one that measured.
_HEARSAY = 0.5
_AT_ONCE = 8  # views that a judge looks at together
_HIGHEST = lax.Precision.HIGHEST


@typing.no_type_check
@flax.struct.dataclass
class DepthViews:
    """Depth as views tell it.

    depth [v, h, w]: camera z, world units, 0 = unknown. confidence [v, h, w]: 0 .. 1. measured
    [v, h, w]: False where depth was read from the memory (see `SpatialStereoMemory`). w2c
    [v, 4, 4], intrinsics [v, 3, 3]: pixels. valid [v]: False for views that are not there.
    """

    depth: Float[Array, "v h w"]
    confidence: Float[Array, "v h w"]
    measured: Bool[Array, "v h w"]
    w2c: Float[Array, "v 4 4"]
    intrinsics: Float[Array, "v 3 3"]
    valid: Bool[Array, "v"]


@typing.no_type_check
@flax.struct.dataclass
class SurfaceViews:
    """What of a bank's views does not depend on the target: made once for a whole path.

    inverse [v, h, w]: inverse depth, 0 where not used. table [v, h, w, 6]: what a look-up reads,
    side by side: the tangent plane (3 numbers, see `surface`), the confidence (0 where not used),
    the inverse depth of a nearer surface beside the pixel (0 where there is none, see
    `surface.nearer_beside`), and 1 where depth was measured, else 0. smooth [v, h, w]: the 5x5
    neighbourhood lies on one surface. w2c [v, 4, 4], intrinsics [v, 3, 3].
    """

    inverse: Float[Array, "v h w"]
    table: Float[Array, "v h w 6"]
    smooth: Bool[Array, "v h w"]
    w2c: Float[Array, "v 4 4"]
    intrinsics: Float[Array, "v 3 3"]


@typing.no_type_check
@flax.struct.dataclass
class Lookup:
    """Where a target's surface falls in every view, and whether the view shows it.

    pixel [v, h, w, 2]: (x, y) in the view. planes [v, h, w, 3]: the view's tangent plane there.
    confidence [v, h, w]: of that pixel. agrees [v, h, w]: the view shows this surface.
    violates [v, h, w]: the view sees through it. residual [v, h, w]: relative difference of
    depth. density [v, h, w, 2]: smallest and largest number of view pixels per target pixel,
    over directions on the surface. cosine [v, h, w]: of the angle between the two lines of sight.
    """

    pixel: Float[Array, "v h w 2"]
    planes: Float[Array, "v h w 3"]
    confidence: Float[Array, "v h w"]
    agrees: Bool[Array, "v h w"]
    violates: Bool[Array, "v h w"]
    residual: Float[Array, "v h w"]
    density: Float[Array, "v h w 2"]
    cosine: Float[Array, "v h w"]


def prepare_views(
    depth: Float[Array, "v h w"],
    confidence: Float[Array, "v h w"],
    w2c: Float[Array, "v 4 4"],
    intrinsics: Float[Array, "v 3 3"],
    valid: Bool[Array, "v"],
    *,
    tolerance: float,
    measured: Bool[Array, "v h w"] | None = None,
    refuted: Bool[Array, "v h w"] | None = None,
) -> SurfaceViews:
    """Surfaces of the views, without pixels between two surfaces, refuted ones and invalid views.

    Arguments as in `warping.warp_views`; `tolerance` is the share of depth within which two
    neighbouring pixels continue one surface, and two views show the same one. `refuted` are points
    to be left out; those that the views themselves refute when None.
    """
    told = DepthViews(
        depth=jnp.asarray(depth, jnp.float32),
        confidence=jnp.asarray(confidence, jnp.float32),
        measured=jnp.ones(depth.shape, bool) if measured is None else measured,
        w2c=jnp.asarray(w2c, jnp.float32),
        intrinsics=jnp.asarray(intrinsics, jnp.float32),
        valid=jnp.asarray(valid),
    )
    views = stored_surfaces(told, tolerance=tolerance)
    stands = ~(refuted_points(told, tolerance=tolerance) if refuted is None else refuted)
    return dataclasses.replace(
        views,
        inverse=jnp.where(stands, views.inverse, 0.0),
        table=jnp.where(stands[..., None], views.table, 0.0),
    )


def stored_surfaces(views: DepthViews, *, tolerance: float) -> SurfaceViews:
    """`prepare_views` before the views judge each other: refuted pixels are still there."""
    inverse = _kept_inverse(views)
    keep = inverse > 0
    planes = jax.vmap(tangent_planes)(_known_inverse(views))
    planes = jnp.where(keep[..., None], planes, 0.0)
    smooth = jax.vmap(functools.partial(one_surface, tolerance=2.0 * tolerance))(inverse, planes)
    beside = jax.vmap(functools.partial(nearer_beside, tolerance=2.0 * tolerance))(inverse, planes)
    measured = views.measured.astype(jnp.float32)
    held = [jnp.where(keep, views.confidence, 0.0), beside, measured]
    return SurfaceViews(
        inverse=inverse,
        table=jnp.concatenate([planes, jnp.stack(held, -1)], -1),
        smooth=smooth,
        w2c=views.w2c,
        intrinsics=views.intrinsics,
    )


def thin_surfaces(
    views: DepthViews, *, start: int, step: int
) -> tuple[Float[Array, "v r c"], Float[Array, "v r c"], Float[Array, "v r c"]]:
    """Inverse depth, 0 where not believed, and its derivatives by x and y, of some of the pixels.

    Of every `step`-th from `start` on, along both axes; as in `stored_surfaces`, but without its
    arrays for all views at once.
    """
    thin = slice(start, None, step)

    def one(number: Array) -> tuple[Array, Array, Array]:
        view = _one_view(views, number)
        inverse, planes = _kept_inverse(view)[0], tangent_planes(_known_inverse(view)[0])
        planes = jnp.where((inverse > 0)[..., None], planes, 0.0)
        return inverse[thin, thin], planes[thin, thin, 0], planes[thin, thin, 1]

    return lax.map(one, jnp.arange(len(views.valid)))


def _known_inverse(views: DepthViews) -> Float[Array, "v h w"]:
    return jnp.where(views.valid[:, None, None], inverse_depth(views.depth), 0.0)


def _kept_inverse(views: DepthViews) -> Float[Array, "v h w"]:
    """Inverse depth, 0 where it is not believed: between two surfaces, or without confidence."""
    inverse = _known_inverse(views)
    keep = ~jax.vmap(between_surfaces)(inverse) & (views.confidence > 0)
    return jnp.where(keep, inverse, 0.0)


def refuted_points(
    views: DepthViews,
    *,
    tolerance: float,
    asked: Int[Array, "k"] | None = None,
    start: int = 0,
    step: int = 1,
) -> Bool[Array, "k rows columns"]:
    """Points which more confidence looks through than shows, their own view's included.

    So wrong depth in one view is voted down wherever two others look there (row S12). Depth that
    was read from the memory speaks once, for what it was read from: see `_ballots`.

    The judges of a view are all, itself included; of more than `JUDGES` views it is judged by the
    `JUDGES` that look at most of what it shows. So time goes with the number of those asked about,
    and beyond the views themselves and some planes for each of those, memory is taken for one view.

    Args:
        views: that judge.
        tolerance: share of depth within which two views show one surface.
        asked: numbers of the views whose points are asked about; all when None.
        start, step: every `step`-th pixel from `start` on is asked about, along both axes.
    """
    # A verdict has no derivative, and a loop of unknown length would have none backwards.
    views = lax.stop_gradient(views)
    asked = jnp.arange(len(views.valid), dtype=jnp.int32) if asked is None else asked
    thin = (..., slice(start, None, step), slice(start, None, step))
    grid = [part[thin] for part in grid_parts(*views.depth.shape[1:])]
    inverse = lax.map(lambda number: _kept_inverse(_one_view(views, number))[0][thin], asked)
    judged = _judges(views, asked)
    many = min(_AT_ONCE, len(asked))
    rest = -len(asked) % many
    speaks = jnp.argsort(~judged.any(0))

    def hear(rank: Array, votes: Ballots) -> Ballots:
        judge = stored_surfaces(_one_view(views, speaks[rank]), tolerance=tolerance)
        on = jnp.pad(judged[:, speaks[rank]], (0, rest))
        order = jnp.argsort(~on)

        def vote(part: Array, votes: Ballots) -> Ballots:
            place = lax.dynamic_slice(order, (part * many,), (many,))
            # What pads the last part is nobody's: it is read somewhere, and dropped.
            safe = jnp.minimum(place, len(asked) - 1)
            here = jnp.where(on[place][:, None, None], inverse[safe], 0.0)
            about = asked[safe]
            matrix, vector = jax.vmap(pixel_transfer, in_axes=(0, 0, None, None))(
                views.w2c[about], views.intrinsics[about], judge.w2c[0], judge.intrinsics[0]
            )
            q = carry(matrix, vector, grid, here)
            found = _read(judge, q, here > 0)
            agrees, violates, _ = _compare(q, found, here, tolerance)
            new = _ballots(found, agrees, violates)
            return Ballots(
                measured=votes.measured.at[:, place].add(new.measured, mode="drop"),
                read=votes.read.at[:, place].max(new.read, mode="drop"),
            )

        return lax.fori_loop(0, -(-on.sum() // many), vote, votes)

    empty = jnp.zeros((2, *inverse.shape), jnp.float32)
    votes = lax.fori_loop(0, judged.any(0).sum(), hear, Ballots(empty, empty))
    support, against = jnp.maximum(votes.measured, votes.read)
    return against > support


def _one_view(views: DepthViews, number: Int[Array, ""]) -> DepthViews:
    return jax.tree.map(lambda x: x[number][None], views)


def _judges(views: DepthViews, asked: Int[Array, "k"]) -> Bool[Array, "k v"]:
    """Which views judge each of those asked about: see `refuted_points`."""
    count, height, width = views.depth.shape
    everyone = jnp.broadcast_to(views.valid[None], (len(asked), count))
    everyone &= views.valid[asked][:, None]
    if count <= JUDGES:
        return everyone
    step = max(1, min(height, width) // _COARSE)
    thin = (..., slice(step // 2, None, step), slice(step // 2, None, step))
    grid = [part[thin] for part in grid_parts(height, width)]
    # A view that only repeats what others say is heard after those that say something.
    worth = _REPEATS + views.measured[thin].mean((1, 2), dtype=jnp.float32)
    inverse = inverse_depth(views.depth[thin])

    def of_view(number: Array) -> Bool[Array, "v"]:
        q = carry(
            *_transfer(views, views.w2c[number], views.intrinsics[number]),
            grid,
            inverse[number][None],
        )
        front = (inverse[number] > 0)[None] & (q[2] > _NEAR)
        inside = front & (q[0] >= 0) & (q[1] >= 0) & (q[0] < width * q[2]) & (q[1] < height * q[2])
        shared = (inside.sum((1, 2)) * worth).at[number].set(jnp.inf)
        shared = jnp.where(views.valid, shared, 0.0)
        most, which = lax.top_k(shared, JUDGES)
        return jnp.zeros((count,), bool).at[which].set(most > 0)

    return lax.map(of_view, asked) & everyone


def visible_surface(
    views: SurfaceViews,
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
    *,
    height: int,
    width: int,
    tolerance: float,
) -> tuple[Float[Array, "h w"], Lookup]:
    """Inverse depth of the front-most surface that the views confirm (0 = hole), looked up.

    `tolerance` is the share of depth by which a view may differ and still see the same surface.
    """
    # Cameras in double precision would make doubles of the loop's single ones.
    target_w2c = jnp.asarray(target_w2c, jnp.float32)
    target_intrinsics = jnp.asarray(target_intrinsics, jnp.float32)
    transfer = _transfer(views, target_w2c, target_intrinsics)
    proposals = splat_proposals(views, target_w2c, target_intrinsics, height=height, width=width)

    grid = grid_parts(height, width)

    def confirm(best: Float[Array, "h w"], proposal: Float[Array, "h w"]):
        inverse = _intersect(views, transfer, proposal, tolerance)
        support, against = _votes(views, transfer, grid, inverse, tolerance)
        good = (support > 0) & (against <= support)
        return jnp.where(good, jnp.maximum(best, inverse), best), None

    # A scan, not an unrolled loop: a third of the time to compile.
    best, _ = lax.scan(confirm, jnp.zeros((height, width), jnp.float32), jnp.stack(proposals))
    best = jnp.where(shines_through(best, tolerance=_BEHIND * tolerance), 0.0, best)
    return best, _look(views, transfer, best, tolerance)


def splat_proposals(
    views: SurfaceViews,
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
    *,
    height: int,
    width: int,
) -> tuple[Float[Array, "h w"], Float[Array, "h w"], Float[Array, "h w"]]:
    """Three proposals of the target's inverse depth (0 = none): nearest, own, farthest.

    Each point goes into one cell of a pyramid of z-buffers, at the level whose cells are as wide
    as the point's footprint in the target (one scatter). `own` is the front-most point over a
    pixel's cells; `nearest` and `farthest` look at the cells around too, so that cracks are
    closed and both sides of a silhouette are proposed.
    """
    h, w = views.inverse.shape[1:]
    matrix, vector = jax.vmap(pixel_transfer, in_axes=(0, 0, None, None))(
        views.w2c, views.intrinsics, target_w2c, target_intrinsics
    )
    q = carry(matrix, vector, grid_parts(h, w), views.inverse)
    front = (views.inverse > 0) & (q[2] > _NEAR)
    qz = jnp.where(front, q[2], 1.0)
    x, y = q[0] / qz, q[1] / qz
    slope = (views.table[..., 0], views.table[..., 1])
    jacobian = surface_jacobian(matrix, vector, slope, (x, y), qz)
    front &= determinant(jacobian) > 0
    extent = jnp.maximum(*[jnp.abs(row[0]) + jnp.abs(row[1]) for row in jacobian])
    level = jnp.ceil(jnp.log2(jnp.maximum(extent, 1.0)) - 0.5)
    level = jnp.clip(level, 0, _LEVELS - 1).astype(jnp.int32)
    inside = front & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    column, row = (jnp.where(inside, a, 0.0).astype(jnp.int32) >> level for a in (x, y))
    shapes = [(-(-height // 2**i), -(-width // 2**i)) for i in range(_LEVELS)]
    starts = [sum(r * c for r, c in shapes[:i]) for i in range(_LEVELS + 1)]
    columns = jnp.asarray([c for _, c in shapes], jnp.int32)[level]
    index = jnp.asarray(starts[:-1], jnp.int32)[level] + row * columns + column
    value = jnp.where(inside, views.inverse / qz, 0.0)
    buffer = jnp.zeros((starts[-1],), jnp.float32)
    buffer = buffer.at[index.reshape(-1)].max(value.reshape(-1), mode="promise_in_bounds")
    near = own = jnp.zeros((height, width), jnp.float32)
    far = jnp.full((height, width), jnp.inf, jnp.float32)
    for i, (rows, cols) in enumerate(shapes):
        plane = buffer[starts[i] : starts[i + 1]].reshape(rows, cols)
        near = jnp.maximum(near, _enlarge(nearest_around(plane), 2**i, height, width))
        own = jnp.maximum(own, _enlarge(plane, 2**i, height, width))
        behind = _enlarge(farthest_around(plane), 2**i, height, width)
        far = jnp.where(behind > 0, jnp.minimum(far, behind), far)
    return near, own, jnp.where(jnp.isfinite(far), far, 0.0)


def _transfer(
    views: SurfaceViews | DepthViews,
    target_w2c: Float[Array, "4 4"],
    target_intrinsics: Float[Array, "3 3"],
) -> tuple[Float[Array, "v 3 3"], Float[Array, "v 3"]]:
    transfer = jax.vmap(pixel_transfer, in_axes=(None, None, 0, 0))
    return transfer(target_w2c, target_intrinsics, views.w2c, views.intrinsics)


def _intersect(
    views: SurfaceViews,
    transfer: tuple[Float[Array, "v 3 3"], Float[Array, "v 3"]],
    proposal: Float[Array, "h w"],
    tolerance: float,
) -> Float[Array, "h w"]:
    """Inverse depth at which the target rays meet the views' surfaces near `proposal`.

    The ray is cut with the tangent plane under the proposed point, then again with the plane
    under the cut (exact on planes after one step); where both agree the view has the point.
    Of the views' answers the front-most and those that agree with it are averaged.
    """
    matrix, vector = transfer
    grid = grid_parts(*proposal.shape)
    start = carry(matrix, vector, grid, jnp.zeros_like(proposal)[None])  # vanishing points

    def cut(guess: Float[Array, "#v h w"]) -> tuple[Float[Array, "v h w"], Float[Array, "v h w"]]:
        found = _read(views, carry(matrix, vector, grid, guess), guess > 0)
        below = 1.0 - dot(found.plane, vector_parts(vector))
        above = dot(found.plane, start)
        met = (found.confidence > 0) & (below > _NEAR) & (above > 0)
        return jnp.where(met, above / jnp.where(met, below, 1.0), 0.0), found.confidence

    first, _ = cut(proposal[None])
    second, confidence = cut(first)
    agrees = (second > 0) & (jnp.abs(second - first) <= tolerance * second)
    second = jnp.where(agrees, second, 0.0)
    front = second.max(0)
    member = agrees & (second >= (1.0 - 2.0 * tolerance) * front[None])
    weight = jnp.where(member, confidence, 0.0)
    total = weight.sum(0)
    return (weight * second).sum(0) / jnp.where(total > 0, total, 1.0)


def _votes(
    views: SurfaceViews,
    transfer: tuple[Float[Array, "v 3 3"], Float[Array, "v 3"]],
    grid: Parts,
    inverse: Float[Array, "h w"],
    tolerance: float,
) -> tuple[Float[Array, "h w"], Float[Array, "h w"]]:
    """Confidence of the views that show the surface, and of those that see through it."""
    q = carry(*transfer, grid, inverse[None])
    found = _read(views, q, (inverse > 0)[None])
    agrees, violates, _ = _compare(q, found, inverse[None], tolerance)
    votes = _ballots(found, agrees, violates)
    support, against = jnp.maximum(votes.measured.sum(1), votes.read.max(1))
    return support, against


class Ballots(typing.NamedTuple):
    """Confidence for (0) and against (1) points by views that measured, and by others [2 v h w]."""

    measured: Float[Array, "2 v h w"]
    read: Float[Array, "2 v h w"]


def _ballots(
    found: "_Found", agrees: Bool[Array, "v h w"], violates: Bool[Array, "v h w"]
) -> Ballots:
    """What each view says. Those that measured add up; of the others the surest counts, by half.

    Depth that was read from the memory stands for what it was read from, which may not be among
    the views: it counts if it says more than all that measured.
    """
    vote = jnp.where(jnp.stack([agrees, violates]), found.confidence[None], 0.0)
    own = jnp.where(found.measured[None], vote, 0.0)
    return Ballots(measured=own, read=_HEARSAY * (vote - own))


def _look(
    views: SurfaceViews,
    transfer: tuple[Float[Array, "v 3 3"], Float[Array, "v 3"]],
    inverse: Float[Array, "h w"],
    tolerance: float,
) -> Lookup:
    matrix, vector = transfer
    grid = grid_parts(*inverse.shape)
    q = carry(matrix, vector, grid, inverse[None])
    found = _read(views, q, (inverse > 0)[None])
    agrees, violates, residual = _compare(q, found, inverse[None], tolerance)
    # The view's plane as the target sees it gives how both pixel grids lie on the surface.
    below = 1.0 - dot(found.plane, vector_parts(vector))
    agrees &= below > _NEAR
    scale = 1.0 / jnp.where(agrees, below, 1.0)
    slope = [
        scale * dot(found.plane, [matrix[:, i, j, None, None] for i in range(3)]) for j in (0, 1)
    ]
    qz = jnp.where(agrees, q[2], 1.0)
    jacobian = surface_jacobian(matrix, vector, slope, found.pixel, qz)
    agrees &= determinant(jacobian) > 0
    return Lookup(
        pixel=jnp.stack(found.pixel, -1),
        planes=jnp.stack(found.plane, -1),
        confidence=found.confidence,
        agrees=agrees,
        violates=violates,
        residual=residual,
        density=jnp.stack(stretches(jacobian), -1),
        cosine=_cosine(matrix, views.intrinsics, grid, q),
    )


class _Found(typing.NamedTuple):
    """What the views hold at the pixels asked for; every array [v, h, w], confidence 0 outside."""

    pixel: Parts
    plane: Parts
    confidence: Float[Array, "v h w"]
    beside: Float[Array, "v h w"]
    measured: Bool[Array, "v h w"]


def _read(views: SurfaceViews, q: Parts, wanted: Bool[Array, "#v h w"]) -> _Found:
    v, h, w = views.inverse.shape
    front = q[2] > _NEAR
    scale = 1.0 / jnp.where(front, q[2], 1.0)
    x, y = q[0] * scale, q[1] * scale
    inside = front & wanted & (x >= 0) & (y >= 0) & (x < w) & (y < h)
    column = jnp.where(inside, x, 0.0).astype(jnp.int32)
    row = jnp.where(inside, y, 0.0).astype(jnp.int32)
    index = (jnp.arange(v, dtype=jnp.int32)[:, None, None] * h + row) * w + column
    # Barriers keep the gather from being fused into, and repeated by, each of its readers.
    index = lax.optimization_barrier(index)
    entry = views.table.reshape(v * h * w, 6).at[index].get(mode="promise_in_bounds")
    entry = lax.optimization_barrier(entry)
    plane = [entry[..., i] for i in range(3)]
    confidence = jnp.where(inside, entry[..., 3], 0.0)
    return _Found((x, y), plane, confidence, entry[..., 4], entry[..., 5] > 0)


def _compare(
    q: Parts, found: _Found, inverse: Float[Array, "#v h w"], tolerance: float
) -> tuple[Bool[Array, "v h w"], Bool[Array, "v h w"], Float[Array, "v h w"]]:
    """Whether each view agrees with the surface or looks through it; relative residual."""
    known = found.confidence > 0
    shown = dot(found.plane, (*found.pixel, 1.0))
    expected = inverse / jnp.where(q[2] > _NEAR, q[2], 1.0)
    residual = jnp.abs(shown - expected) / jnp.where(known, jnp.maximum(shown, 1e-12), 1.0)
    # Looked through: the surface lies farther, and beside a jump of depth the nearer one as well.
    passed = jnp.maximum(
        (1.0 + _THROUGH * tolerance) * shown, (1.0 + _THROUGH_BESIDE * tolerance) * found.beside
    )
    violates = known & (expected > passed)
    return known & (residual <= tolerance), violates, residual


def _cosine(
    matrix: Float[Array, "v 3 3"], intrinsics: Float[Array, "v 3 3"], grid: Parts, q: Parts
) -> Float[Array, "v h w"]:
    """Cosine of the angle between the target's and the view's line of sight to the surface."""
    inverse = inverse_intrinsics(intrinsics)
    turn = jnp.matmul(inverse, matrix, precision=_HIGHEST)
    target = [dot((*grid, 1.0), [turn[:, i, j, None, None] for j in range(3)]) for i in range(3)]
    view = [dot(q, [inverse[:, i, j, None, None] for j in range(3)]) for i in range(3)]
    length = dot(target, target) * dot(view, view)
    return dot(target, view) * lax.rsqrt(jnp.maximum(length, 1e-20))


def _enlarge(
    plane: Float[Array, "a b"], factor: int, height: int, width: int
) -> Float[Array, "h w"]:
    """Each cell repeated `factor` times along both axes, cropped to the target."""
    tall = jnp.repeat(jnp.repeat(plane, factor, axis=0), factor, axis=1)
    return tall[:height, :width]
