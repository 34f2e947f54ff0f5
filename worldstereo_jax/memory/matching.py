"""Matches between two images by descriptors alone, with no depth of either (rows S8, S35, S37).

Dense: all pixels of the coarsest level are compared with all others; finer levels choose among
what their neighbours found and improve it by a pixel. Both directions are matched and must agree.
Sparse: distinctive corners that are each other's nearest. Ambiguity, a second best that is nearly
as good, lowers the weight; beyond a threshold there is no correspondence.
"""

import functools
import itertools
import typing
from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Shaped
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import pixel_grid
from worldstereo_jax.geometry.products import product
from worldstereo_jax.geometry.sampling import sample_bilinear
from worldstereo_jax.geometry.smooth import arc_cosine, length
from worldstereo_jax.memory.descriptors import gradient_code, halve, structure_response

_ROWS = 256  # pixels compared with all others at once, at the coarsest level
_APART = 2  # cells by which a second best must differ from the best to be another place
_LOCAL_APART = ((0, 4), (4, 0), (4, 4), (4, -4), (0, 8), (8, 0), (8, 8), (8, -8))
_BAND = 2.0  # pixels of a level that a match may stray from the epipolar line
_WIDTHS = (0.8, 0.6)  # shares of a level's own code and the wider one: squares add up to 1
_ROUNDS = 2  # of asking the neighbours, at each level but the finest


@typing.no_type_check
@flax.struct.dataclass
class DenseMatches:
    """Where each pixel of view a is found in view b.

    pixels [h, w, 2]: (x, y) in b, pixel centres at +0.5. valid [h, w]: both directions agree, and
    no other place is nearly as good. weight [h, w]: 0 .. 1, how distinct the match is; 0 where it
    is not valid. ambiguity [h, w]: 0 .. 1, distance to the best over distance to the second best.
    """

    pixels: Float[Array, "h w 2"]
    valid: Bool[Array, "h w"]
    weight: Float[Array, "h w"]
    ambiguity: Float[Array, "h w"]


@typing.no_type_check
@flax.struct.dataclass
class SparseMatches:
    """Up to k keypoints of view a and where they are found in view b.

    pixels_a, pixels_b [k, 2]: (x, y). valid [k]. weight [k]: 0 .. 1, 0 where not valid.
    """

    pixels_a: Float[Array, "k 2"]
    pixels_b: Float[Array, "k 2"]
    valid: Bool[Array, "k"]
    weight: Float[Array, "k"]


def code_pyramid(
    image: Float[Array, "h w 3"], *, finest: int = 1, levels: int = 3
) -> tuple[Float[Array, "..."], ...]:
    """Unit codes of an image at 1 / 2^finest of its size and coarser, finest first (row S2).

    The finest is `gradient_code`, [h, w, 72]; the others are joined with that of the level above:
    [h, w, 144].
    """
    for _ in range(finest):
        image = halve(image)
    codes = []
    for _ in range(levels + 1):
        codes.append(gradient_code(image))
        image = halve(image)
    # The wider surroundings decide where the narrow ones look alike; the finest level goes without
    # them, since they would carry a silhouette's match beyond it.
    joined = [
        jnp.concatenate([_WIDTHS[0] * fine, _WIDTHS[1] * _enlarge(wide, fine.shape[:2])], axis=-1)
        for fine, wide in itertools.pairwise(codes[1:])
    ]
    return (codes[0], *joined)


def fundamental_matrix(
    w2c_a: Float[Array, "4 4"],
    intrinsics_a: Float[Array, "3 3"],
    w2c_b: Float[Array, "4 4"],
    intrinsics_b: Float[Array, "3 3"],
) -> Float[Array, "3 3"]:
    """F with [x_b, 1] F [x_a, 1] = 0 for the pixels of one point (Hartley and Zisserman, 9.6)."""
    rotation = product(w2c_b[:3, :3], w2c_a[:3, :3].T)
    x, y, z = w2c_b[:3, 3] - product(rotation, w2c_a[:3, 3])
    zero = jnp.zeros_like(x)
    cross = jnp.array([[zero, -z, y], [z, zero, -x], [-y, x, zero]])
    essential = product(product(jnp.linalg.inv(intrinsics_b).T, cross), rotation)
    return product(essential, jnp.linalg.inv(intrinsics_a))


@functools.partial(jax.jit, static_argnames=("height", "width"))
def match_codes(
    codes_a: Sequence[Float[Array, "..."]],
    codes_b: Sequence[Float[Array, "..."]],
    *,
    height: int,
    width: int,
    fundamental: Float[Array, "3 3"] | None = None,
    most_drift: float | Float[Array, ""] = 3.0,
    most_ambiguity: float | Float[Array, ""] = 0.85,
) -> DenseMatches:
    """Dense matches between two pyramids of unit descriptors (rows S8, S37).

    Args:
        codes_a, codes_b: [h, w, c] per level, finest first, each half the size of the one before
            (rounded down); made by hand (`code_pyramid`) or learned.
        height, width: size of the images, of which the finest level is a whole fraction.
        fundamental: of full-size pixels (`fundamental_matrix`); matches are then sought within two
            pixels of each level of the epipolar line.
        most_drift: full-size pixels by which a match may miss its origin when matched back.
        most_ambiguity: share of the second best's distance from which on there is no match.

    Raises:
        InputError: when the pyramids differ in their number of levels or the finest is no whole
            fraction of the image.
    """
    if len(codes_a) != len(codes_b) or not codes_a:
        raise InputError(
            f"two pyramids of equal depth are matched, not of {len(codes_a)} and {len(codes_b)}"
        )
    step = height // codes_a[0].shape[0]
    if codes_a[0].shape[:2] != (height // step, width // step):
        raise InputError(
            f"a finest level of {codes_a[0].shape[:2]} is no whole fraction of {height}x{width}"
        )
    backward = None if fundamental is None else fundamental.T
    there, global_a = _search(codes_a, codes_b, fundamental, step)
    back, _ = _search(codes_b, codes_a, backward, step)
    code_a, code_b = codes_a[0], codes_b[0]
    similarity = _similarity(code_a, code_b, there)
    # Distance to the second best nearby: b's own likeness to what is beside the match.
    own = sample_bilinear(_self_distance(code_b)[..., None], there)[..., 0]
    miss = jnp.maximum(1.0 - similarity, 0.0)
    local = miss / jnp.maximum(miss + own, 1e-6)
    ambiguity = jnp.maximum(local, _enlarge(global_a, (code_a.shape[0], code_a.shape[1])))
    there = _subpixel(code_a, code_b, there, similarity)
    back = _subpixel(code_b, code_a, back, _similarity(code_b, code_a, back))
    drift = step * _least_drift(there, back)
    inside = ((there >= 0) & (there < jnp.array([[code_b.shape[1::-1]]]))).all(-1)
    valid = (drift <= most_drift) & inside & (ambiguity <= most_ambiguity)
    weight = jnp.where(valid, (1.0 - ambiguity) * jnp.clip(similarity, 0.0, 1.0), 0.0)
    # A full-size pixel keeps its place within the coarser one.
    grid = pixel_grid(height, width)
    offset = there - pixel_grid(*there.shape[:2])
    size = (height, width)
    return DenseMatches(
        pixels=grid + step * _enlarge(offset, size),
        valid=_enlarge(valid, size),
        weight=_enlarge(weight, size),
        ambiguity=_enlarge(ambiguity, size),
    )


@functools.partial(jax.jit, static_argnames=("finest", "levels"))
def match_images(
    image_a: Float[Array, "h w 3"],
    image_b: Float[Array, "h w 3"],
    *,
    fundamental: Float[Array, "3 3"] | None = None,
    finest: int = 1,
    levels: int = 3,
    most_ambiguity: float | Float[Array, ""] = 0.85,
) -> DenseMatches:
    """Dense matches of two images by `code_pyramid`; arguments as in `match_codes`.

    `finest` 0 keeps to silhouettes better than the default, half the size, at four times the cost.
    All pairs of the coarsest of the `levels` are compared: it should have a few thousand pixels.
    """
    return match_codes(
        code_pyramid(image_a, finest=finest, levels=levels),
        code_pyramid(image_b, finest=finest, levels=levels),
        height=image_a.shape[0],
        width=image_a.shape[1],
        fundamental=fundamental,
        most_ambiguity=most_ambiguity,
    )


def find_keypoints(
    corner: Float[Array, "h w"], k: int, *, apart: int = 4, margin: int = 12
) -> tuple[Float[Array, "k 2"], Bool[Array, "k"]]:
    """The k strongest corners that are the strongest within `apart` pixels of themselves.

    Those less than `margin` pixels from the border, whose surroundings are not all seen, are left
    out. Returns (x, y) and which are filled.
    """
    h, w = corner.shape
    side = 2 * apart + 1
    highest = lax.reduce_window(corner, -jnp.inf, lax.max, (side, side), (1, 1), "SAME")
    row, column = jnp.arange(h)[:, None], jnp.arange(w)[None, :]
    inner = (row >= margin) & (row < h - margin) & (column >= margin) & (column < w - margin)
    strength = jnp.where(inner & (corner >= highest) & (corner > 0), corner, 0.0)
    value, place = lax.top_k(strength.reshape(-1), k)
    pixels = jnp.stack([place % w, place // w], -1).astype(jnp.float32) + 0.5
    return pixels, value > 0


@functools.partial(jax.jit, static_argnames=("k", "finest"))
def match_keypoints(
    image_a: Float[Array, "h w 3"],
    image_b: Float[Array, "h w 3"],
    *,
    k: int = 1024,
    finest: int = 1,
    most_ambiguity: float | Float[Array, ""] = 0.6,
) -> SparseMatches:
    """Corners of two images that are each other's nearest and have no rival (rows S8, S37).

    Codes of two successive levels are compared; the ratio test is Lowe's (IJCV 2004), here on the
    angle between codes: the nearest must be below `most_ambiguity` of the second nearest.
    """
    pixels, codes, filled = [], [], []
    for image in (image_a, image_b):
        where, is_there = find_keypoints(structure_response(image).corner, k)
        parts = [
            sample_bilinear(code, where / 2.0 ** (finest + level))
            for level, code in enumerate(code_pyramid(image, finest=finest, levels=2))
        ]
        code = jnp.concatenate(parts, axis=-1)
        code = code / jnp.maximum(length(code, keepdims=True), 1e-6)
        pixels.append(where)
        codes.append(code)
        filled.append(is_there)
    usable = filled[0][:, None] & filled[1][None, :]
    likeness = jnp.where(usable, product(codes[0], codes[1].T), -1.0)
    (first, second), best = lax.top_k(likeness, 2)[0].T, likeness.argmax(1)
    mutual = likeness.argmax(0)[best] == jnp.arange(k)
    angle, rival = (arc_cosine(jnp.clip(value, -1.0, 1.0)) for value in (first, second))
    ratio = angle / jnp.maximum(rival, 1e-6)
    valid = filled[0] & filled[1][best] & mutual & (ratio <= most_ambiguity) & (first > 0)
    return SparseMatches(
        pixels_a=pixels[0],
        pixels_b=pixels[1][best],
        valid=valid,
        weight=jnp.where(valid, (1.0 - ratio) * first, 0.0),
    )


def _search(
    codes_a: Sequence[Array],
    codes_b: Sequence[Array],
    fundamental: Array | None,
    step: int,
) -> tuple[Float[Array, "h w 2"], Float[Array, "hc wc"]]:
    """Best place in b of each pixel of a at the finest level, and the coarsest one's ambiguity."""
    # Whatever precision they come in: places and scores are carried through loops in single.
    codes_a, codes_b = (
        [jnp.asarray(code, jnp.float32) for code in codes] for codes in (codes_a, codes_b)
    )
    top = len(codes_a) - 1
    place, ambiguity = _compare_all(codes_a[top], codes_b[top], fundamental, step * 2**top)
    score = jnp.full(place.shape[:2], -jnp.inf, jnp.float32)
    for level in range(top, -1, -1):
        a, b = codes_a[level], codes_b[level]
        size = (a.shape[0], a.shape[1])
        better = functools.partial(_better, a, b, fundamental, step * 2**level)
        if level < top:
            offsets = _neighbours(place - pixel_grid(*place.shape[:2]), (1,))
            candidates = [2.0 * _enlarge(offset, size) for offset in offsets]
            start = (jnp.zeros((*size, 2), jnp.float32), jnp.full(size, -jnp.inf, jnp.float32))
        else:
            candidates, start = [place - pixel_grid(*size)], (place, score)
        start, _ = lax.scan(better, start, pixel_grid(*size)[None] + jnp.stack(candidates))
        again = jnp.arange(_ROUNDS if level else 1)
        (place, score), _ = lax.scan(functools.partial(_refine, better), start, again)
    return place, ambiguity


_Held = tuple[Float[Array, "h w 2"], Float[Array, "h w"]]


def _refine(
    better: Callable[[_Held, Array], tuple[_Held, None]], held: _Held, number: Array
) -> tuple[_Held, None]:
    """Better of what is held, what the neighbours hold, and the eight places around it."""
    del number
    grid = pixel_grid(*held[0].shape[:2])
    held, _ = lax.scan(better, held, grid[None] + jnp.stack(_neighbours(held[0] - grid, (1, 3))))
    moves = jnp.array(list(itertools.product((-1.0, 0.0, 1.0), repeat=2)), jnp.float32)
    middle = held[0]
    held, _ = lax.scan(lambda held, move: better(held, middle + move[None, None]), held, moves)
    return held, None


def _better(
    a: Float[Array, "h w c"],
    b: Float[Array, "hb wb c"],
    fundamental: Float[Array, "3 3"] | None,
    step: int,
    held: _Held,
    candidate: Float[Array, "h w 2"],
) -> tuple[_Held, None]:
    """Of two places in b the one whose code is more like a's."""
    h, w = b.shape[:2]
    inside = ((candidate >= 0) & (candidate < jnp.array([[[w, h]]]))).all(-1)
    column, row = jnp.moveaxis(jnp.where(inside[..., None], candidate, 0.0), -1, 0).astype(int)
    score = (a * b.reshape(h * w, -1)[row * w + column]).sum(-1)
    if fundamental is not None:
        grid = step * pixel_grid(*a.shape[:2])
        inside &= _line_distance(fundamental, grid, step * candidate) <= _BAND * step
    wins = inside & (score > held[1])
    place = jnp.where(wins[..., None], candidate, held[0])
    return (place, jnp.where(wins, score, held[1])), None


def _compare_all(
    a: Float[Array, "h w c"],
    b: Float[Array, "hb wb c"],
    fundamental: Float[Array, "3 3"] | None,
    step: int,
) -> tuple[Float[Array, "h w 2"], Float[Array, "h w"]]:
    """Best place in b of every pixel of a, and how near the best other place comes to it.

    All pairs are compared in slabs of rows; no array over all pairs is held.
    """
    h, w, c = a.shape
    hb, wb = b.shape[:2]
    table, grid_b = b.reshape(hb * wb, c), pixel_grid(hb, wb).reshape(1, hb * wb, 2)

    def slab(part: tuple[Array, Array]) -> tuple[Array, Array]:
        code, grid = part
        likeness = product(code, table.T)
        if fundamental is not None:
            off_line = _line_distance(fundamental, step * grid[:, None], step * grid_b)
            likeness = jnp.where(off_line <= _BAND * step, likeness, -1.0)
        best = likeness.argmax(1)
        place = grid_b[0, best]
        beside = (jnp.abs(grid_b - place[:, None]) <= _APART).all(-1)
        first = likeness.max(1)
        second = jnp.where(beside, -1.0, likeness).max(1)
        ratio = jnp.maximum(1.0 - first, 0.0) / jnp.maximum(1.0 - second, 1e-6)
        return place, jnp.minimum(ratio, 1.0)

    count = -(-h * w // _ROWS)
    pad = ((0, count * _ROWS - h * w), (0, 0))
    parts = jnp.pad(a.reshape(h * w, c), pad), jnp.pad(pixel_grid(h, w).reshape(-1, 2), pad)
    place, ratio = lax.map(slab, jax.tree.map(lambda x: x.reshape(count, _ROWS, -1), parts))
    return place.reshape(-1, 2)[: h * w].reshape(h, w, 2), ratio.reshape(-1)[: h * w].reshape(h, w)


def _line_distance(
    fundamental: Float[Array, "3 3"], pixels_a: Float[Array, "*n 2"], pixels_b: Float[Array, "*m 2"]
) -> Float[Array, "*nm"]:
    """Pixels from points of b to the epipolar lines of points of a."""
    x, y = pixels_a[..., 0], pixels_a[..., 1]
    p, q, r = (fundamental[i, 0] * x + fundamental[i, 1] * y + fundamental[i, 2] for i in range(3))
    norm = jnp.maximum(jnp.sqrt(p * p + q * q), 1e-12)
    return jnp.abs(p * pixels_b[..., 0] + q * pixels_b[..., 1] + r) / norm


def _neighbours(
    offset: Float[Array, "h w 2"], reaches: tuple[int, ...]
) -> list[Float[Array, "h w 2"]]:
    """What a pixel itself holds and what those beside it hold; beyond the border, the border's."""
    h, w = offset.shape[:2]
    wide = max(reaches)
    padded = jnp.pad(offset, ((wide, wide), (wide, wide), (0, 0)), mode="edge")
    steps = [(0, 0)]
    for reach in reaches:
        steps += [(-reach, 0), (reach, 0), (0, -reach), (0, reach)]
    return [padded[wide + dy : wide + dy + h, wide + dx : wide + dx + w] for dy, dx in steps]


def _least_drift(
    there: Float[Array, "h w 2"], back: Float[Array, "hb wb 2"]
) -> Float[Array, "h w"]:
    """By how far the way back misses, as the best of the four pixels around the match tells it.

    Their mean would say nothing next to a silhouette, where they lie on two surfaces.
    """
    h, w = back.shape[:2]
    offset = (back - pixel_grid(h, w)).reshape(h * w, 2)
    grid = pixel_grid(*there.shape[:2])
    least = jnp.full(there.shape[:2], jnp.inf, jnp.float32)
    for corner in itertools.product((-0.5, 0.5), repeat=2):
        at = (there + jnp.array([[corner]])).astype(int)
        column, row = jnp.clip(at[..., 0], 0, w - 1), jnp.clip(at[..., 1], 0, h - 1)
        miss = there + offset[row * w + column] - grid
        least = jnp.minimum(least, jnp.linalg.norm(miss, axis=-1))
    return least


def _self_distance(code: Float[Array, "h w c"]) -> Float[Array, "h w"]:
    """1 - likeness of each pixel's code to the most similar of those a few pixels beside it."""
    h, w = code.shape[:2]
    wide = max(max(map(abs, move)) for move in _LOCAL_APART)
    padded = jnp.pad(code, ((wide, wide), (wide, wide), (0, 0)), mode="edge")
    highest = jnp.full((h, w), -1.0, jnp.float32)
    for y, x in _LOCAL_APART:
        for dy, dx in ((y, x), (-y, -x)):
            other = padded[wide + dy : wide + dy + h, wide + dx : wide + dx + w]
            highest = jnp.maximum(highest, (code * other).sum(-1))
    return jnp.maximum(1.0 - highest, 0.0)


def _subpixel(
    a: Float[Array, "h w c"],
    b: Float[Array, "hb wb c"],
    place: Float[Array, "h w 2"],
    similarity: Float[Array, "h w"],
) -> Float[Array, "h w 2"]:
    """The peak of a parabola through the likeness on either side, along each axis."""
    moves = []
    for step in jnp.eye(2, dtype=jnp.float32):
        after = _similarity(a, b, place + step[None, None])
        before = _similarity(a, b, place - step[None, None])
        bend = after - 2.0 * similarity + before
        moves.append(jnp.where(bend < -1e-6, 0.5 * (before - after) / jnp.minimum(bend, -1e-6), 0))
    return place + jnp.clip(jnp.stack(moves, -1), -0.5, 0.5)


def _similarity(
    a: Float[Array, "h w c"], b: Float[Array, "hb wb c"], place: Float[Array, "h w 2"]
) -> Float[Array, "h w"]:
    h, w = b.shape[:2]
    column = jnp.clip(place[..., 0].astype(int), 0, w - 1)
    row = jnp.clip(place[..., 1].astype(int), 0, h - 1)
    return (a * b.reshape(h * w, -1)[row * w + column]).sum(-1)


def _enlarge(values: Shaped[Array, "h w *c"], size: tuple[int, int]) -> Shaped[Array, "H W *c"]:
    """Nearest-neighbour enlargement by a whole factor, the last row and column repeated."""
    row = jnp.minimum(jnp.arange(size[0]) // (size[0] // values.shape[0]), values.shape[0] - 1)
    column = jnp.minimum(jnp.arange(size[1]) // (size[1] // values.shape[1]), values.shape[1] - 1)
    return values[row][:, column]
