"""From views with depth to the mask that attention runs under (rows S14, S17, S19, S20).

The memory fills `pallas_kernels.TokenGeometry`, one entry per token of 16x16 pixels, and leaves the
rest to the kernels: which tiles are active and which are skipped (row S32), and the predicate
between tokens.
"""

import typing

import jax
import jax.numpy as jnp
from einops import rearrange

from pallas_kernels import (
    BlockMask,
    CorrespondenceRule,
    TokenGeometry,
    ellipse_metric,
    frame_pattern,
    joint_correspondence,
)
from worldstereo_jax.array_types import Array, Bool, Float, Int, UInt32
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.cameras import camera_centers, pixel_grid, project, unproject
from worldstereo_jax.geometry.frame_check import check_cameras
from worldstereo_jax.geometry.points import normals_from_depth, valid_depth
from worldstereo_jax.geometry.smooth import length
from worldstereo_jax.memory.surface import inverse_depth, tangent_planes

TOKEN = 16
"""Side of a token in image pixels."""
# Field of a token (row S19, first form): this many token footprints across the surface.
_FOOTPRINTS = 1.5
# A surface seen at a flatter angle than this is treated as seen at it, or its field has no end.
_LEAST_COSINE = 0.25
# Pixels within this share of a token's median depth lie on the token's surface.
_SAME_SURFACE = 0.1
# Normals whose mean is shorter than this belong to no one plane: a crease or a rough surface.
_STRAIGHT = 0.9
# Share of depth within which two views show one surface, as in `warping.warp_views`.
_SAME_DEPTH = 0.02
# Tokens of less weight than this are not said to correspond to anything.
_LEAST_WEIGHT = 0.02


class ViewSet(typing.NamedTuple):
    """Views with depth.

    depth [f, h, w]: camera z, world units, 0 = unknown. w2c [f, 4, 4]. intrinsics [f, 3, 3].
    valid [f]: bool. confidence [f, h, w]: of the depth, 0 .. 1; None means certain.
    """

    depth: Float[Array, "f h w"]
    w2c: Float[Array, "f 4 4"]
    intrinsics: Float[Array, "f 3 3"]
    valid: Bool[Array, "f"]
    confidence: Float[Array, "f h w"] | None = None


class TokenSurface(typing.NamedTuple):
    """The surface behind each of t tokens per view.

    pixel [f, t, 2]: (x, y) of the pixel that stands for it. depth [f, t]: there, world units, 0 =
    unknown. spread [f, t]: mean deviation in depth of all its pixels from its plane.
    normal [f, t, 3]: unit, world frame, 0 = unknown or bent. known [f, t]: share of pixels with
    depth. confidence [f, t]: of the depth and, where the token holds several surfaces, of this
    one being meant (row S37).
    """

    pixel: Float[Array, "f t 2"]
    depth: Float[Array, "f t"]
    spread: Float[Array, "f t"]
    normal: Float[Array, "f t 3"]
    known: Float[Array, "f t"]
    confidence: Float[Array, "f t"]


def token_surface(views: ViewSet) -> TokenSurface:
    """Of every token the surface that holds its median depth, and the pixel that stands for it.

    The median is a depth that really occurs, so that a token across a depth edge stands on one of
    its surfaces and not between them; the pixel is that surface's nearest to the token's centre,
    so that the token's point lies exactly on it.

    Raises:
        InputError: when the views are not made of whole tokens, or a camera has another shape or
            does not hold floats.
    """
    if views.depth.ndim != 3 or views.depth.shape[1] % TOKEN or views.depth.shape[2] % TOKEN:
        raise InputError(
            f"views.depth must have shape [f, h, w] with h and w multiples of {TOKEN}, got "
            f"{list(views.depth.shape)}"
        )
    check_cameras(views.w2c, views.intrinsics, leading=views.depth.shape[:1])
    # Places do not survive half precision, whatever the views come in.
    views = jax.tree.map(lambda x: x if x.dtype == bool else jnp.asarray(x, jnp.float32), views)
    _, height, width = views.depth.shape
    depth = _by_token(views.depth[..., None])[..., 0]
    known = valid_depth(depth)
    count = known.sum(-1)
    ordered = jnp.sort(jnp.where(known, depth, jnp.inf), axis=-1)
    middle = jnp.maximum(count - 1, 0) // 2
    median = jnp.take_along_axis(ordered, middle[..., None], axis=-1)[..., 0]
    median = jnp.where(count > 0, median, 0.0)
    near = known & (jnp.abs(depth - median[..., None]) < _SAME_SURFACE * median[..., None])
    near_count = near.sum(-1).astype(jnp.float32)
    known_count = jnp.maximum(count, 1).astype(jnp.float32)

    offset = pixel_grid(TOKEN, TOKEN).reshape(-1, 2)
    far_off = jnp.where(near, ((offset - 0.5 * TOKEN) ** 2).sum(-1)[None, None], jnp.inf)
    chosen = jnp.argmin(far_off, axis=-1)
    corner = TOKEN * (pixel_grid(height // TOKEN, width // TOKEN).reshape(1, -1, 2) - 0.5)

    # Spread is measured from the token's plane, or every slant would count as doubt.
    inverse = inverse_depth(views.depth)
    slope = _by_token(jax.vmap(tangent_planes)(inverse)[..., :2])
    slope = jnp.where(near[..., None], slope, 0.0).sum(-2) / jnp.maximum(near_count, 1)[..., None]
    here = jnp.take_along_axis(depth, chosen[..., None], axis=-1)
    away = offset[None, None] - offset[chosen][..., None, :]
    tilt = 1.0 + here * (slope[..., None, :] * away).sum(-1)
    deviation = jnp.abs(depth - here / jnp.maximum(tilt, 0.2))
    spread = jnp.where(known, deviation, 0.0).sum(-1) / known_count

    normal = jax.vmap(normals_from_depth)(views.depth, views.w2c, views.intrinsics)
    normal = jnp.where(near[..., None], _by_token(normal), 0.0).sum(-2)
    size = length(normal, keepdims=True)
    straight = size > _STRAIGHT * jnp.maximum(near_count, 1)[..., None]
    confidence = near_count / known_count
    if views.confidence is not None:
        held = jnp.where(near, _by_token(views.confidence[..., None])[..., 0], 0.0).sum(-1)
        confidence = confidence * held / jnp.maximum(near_count, 1)
    return TokenSurface(
        pixel=corner + offset[chosen],
        depth=here[..., 0],
        spread=spread,
        normal=jnp.where(straight, normal / jnp.maximum(size, 1e-6), 0.0),
        known=count.astype(jnp.float32) / (TOKEN * TOKEN),
        confidence=confidence,
    )


def token_geometry(views: ViewSet, others: ViewSet) -> TokenGeometry:
    """The world geometry of every token of a set of views, with a leading batch axis of 1.

    Position: the surface point that stands for the token, see `token_surface`. Field (row S19,
    first form): an ellipse on the surface, 1.5 token footprints wide where the depth is certain
    and up to twice that where it is not, stretched by foreshortening, as thick as half of that
    and twice the depth's spread, so that it reaches a second surface that the token shows.
    Weight (row S15): log of the share of known pixels, their confidence, which falls where the
    token holds several surfaces, and the viewing cosine; below 2 % the token is not valid, and as a
    query falls back to the target alone (rows S17, S37).
    Visibility: which of the `others` sees the position unoccluded (row S14).

    Args:
        views: the views whose tokens are described.
        others: the views on the other side of the attention.
    """
    return _seen_by(_token_fields(views), others)


def token_geometries(one: ViewSet, other: ViewSet) -> tuple[TokenGeometry, TokenGeometry]:
    """`token_geometry` of either set of views before the other, as one computation.

    Args:
        one, other: views of one image size, both with a confidence or both without.
    """
    joined = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), one, other)
    fields, count = _token_fields(joined), one.depth.shape[0]
    first, second = (
        jax.tree.map(lambda x, part=part: x[part], fields)
        for part in (slice(count), slice(count, None))
    )
    return _seen_by(first, other), _seen_by(second, one)


class _TokenFields(typing.NamedTuple):
    """Of t tokens per view what `TokenGeometry` says of them, and `slack` [f, t] for visibility."""

    position: Float[Array, "f t 3"]
    metric: Float[Array, "f t 6"]
    normal: Float[Array, "f t 3"]
    log_weight: Float[Array, "f t"]
    valid: Bool[Array, "f t"]
    slack: Float[Array, "f t"]


def _token_fields(views: ViewSet) -> _TokenFields:
    surface = token_surface(views)
    position = jax.vmap(unproject)(surface.pixel, surface.depth, views.w2c, views.intrinsics)
    ray = position - camera_centers(views.w2c)[:, None]
    ray = ray / jnp.maximum(length(ray, keepdims=True), 1e-9)
    has_normal = (surface.normal != 0).any(-1, keepdims=True)
    normal = jnp.where(has_normal, surface.normal, -ray)
    cosine = jnp.clip(jnp.abs((normal * ray).sum(-1)), _LEAST_COSINE, 1.0)
    focal = views.intrinsics[:, 0, 0][:, None]
    footprint = TOKEN * surface.depth / focal
    radius = _FOOTPRINTS * footprint * (2.0 - surface.confidence)
    radii = jnp.stack([radius / cosine, radius, 0.5 * radius + 2.0 * surface.spread], axis=-1)
    metric = ellipse_metric(
        _surface_axes(normal, ray), jnp.where((surface.depth > 0)[..., None], radii, 1.0)
    )
    weight = surface.known * surface.confidence * cosine
    # A quarter of a token along the surface, in depth.
    slack = 0.25 * footprint / cosine + 2.0 * surface.spread
    return _TokenFields(
        position=position,
        metric=metric,
        normal=surface.normal,
        log_weight=jnp.log(jnp.clip(weight, 1e-3, 1.0)),
        valid=(surface.known > 0.25) & (weight >= _LEAST_WEIGHT) & views.valid[:, None],
        slack=slack,
    )


def _seen_by(fields: _TokenFields, others: ViewSet) -> TokenGeometry:
    """The tokens as one sequence, with the views among `others` that see them."""
    frames, tokens = fields.valid.shape
    frame = jnp.broadcast_to(jnp.arange(frames, dtype=jnp.int32)[:, None], fields.valid.shape)

    def flat(x: Array) -> Array:
        return x.reshape(1, frames * tokens, *x.shape[2:])

    position, slack = flat(fields.position)[0], flat(fields.slack)[0]
    return TokenGeometry(
        position=flat(jnp.where(fields.valid[..., None], fields.position, 0.0)),
        metric=flat(fields.metric),
        normal=flat(fields.normal),
        log_weight=flat(fields.log_weight),
        segment=jnp.zeros((1, frames * tokens), jnp.int32),
        frame=flat(frame),
        visibility=visibility_words(position, others, slack)[None],
        valid=flat(fields.valid),
    )


def visibility_words(
    position: Float[Array, "t 3"], others: ViewSet, slack: Float[Array, "t"]
) -> UInt32[Array, "t words"]:
    """Bitsets of the views that show points and do not occlude them (rows S14, S34).

    A point is occluded when the view's surface on its ray, on the tangent plane of the pixel, is
    nearer than it by more than its `slack` (world units) and by more than two views of one surface
    differ: depth that is a little off must not make a surface hide itself. A view without depth
    there hides nothing. A point up to half a token out of the frame belongs to a token that is in
    it.
    """
    _, height, width = others.depth.shape
    margin = TOKEN / 2

    def seen_in(view: tuple[Array, Array, Array, Array]) -> Array:
        depth, w2c, intrinsics, valid = view
        inverse = inverse_depth(depth)
        pixels, z = project(position, w2c, intrinsics)
        x, y = pixels[:, 0], pixels[:, 1]
        inside = (z > 0) & (x >= 0) & (y >= 0) & (x < width) & (y < height)
        close = (x >= -margin) & (y >= -margin) & (x < width + margin) & (y < height + margin)
        column, row = jnp.where(inside[:, None], pixels, 0.0).astype(jnp.int32).T
        plane = tangent_planes(inverse)[row, column]
        shown = jnp.where(inside, plane[:, 0] * x + plane[:, 1] * y + plane[:, 2], 0.0)
        reach = z - jnp.maximum(slack, _SAME_DEPTH * z)
        return (z > 0) & close & valid & (shown * reach <= 1.0)

    seen = jax.lax.map(seen_in, (others.depth, others.w2c, others.intrinsics, others.valid))
    words = -(-others.depth.shape[0] // 32)
    seen = jnp.pad(seen, ((0, 32 * words - seen.shape[0]), (0, 0)))
    bits = (
        seen.reshape(words, 32, -1).astype(jnp.uint32)
        << jnp.arange(32, dtype=jnp.uint32)[None, :, None]
    )
    return bits.sum(1, dtype=jnp.uint32).T


def reference_block_mask(
    reference: TokenGeometry,
    target: TokenGeometry,
    *,
    rule: CorrespondenceRule | None = None,
    strength: Float[Array, "..."] | float | None = None,
    tile: int = 128,
) -> BlockMask:
    """The correspondence pattern over the joint tokens [references ; target] (row S20).

    Target tokens without geometry, or whose surface no reference shows, see the target alone
    (row S17; `reference_or_frame_mask` gives them a whole reference instead).

    Args:
        reference, target: with a leading batch axis, each in the order of its tokens.
        rule: what counts as the same place.
        strength: None for the hard mask, else that of the soft constraint (row S15).
        tile: tokens of either side per tile.
    """
    return joint_correspondence(
        reference, target, rule=rule, strength=strength, tile_q=tile, tile_k=tile
    )


def reference_or_frame_mask(
    reference: TokenGeometry,
    target: TokenGeometry,
    *,
    references: int,
    frames: int,
    rule: CorrespondenceRule | None = None,
    tile: int = 128,
) -> BlockMask:
    """`reference_block_mask`, hard, in which no target token is left alone (row S17, the switch).

    Target tokens without geometry, or whose surface no reference shows, see all of the reference
    that shows most of their frame, and it sees them; those of frames of which none shows anything
    see the target alone.

    Args:
        reference, target: with a leading batch axis, each in the order of its tokens.
        references, frames: how many views either side has.
        rule: what counts as the same place.
        tile: tokens of either side per tile.
    """
    mask = reference_block_mask(reference, target, rule=rule, tile=tile)
    alone = ~target.valid | (target.visibility == 0).all(-1)
    best = best_reference(target, references=references, frames=frames)
    paired = best[:, :, None] == jnp.arange(references)[None, None]
    # References, then the frames' lonely tokens; all other tokens are left to the mask.
    b = alone.shape[0]
    table = jnp.zeros((b, references + frames + 1, references + frames + 1), bool)
    table = table.at[:, references:-1, :references].set(paired)
    table = table.at[:, :references, references:-1].set(jnp.swapaxes(paired, 1, 2))
    group = jnp.concatenate(
        [reference.frame, jnp.where(alone, references + target.frame, references + frames)], axis=1
    )
    return mask | frame_pattern(group, group, table, tile_q=tile, tile_k=tile)


def best_reference(target: TokenGeometry, *, references: int, frames: int) -> Int[Array, "b f"]:
    """Of every target frame the reference that shows most of its tokens; -1 where none shows any.

    The first of several that show as many.

    Args:
        target: with a leading batch axis.
        references, frames: how many views either side has.
    """
    view = jnp.arange(references)
    words = target.visibility[..., view // 32]
    shown = (words >> (view % 32).astype(jnp.uint32)[None, None]) & 1
    shown = shown.astype(jnp.float32) * target.valid[..., None]
    count = jnp.einsum("btf,btr->bfr", jax.nn.one_hot(target.frame, frames), shown)
    return jnp.where(count.max(-1) > 0, jnp.argmax(count, -1), -1).astype(jnp.int32)


def _by_token(pixels: Float[Array, "f h w c"]) -> Float[Array, "f t p c"]:
    return rearrange(pixels, "f (th y) (tw x) c -> f (th tw) (y x) c", y=TOKEN, x=TOKEN)


def _surface_axes(
    normal: Float[Array, "f t 3"], ray: Float[Array, "f t 3"]
) -> Float[Array, "f t 3 3"]:
    """Orthonormal rows: along the slant, across it, and the normal."""
    normal = normal / jnp.maximum(length(normal, keepdims=True), 1e-9)
    along = ray - (ray * normal).sum(-1, keepdims=True) * normal
    # Seen head-on there is no slant: any tangent does.
    off_axis = jnp.array([0.3, -0.2, 0.1])[None, None]
    fallback = jnp.cross(normal, jnp.roll(normal, 1, axis=-1) + off_axis)
    is_head_on = length(along, keepdims=True) < 1e-3
    along = jnp.where(is_head_on, fallback, along)
    along = along / jnp.maximum(length(along, keepdims=True), 1e-9)
    return jnp.stack([along, jnp.cross(normal, along), normal], axis=-2)
