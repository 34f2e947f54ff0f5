"""Entries of a bank seen from a new camera: what they carry, splatted at their size (row S18).

A pyramid of grids keeps for every cell the front-most entry that falls into it; an entry stands in
the grid whose cells are as wide as its footprint appears. Every target pixel then reads the
cells around it, at all levels, extends each entry to the pixel along its tangent plane, decides
which surface is in front, and averages over that surface alone with Gaussian weights (elliptical
splats with a depth test: Botsch et al., "High-quality surface splatting on today's GPUs", 2005).
"""

import dataclasses
import functools
import itertools
import math
import typing

import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int
from worldstereo_jax.geometry.cameras import camera_centers, pixel_grid, unproject
from worldstereo_jax.geometry.frame_check import check_cameras
from worldstereo_jax.geometry.products import product
from worldstereo_jax.geometry.smooth import length
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_appearance import appearance_change
from worldstereo_jax.memory.entry_features import PYRAMID, Level
from worldstereo_jax.memory.entry_views import count_views, see_through
from worldstereo_jax.memory.surface import inverse_depth, inverse_intrinsics
from worldstereo_jax.memory.warping import Warped

_LEVELS = 3  # splats up to 2**2 target pixels wide; a surface nearer than that shows holes
_AROUND = (2, 1, 1)  # cells read on either side of a pixel, per level
_NARROW, _WIDE = 0.5, 1.0  # Gaussians' sigma in splat widths: for colours, for who covers a pixel
_REACH = 2.3  # splat widths beyond which an entry says nothing of a pixel
_CLOSE = 1.7  # spacings within which entries on all sides of a pixel close their surface over it
# A pixel between entries belongs to their surface when the share of its surroundings that it
# covers, plus half of the splat widths by which close entries reach beyond the pixel on all sides,
# is at least this: more where an entry of the surface behind falls into the pixel.
_INSIDE, _INSIDE_BEFORE = 0.45, 0.55
_FRINGE = 0.3  # splat widths by which a surface is drawn beyond its silhouette, with nothing behind
_SPARSEST = 3.0  # spacing beyond which a surface is left open
_STEEPEST = 0.25  # share of depth by which a tangent plane may change within a splat
# Views that look through an entry, per view that saw it, from which on it gives way; the confidence
# of what it gives way to, as much as it can have itself; and the pixels over which that is sought.
_OUTVOTED, _TRUSTED, _SHARED = 0.8, 0.3, 4
_AROUND_PANE = 12  # pixels on either side over which a pane and what is behind it have their mean
# Cosine between an entry's normal and the line to the camera below which it is seen from behind,
# and the share of its weight that it has then: beside entries of the side that is seen it has no
# say.
_BEHIND, _BEHIND_SHARE = -0.3, 1e-3
_BAND = 16  # rows worked on at once, so that what every pixel's candidates hold stays small


class _Splats(typing.NamedTuple):
    """Entries in the target camera; every array has a leading axis n.

    place: (x, y). inverse: inverse depth, 0 = not to be drawn. slope: its derivatives by x and y
    on the tangent plane. size: width on the target in pixels, at least 1. behind: the camera sees
    the entry's back.
    """

    place: Float[Array, "n 2"]
    inverse: Float[Array, "n"]
    slope: Float[Array, "n 2"]
    size: Float[Array, "n"]
    behind: Bool[Array, "n"]


class _Near(typing.NamedTuple):
    """The c entries around each of p pixels; weight 0 where there is none.

    entry: id. inverse: inverse depth of its tangent plane at the pixel. away: from the entry to the
    pixel, splat widths. weight: confidence. spacing: to its neighbours, splat widths.
    """

    entry: Int[Array, "c p"]
    inverse: Float[Array, "c p"]
    away: Float[Array, "c p 2"]
    weight: Float[Array, "c p"]
    spacing: Float[Array, "c p"]


@dataclasses.dataclass(frozen=True)
class SplatRule:
    """How entries are drawn.

    k: nearest entries averaged. least_confidence: entries below it are not drawn. tolerance: share
    of depth within which entries lie on one surface. levels: of the bank's pyramid.
    """

    k: int = 4
    least_confidence: float = 0.1
    tolerance: float = 0.02
    levels: tuple[Level, ...] = PYRAMID


DEFAULT_SPLATS = SplatRule()
"""The four nearest entries of one surface, of all but the most doubtful."""


@functools.partial(jax.jit, static_argnames=("height", "width", "rule"))
def warp_entries(
    bank: EntryBank,
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
    *,
    height: int,
    width: int,
    values: Float[Array, "n c"] | None = None,
    down: Float[Array, "3"] | None = None,
    rule: SplatRule = DEFAULT_SPLATS,
) -> Warped:
    """What the bank's entries carry, as a camera sees it (rows S18, S34).

    Args:
        bank: any; restored when it was quantised.
        w2c, intrinsics: the target, pixels of a `height` x `width` image.
        values: what to draw, one row per slot, the same over all of a splat, for instance a level
            of `bank.features`. When None the colours in [-1, 1] of each entry's finest
            neighbourhood, read between its cells: what pruning took out is still in there. They
            go with the direction of view as they were seen to (row S24).
        down: world direction that points down in the pictures from which the entries came, which
            is where their neighbourhoods get their axes; the y axis when None.
        rule: static.

    Where the bank knows a transparent surface with another behind it, the depth is that of the one
    behind, and so are `values`; colours are those of both (see `compose_layers`).
    """
    layers = warp_layers(
        bank, w2c, intrinsics, height=height, width=width, values=values, down=down, rule=rule
    )
    return compose_layers(layers) if values is None else jax.tree.map(lambda x: x[0], layers)


@functools.partial(jax.jit, static_argnames=("height", "width", "rule"))
def warp_layers(
    bank: EntryBank,
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
    *,
    height: int,
    width: int,
    values: Float[Array, "n c"] | None = None,
    down: Float[Array, "3"] | None = None,
    rule: SplatRule = DEFAULT_SPLATS,
) -> Warped:
    """Two surfaces on each ray: the opaque one, and a transparent one before it (row S24).

    Arguments as in `warp_entries`. Fields of the result have a leading axis of 2: what is not
    transparent first; the second is all hole where the bank knows no transparent surface.
    """
    check_cameras(w2c, intrinsics)
    # Doubles from outside would not fit the loops, which carry single precision.
    w2c, intrinsics, values, down = jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float32), (w2c, intrinsics, values, down)
    )
    pane = see_through(bank)
    draw = functools.partial(
        _draw,
        w2c=w2c,
        intrinsics=intrinsics,
        height=height,
        width=width,
        values=values,
        down=down,
        rule=rule,
    )

    def nothing(_: EntryBank) -> Warped:
        empty = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), jax.eval_shape(draw, bank))
        return dataclasses.replace(empty, mask=jnp.ones_like(empty.mask))

    def step(_: None, is_pane: Array) -> tuple[None, Warped]:
        part = dataclasses.replace(bank, valid=bank.valid & (pane == is_pane))
        # Mostly there is no pane, and nothing is drawn for it.
        return None, lax.cond(~is_pane | pane.any(), draw, nothing, part)

    # A scan, not a loop of as many steps as there are layers: that has no reverse derivative.
    return lax.scan(step, None, jnp.array([False, True]))[1]


def compose_layers(layers: Warped) -> Warped:
    """What is seen where a transparent surface lies before another (row S24).

    Entries of both have learned mixtures: the pane's own pattern with the mean of what passed
    behind it, and the pattern behind with the mean of the panes before it. So what both have in
    common, their mean around the pixel, counts once, and what differs from it adds up.

    Args:
        layers: of `warp_layers`, colours in [-1, 1].
    """
    surface, pane = (jax.tree.map(lambda x, i=i: x[i], layers) for i in (0, 1))
    solid, clear = surface.mask < 0.5, pane.mask < 0.5
    both = solid & clear & (pane.depth < surface.depth)
    mean = _mean_around(0.5 * (surface.features + pane.features), both)
    mixed = jnp.clip(surface.features + pane.features - mean, -1.0, 1.0)
    alone = clear & ~solid

    def choose(old: Array, new: Array) -> Array:
        return jnp.where(alone.reshape(alone.shape + (1,) * (old.ndim - 2)), new, old)

    seen = jax.tree.map(choose, surface, pane)
    return dataclasses.replace(seen, features=jnp.where(both[..., None], mixed, seen.features))


def _mean_around(image: Float[Array, "h w c"], where: Bool[Array, "h w"]) -> Float[Array, "h w c"]:
    """Mean over the pixels `where` asked in a window around each; 0 where there are none."""
    share = where.astype(jnp.float32)[..., None]
    parts = jnp.concatenate([image * share, share], -1)
    window = (2 * _AROUND_PANE + 1, 2 * _AROUND_PANE + 1, 1)
    total = lax.reduce_window(parts, 0.0, lax.add, window, (1, 1, 1), "SAME")
    return total[..., :-1] / jnp.maximum(total[..., -1:], 1.0)


def _draw(
    bank: EntryBank,
    *,
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
    height: int,
    width: int,
    values: Float[Array, "n c"] | None,
    down: Float[Array, "3"] | None,
    rule: SplatRule,
) -> Warped:
    """One layer of `warp_layers`: the nearest surface of the bank's valid entries."""
    splats = _project(bank, w2c, intrinsics, rule.least_confidence)
    refuted = _refuted(bank, splats, rule.tolerance, height, width)
    splats = splats._replace(inverse=jnp.where(refuted, 0.0, splats.inverse))
    grids = _front_entries(splats, rule.tolerance, height, width)
    bands = -(-height // _BAND)

    def band(number: Array) -> tuple[Array, Array, Array, Array]:
        near = _candidates(splats, bank, grids, number * _BAND, width)
        weight, inverse = _front(near, rule.tolerance)
        best, which = lax.top_k(weight.T, rule.k)
        entry = jnp.take_along_axis(near.entry.T, which, axis=-1)
        return entry, best, inverse, weight.sum(0)

    entry, best, inverse, held = jax.tree.map(
        lambda x: x.reshape(-1, *x.shape[2:])[: height * width].reshape(
            height, width, *x.shape[2:]
        ),
        lax.map(band, jnp.arange(bands, dtype=jnp.int32)),
    )
    covered = held > 0
    depth = jnp.where(covered, inverse_depth(inverse), 0.0)
    if values is None:
        points = unproject(pixel_grid(height, width), jnp.maximum(depth, 1e-20), w2c, intrinsics)
        down = jnp.array([0.0, 1.0, 0.0], jnp.float32) if down is None else down
        change = appearance_change(bank, camera_centers(w2c))
        read = functools.partial(
            _read_neighbourhood, bank, change, points, down, rule.levels[0].grid
        )
        channels = 3
    else:
        read = functools.partial(jnp.take, values, axis=0)
        channels = values.shape[-1]

    def add(total: Array, part: tuple[Array, Array]) -> tuple[Array, None]:
        entry, share = part
        return total + share[..., None] * read(entry), None

    start = jnp.zeros((height, width, channels), jnp.float32)
    total, _ = lax.scan(add, start, (jnp.moveaxis(entry, -1, 0), jnp.moveaxis(best, -1, 0)))
    share = 1.0 / jnp.maximum(best.sum(-1), 1e-20)
    # At most what speaks for an entry, or reading it again and again would make it surer.
    sure = jnp.minimum(bank.confidence, bank.backing)[entry]
    return Warped(
        features=jnp.where(covered[..., None], total * share[..., None], 0.0),
        mask=1.0 - covered.astype(jnp.float32),
        depth=depth,
        weight=held,
        confidence=(best * sure).sum(-1) * share,
    )


def _read_neighbourhood(
    bank: EntryBank,
    change: Float[Array, "n 3"],
    points: Float[Array, "h w 3"],
    down: Float[Array, "3"],
    grid: int,
    entry: Int[Array, "h w"],
) -> Float[Array, "h w 3"]:
    """Colours that entries saw at points of their tangent planes, between the cells of their grid.

    A point lies as many cells from the middle as it lies footprints from the entry, across the line
    along which the entry was first seen. `change` is what the view adds to each entry's colours.
    """
    line = bank.anchor - bank.eye
    right = jnp.cross(jnp.broadcast_to(down[None], line.shape), line)
    below = jnp.cross(line, right)
    size = jnp.where(bank.footprint > 0, bank.footprint, 1.0)[:, None]

    def unit(axis: Float[Array, "n 3"]) -> Float[Array, "n 3"]:
        long = length(axis, keepdims=True)
        return axis / jnp.where(long > 0, long, 1.0) / size

    away = points - bank.position[entry]
    reach = grid // 2
    x, y = (
        jnp.clip((away * unit(axis)[entry]).sum(-1) + reach, 0.0, 2.0 * reach)
        for axis in (right, below)
    )
    x0, y0 = (jnp.minimum(jnp.floor(a).astype(jnp.int32), max(2 * reach - 1, 0)) for a in (x, y))
    off_x, off_y = (a - cell.astype(jnp.float32) for a, cell in ((x, x0), (y, y0)))
    colours = bank.features[0][:, : 3 * grid**2].reshape(-1, 3)
    total = jnp.zeros(points.shape, jnp.float32)
    for dy, dx in itertools.product(range(min(2, grid)), repeat=2):
        share = (1.0 - jnp.abs(off_x - dx)) * (1.0 - jnp.abs(off_y - dy))
        cell = entry * grid**2 + (y0 + dy) * grid + x0 + dx
        total = total + share[..., None] * colours[cell]
    return jnp.clip(total + change[entry], -1.0, 1.0)


def _project(
    bank: EntryBank,
    w2c: Float[Array, "4 4"],
    intrinsics: Float[Array, "3 3"],
    least_confidence: float,
) -> _Splats:
    local = product(bank.position, w2c[:3, :3].T) + w2c[:3, 3][None]
    depth = local[:, 2]
    front = bank.valid & (bank.confidence >= least_confidence) & (depth > 0)
    depth = jnp.where(front, depth, 1.0)
    place = product(local, intrinsics.T)[:, :2] / depth[:, None]
    focal = jnp.sqrt(jnp.abs(intrinsics[0, 0] * intrinsics[1, 1]))
    size = jnp.maximum(bank.footprint * focal / depth, 1.0)
    # On a plane inverse depth is n . r / n . P, affine in the pixel that the ray r goes through.
    normal = product(bank.normal, w2c[:3, :3].T)
    towards = (normal * local).sum(-1)
    known = jnp.abs(towards) > 1e-6 * jnp.linalg.norm(local, axis=-1)
    slope = product(normal, inverse_intrinsics(intrinsics))[:, :2]
    slope = slope / jnp.where(known, towards, 1.0)[:, None]
    most = _STEEPEST / (depth * size * _REACH)
    slope = jnp.clip(jnp.where(known[:, None], slope, 0.0), -most[:, None], most[:, None])
    behind = towards > -_BEHIND * jnp.linalg.norm(local, axis=-1)
    return _Splats(place, jnp.where(front, 1.0 / depth, 0.0), slope, size, behind)


def _refuted(
    bank: EntryBank, splats: _Splats, tolerance: float, height: int, width: int
) -> Bool[Array, " n"]:
    """Entries that hide what more views saw through them (row S12).

    About as many views looked through the entry as saw it, and around where it falls there is a
    farther surface that is trusted. What no view looked through is shown, however few saw it, and
    so is what one alone did: of two views that contradict each other, either may be wrong.
    """
    doubtful = bank.through > _OUTVOTED * bank.backing
    # One vote is 1 at most, which tells two views where there are no bits for them.
    doubtful &= (count_views(bank.denied) > 1) | (bank.through > 1.0)
    trusted = ~doubtful & (bank.confidence >= _TRUSTED) & (splats.inverse > 0)
    x, y = splats.place[:, 0], splats.place[:, 1]
    inside = (x >= 0) & (y >= 0) & (x < width) & (y < height)
    columns, rows = -(-width // _SHARED), -(-height // _SHARED)
    cell_x, cell_y = (jnp.where(inside, a, 0.0).astype(jnp.int32) // _SHARED for a in (x, y))
    index = jnp.where(inside, cell_y * columns + cell_x, rows * columns)
    farthest = jnp.full((rows * columns + 1,), jnp.inf, jnp.float32)
    farthest = farthest.at[index].min(jnp.where(trusted, splats.inverse, jnp.inf))
    return inside & doubtful & (farthest[index] < (1.0 - 2.0 * tolerance) * splats.inverse)


def _front_entries(
    splats: _Splats, tolerance: float, height: int, width: int
) -> list[Int[Array, "_ _"]]:
    """Per level the front-most entry of each cell, -1 where there is none, with a border of -1.

    Of one surface, or of the two sides of a thin one, those come first whose face is seen.
    """
    x, y = splats.place[:, 0], splats.place[:, 1]
    level = jnp.ceil(jnp.log2(splats.size) - 0.5)
    level = jnp.clip(level, 0, _LEVELS - 1).astype(jnp.int32)
    inside = (splats.inverse > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
    number = jnp.arange(splats.size.shape[0], dtype=jnp.int32)
    order = splats.inverse * jnp.where(splats.behind, 1.0 - 2.0 * tolerance, 1.0)
    grids = []
    for i, border in enumerate(_AROUND):
        # Room for the rows of the last band, which may stand out of the picture.
        rows, columns = -(-(height + _BAND) // 2**i), -(-width // 2**i)
        here = inside & (level == i)
        cell_x, cell_y = (jnp.where(here, a, 0.0).astype(jnp.int32) >> i for a in (x, y))
        index = jnp.where(here, cell_y * columns + cell_x, rows * columns)
        nearest = jnp.zeros((rows * columns + 1,), jnp.float32).at[index].max(order)
        first = here & (order >= nearest[index])
        held = jnp.full((rows * columns,), -1, jnp.int32)
        held = held.at[jnp.where(first, index, rows * columns)].max(number, mode="drop")
        grids.append(jnp.pad(held.reshape(rows, columns), border, constant_values=-1))
    return grids


def _candidates(
    splats: _Splats,
    bank: EntryBank,
    grids: list[Int[Array, "_ _"]],
    top: Int[Array, ""],
    width: int,
) -> _Near:
    """The entries in the cells around every pixel of the band of rows from `top` on."""
    row = (top + jnp.arange(_BAND, dtype=jnp.int32))[:, None]
    column = jnp.arange(width, dtype=jnp.int32)[None, :]
    found = []
    for i, (grid, border) in enumerate(zip(grids, _AROUND, strict=True)):
        # As one gather: a compiler takes long over one for each step.
        step = jnp.arange(2 * border + 1, dtype=jnp.int32)
        rows = (row >> i)[None, None] + step[:, None, None, None]
        columns = (column >> i)[None, None] + step[None, :, None, None]
        around = grid.at[rows, columns].get(mode="promise_in_bounds")
        found.append(around.reshape(-1, _BAND * width))
    entry = jnp.concatenate(found)
    centre = (cell.astype(jnp.float32) + 0.5 for cell in (column, row))
    pixel = jnp.stack(jnp.broadcast_arrays(*centre), -1).reshape(1, -1, 2)
    safe = jnp.maximum(entry, 0)
    weight = bank.confidence * jnp.where(splats.behind, _BEHIND_SHARE, 1.0)
    away = pixel - splats.place[safe]
    inverse = splats.inverse[safe] + (splats.slope[safe] * away).sum(-1)
    away = away / splats.size[safe][..., None]
    drawn = (entry >= 0) & ((away * away).sum(-1) <= _REACH**2) & (inverse > 0)
    return _Near(
        entry=safe,
        inverse=jnp.where(drawn, inverse, 0.0),
        away=away,
        weight=jnp.where(drawn, weight[safe], 0.0),
        spacing=jnp.clip(bank.spacing, 1.0, _SPARSEST)[safe],
    )


def _front(near: _Near, tolerance: float) -> tuple[Float[Array, "c p"], Float[Array, " p"]]:
    """Weights of the candidates on the surface that each pixel shows, and its inverse depth.

    The nearest surface is shown where one of its entries falls into the pixel, as in a z-buffer,
    and where the pixel lies inside of it: at a silhouette it covers half of what is around, and
    close entries stand on one side only; between spokes they stand on all sides and cover little.
    Both are measured, and weighed together, in units of the entries' spacing, so that a bank
    pruned to half closes as a full one does. Beyond a silhouette it is shown only by a fringe,
    where nothing is known behind it.
    """
    square = (near.away * near.away).sum(-1)
    distance = jnp.sqrt(square)
    # Entries stand for as much of the surface as lies around them.
    area = near.spacing * near.spacing * jnp.exp(-0.5 / _WIDE**2 * square)
    close = distance <= _CLOSE * near.spacing
    own = jnp.abs(near.away).max(-1) <= 0.5

    def layer(usable: Array) -> tuple[Array, Array, Array, Array, Array]:
        front = jnp.where(usable, near.inverse, 0.0).max(0)
        member = usable & (near.inverse >= (1.0 - 2.0 * tolerance) * front[None])
        inside_close = _reach_beyond(near.away, member & close)
        cover = jnp.where(member, area, 0.0).sum(0)
        return member, (member & own).any(0), inside_close, _reach_beyond(near.away, member), cover

    drawn = near.weight > 0
    one, touches, within_close, within, cover = layer(drawn)
    two, touches_two, _, within_two, _ = layer(drawn & ~one)
    behind = touches_two | (within_two >= -0.5)
    inside = cover / (2.0 * math.pi * _WIDE**2) + 0.5 * jnp.clip(within_close, -1.0, 1.0)
    first = touches | (inside >= jnp.where(touches_two, _INSIDE_BEFORE, _INSIDE))
    first |= (within >= -_FRINGE) & ~behind
    chosen = jnp.where(first[None], one, two & behind[None])
    weight = jnp.where(chosen, near.weight * jnp.exp(-0.5 / _NARROW**2 * square), 0.0)
    total = weight.sum(0)
    return weight, (weight * near.inverse).sum(0) / jnp.where(total > 0, total, 1.0)


def _reach_beyond(away: Float[Array, "c p 2"], member: Bool[Array, "c p"]) -> Float[Array, " p"]:
    """How far the members reach beyond the pixel, in the direction in which they reach least.

    In splat widths, over eight directions: at least 0 where the pixel lies between members,
    negative by its distance from them where it lies outside, far below where there are none.
    """
    reach = []
    for i in range(8):
        x, y = math.cos(i * math.pi / 4), math.sin(i * math.pi / 4)
        ahead = -(x * away[..., 0] + y * away[..., 1])
        reach.append(jnp.where(member, ahead, -_REACH).max(0))
    return functools.reduce(jnp.minimum, reach)
