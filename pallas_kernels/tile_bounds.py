"""Bounds of tiles of tokens, from which the active tiles are found without looking at pairs.

The answer is conservative: a tile pair that holds one allowed pair is always active. Box against
box (grown by the extents of the fields that decide), normal cone against normal cone,
segments, and visibility bitsets each rule a pair out.
"""

import typing

import flax.struct
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int, UInt32

from pallas_kernels.geometry import CorrespondenceRule, TokenGeometry

__all__ = ["TileBounds", "any_in_tile", "overlapping_tiles", "split_tiles", "tile_bounds"]

_EPS = 1.2e-7
_CONE_SLACK = 5e-3  # radians; arccos loses half of float32's digits near 1


@flax.struct.dataclass
@typing.no_type_check
class TileBounds:
    """Bounds of some of the tokens of every tile, [b, n, ...]; an empty tile overlaps nothing.

    low, high            float32 [b, n, 3]: box of the positions.
    field_low, field_high float32 [b, n, 3]: box of the tokens' fields (positions and radii).
    cone_axis            float32 [b, n, 3]; cone_angle float32 [b, n]: cone of the normals, radians.
    segment_low, segment_high int32 [b, n]: range of the segments.
    frames               uint32 [b, n, wf]: views that the tokens belong to, as a bitset.
    visibility           uint32 [b, n, wv]: views of the other side that see any of the tokens.
    """

    low: Float[Array, "b n 3"]
    high: Float[Array, "b n 3"]
    field_low: Float[Array, "b n 3"]
    field_high: Float[Array, "b n 3"]
    cone_axis: Float[Array, "b n 3"]
    cone_angle: Float[Array, "b n"]
    segment_low: Int[Array, "b n"]
    segment_high: Int[Array, "b n"]
    frames: UInt32[Array, "b n wf"]
    visibility: UInt32[Array, "b n wv"]


def split_tiles(x: Array, tile: int) -> Array:
    """[b, n * tile, ...] -> [b, n, tile, ...]."""
    return x.reshape(x.shape[0], -1, tile, *x.shape[2:])


def any_in_tile(flag: Bool[Array, "b t"], tile: int) -> Bool[Array, "b n"]:
    """Whether any token of each tile has the flag."""
    return jnp.any(split_tiles(flag, tile), axis=-1)


def _field_extent(metric: Float[Array, "b t 6"]) -> Float[Array, "b t 3"]:
    """Half lengths along the axes of the ellipsoid d' M d <= 1, never too small.

    sqrt((M^-1)_ii) by cofactors, with the rounding of an ill-conditioned metric added; a metric
    that is not clearly positive definite has no bound.
    """
    xx, yy, zz, xy, xz, yz = (metric[..., i] for i in range(6))
    cofactors = jnp.stack([yy * zz - yz * yz, xx * zz - xz * xz, xx * yy - xy * xy], axis=-1)
    size = jnp.stack([yy * zz + yz * yz, xx * zz + xz * xz, xx * yy + xy * xy], axis=-1)
    determinant = xx * cofactors[..., 0] - xy * (xy * zz - yz * xz) + xz * (xy * yz - yy * xz)
    terms = jnp.abs(xx) * size[..., 0]
    terms += jnp.abs(xy) * (jnp.abs(xy * zz) + jnp.abs(yz * xz))
    terms += jnp.abs(xz) * (jnp.abs(xy * yz) + jnp.abs(yy * xz))
    certain = determinant - 16 * _EPS * terms
    definite = (certain > 0) & (xx > 0) & (cofactors[..., 2] > 0)
    inverse = (cofactors + 8 * _EPS * size) / jnp.where(definite, certain, 1.0)[..., None]
    # The predicate itself rounds: d' M d may come out below 1 a little outside the ellipsoid.
    condition = (xx + yy + zz) * jnp.sum(inverse, axis=-1)
    inverse = inverse * (1.0 + 1e-4 + 32 * _EPS * condition)[..., None]
    return jnp.where(definite[..., None], jnp.sqrt(inverse), jnp.inf)


def _frame_bits(frame: Int[Array, "b n t"], keep: Bool[Array, "b n t"], words: int) -> Array:
    """Bitset of the views of each tile; [b, n, words]."""
    bit = jnp.uint32(1) << (frame & 31).astype(jnp.uint32)
    result = [jnp.where(keep & ((frame >> 5) == word), bit, jnp.uint32(0)) for word in range(words)]
    return _or_tokens(jnp.stack(result, axis=-1))


def _or_tokens(bits: UInt32[Array, "b n t words"]) -> UInt32[Array, "b n words"]:
    return lax.reduce(bits, jnp.uint32(0), lax.bitwise_or, (2,))


def tile_bounds(
    geometry: TokenGeometry,
    keep: Bool[Array, "b t"],
    tile: int,
    *,
    reach: float,
    other_words: int,
) -> TileBounds:
    """Bounds of the kept tokens of each tile of `tile` tokens.

    geometry is padded to whole tiles; reach multiplies the fields' radii; other_words is the
    number of words of the other side's visibility bitsets.
    """
    keep = split_tiles(keep, tile)
    inside = keep[..., None]
    position = split_tiles(geometry.position, tile)
    extent = split_tiles(_field_extent(geometry.metric) * reach, tile)
    extent = extent + 4 * _EPS * jnp.abs(position)

    def lowest(x):
        return jnp.min(jnp.where(inside, x, jnp.inf), axis=2)

    def highest(x):
        return jnp.max(jnp.where(inside, x, -jnp.inf), axis=2)

    normal = split_tiles(geometry.normal, tile)
    total = jnp.sum(jnp.where(inside, normal, 0.0), axis=2)
    length = jnp.sqrt(jnp.sum(jnp.square(total), axis=-1))
    axis = total / jnp.maximum(length, 1e-6)[..., None]
    cosine = jnp.sum(normal * axis[:, :, None, :], axis=-1)
    angle = jnp.arccos(jnp.clip(jnp.min(jnp.where(keep, cosine, 1.0), axis=-1), -1.0, 1.0))
    unknown = jnp.any(keep & jnp.all(normal == 0.0, axis=-1), axis=-1)
    angle = jnp.where(unknown | (length < 1e-6), jnp.pi, angle)

    segment = split_tiles(geometry.segment, tile)
    limit = jnp.iinfo(jnp.int32)
    visibility = split_tiles(geometry.visibility, tile)
    return TileBounds(
        low=lowest(position),
        high=highest(position),
        field_low=lowest(position - extent),
        field_high=highest(position + extent),
        cone_axis=axis,
        cone_angle=angle,
        segment_low=jnp.min(jnp.where(keep, segment, limit.max), axis=-1),
        segment_high=jnp.max(jnp.where(keep, segment, limit.min), axis=-1),
        frames=_frame_bits(split_tiles(geometry.frame, tile), keep, other_words),
        visibility=_or_tokens(jnp.where(inside, visibility, jnp.uint32(0))),
    )


def overlapping_tiles(
    query: TileBounds, key: TileBounds, rule: CorrespondenceRule, *, soft: bool
) -> Bool[Array, "b nq nk"]:
    """Tile pairs that may hold an allowed pair; `query` is the side whose field decides."""

    # XLA's CPU compiler, fusing the bounds into their comparison, has made cones miss each other
    # that touch.
    query, key = lax.optimization_barrier((query, key))

    def rows(x):
        return x[:, :, None]

    def columns(x):
        return x[:, None]

    def meet(low, high, other_low, other_high):
        return jnp.all(
            (rows(low) <= columns(other_high)) & (rows(high) >= columns(other_low)), axis=-1
        )

    active = meet(query.field_low, query.field_high, key.low, key.high)
    if rule.field == "either":
        active |= meet(query.low, query.high, key.field_low, key.field_high)
    active &= rows(query.segment_low) <= columns(key.segment_high)
    active &= rows(query.segment_high) >= columns(key.segment_low)
    if soft:
        return active
    cosine = jnp.sum(rows(query.cone_axis) * columns(key.cone_axis), axis=-1)
    between = jnp.arccos(jnp.clip(cosine, -1.0, 1.0))
    spread = rows(query.cone_angle) + columns(key.cone_angle)
    active &= between <= spread + jnp.arccos(jnp.float32(rule.normal_cos)) + _CONE_SLACK
    active &= jnp.any(rows(query.frames) & columns(key.visibility) != 0, axis=-1)
    active &= jnp.any(rows(query.visibility) & columns(key.frames) != 0, axis=-1)
    return active
