"""Block masks from the geometry of tokens (rows S14, S15, S20)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int

from pallas_kernels.block_mask import BlockMask, build_mask
from pallas_kernels.fills import EMPTY, FULL, PARTIAL, GeometryFill
from pallas_kernels.geometry import CorrespondenceRule, TokenGeometry
from pallas_kernels.patterns import pad_tokens
from pallas_kernels.tile_bounds import TileBounds, overlapping_tiles, split_tiles, tile_bounds
from pallas_kernels.tile_sizes import best_tiles

__all__ = ["concatenate_geometry", "from_geometry", "joint_correspondence"]

GRANULARITIES = ("token", "tile")


def _pad_geometry(geometry: TokenGeometry, tile: int) -> TokenGeometry:
    values = dict.fromkeys(TokenGeometry.__dataclass_fields__, 0)
    values |= {"segment": -1, "frame": -1, "valid": False, "metric": 1.0}
    return TokenGeometry(
        **{name: pad_tokens(getattr(geometry, name), tile, value) for name, value in values.items()}
    )


@jax.jit
def concatenate_geometry(first: TokenGeometry, second: TokenGeometry) -> TokenGeometry:
    """The tokens of both, one after the other; visibility bitsets are widened to the longer."""
    words = max(first.visibility.shape[-1], second.visibility.shape[-1])

    def join(name):
        parts = [getattr(geometry, name) for geometry in (first, second)]
        if name == "visibility":
            parts = [jnp.pad(p, ((0, 0), (0, 0), (0, words - p.shape[-1]))) for p in parts]
        return jnp.concatenate(parts, axis=1)

    return TokenGeometry(**{name: join(name) for name in TokenGeometry.__dataclass_fields__})


def from_geometry(
    query: TokenGeometry,
    key: TokenGeometry,
    *,
    rule: CorrespondenceRule | None = None,
    strength: Float[Array, "..."] | float | None = None,
    granularity: str = "token",
    tile_q: int | None = None,
    tile_k: int | None = None,
) -> BlockMask:
    """Queries (the target) see the keys (references) that correspond to them, and nothing else.

    strength None is the hard mask; a scalar, [heads] or [b, heads] array is the soft constraint of
    row S15, from 0 (none within `rule.reach`) to infinity (hard), through which attention is
    differentiable. Gradients stop at the geometry itself. granularity "tile" drops the predicate:
    an active tile is wholly visible (cheaper, looser); it takes no strength. Tile sizes default to
    those tuned for the device, `best_tiles()`. Raises ValueError for other granularities.
    """
    tiles = best_tiles()
    return _cross_mask(
        query,
        key,
        strength,
        rule=rule or CorrespondenceRule(),
        granularity=granularity,
        tile_q=tile_q or tiles.tile_q,
        tile_k=tile_k or tiles.tile_k,
    )


def joint_correspondence(
    reference: TokenGeometry,
    target: TokenGeometry,
    *,
    rule: CorrespondenceRule | None = None,
    strength: Float[Array, "..."] | float | None = None,
    granularity: str = "token",
    tile_q: int | None = None,
    tile_k: int | None = None,
) -> BlockMask:
    """The correspondence pattern over the joint sequence [references ; target] (row S20).

    The target's queries see the target densely and the references through the mask; reference
    queries see their own frame (`reference.frame`) and, by the transposed mask, the target. The
    tokens of both may be permuted within their part; the arguments mean what they do in
    `from_geometry`.
    """
    tiles = best_tiles()
    return _joint_mask(
        reference,
        target,
        strength,
        rule=rule or CorrespondenceRule(),
        granularity=granularity,
        tile_q=tile_q or tiles.tile_q,
        tile_k=tile_k or tiles.tile_k,
    )


_STATIC = ("rule", "granularity", "tile_q", "tile_k")


# Compiled as wholes even when called eagerly: dozens of small operations start much slower.
@functools.partial(jax.jit, static_argnames=_STATIC)
def _cross_mask(
    query: TokenGeometry,
    key: TokenGeometry,
    strength: Float[Array, "..."] | float | None,
    *,
    rule: CorrespondenceRule,
    granularity: str,
    tile_q: int,
    tile_k: int,
) -> BlockMask:
    groups = jnp.where(query.exists, 0, -1), jnp.where(key.exists, 1, -1)
    return _geometry_mask(
        query, key, *groups, strength, two_way=False,
        rule=rule, granularity=granularity, tile_q=tile_q, tile_k=tile_k,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames=_STATIC)
def _joint_mask(
    reference: TokenGeometry,
    target: TokenGeometry,
    strength: Float[Array, "..."] | float | None,
    *,
    rule: CorrespondenceRule,
    granularity: str,
    tile_q: int,
    tile_k: int,
) -> BlockMask:
    both = concatenate_geometry(reference, target)
    own = jnp.where(reference.exists, reference.frame + 1, -1)
    group = jnp.concatenate([own, jnp.where(target.exists, 0, -1)], axis=1)
    return _geometry_mask(
        both, both, group, group, strength, two_way=True,
        rule=rule, granularity=granularity, tile_q=tile_q, tile_k=tile_k,
    )  # fmt: skip


def _geometry_mask(
    query: TokenGeometry,
    key: TokenGeometry,
    query_group: Int[Array, "b tq"],
    key_group: Int[Array, "b tk"],
    strength: Float[Array, "..."] | float | None,
    *,
    two_way: bool,
    rule: CorrespondenceRule,
    granularity: str,
    tile_q: int,
    tile_k: int,
) -> BlockMask:
    if granularity not in GRANULARITIES:
        raise ValueError(f"granularity must be one of {GRANULARITIES}, got {granularity!r}")
    if granularity == "tile" and strength is not None:
        raise ValueError("a soft constraint needs token granularity")
    soft = strength is not None
    query, key = jax.lax.stop_gradient((query, key))
    q_len, k_len = query.length, key.length
    fill = GeometryFill(
        query=_pad_geometry(query, tile_q),
        key=_pad_geometry(key, tile_k),
        query_group=pad_tokens(query_group.astype(jnp.int32), tile_q, -1),
        key_group=pad_tokens(key_group.astype(jnp.int32), tile_k, -1),
        rule=rule,
        soft=soft,
        token_level=granularity == "token",
        two_way=two_way,
    )
    cross = _cross_tiles(fill, tile_q, tile_k)
    relation = _group_relation(fill, q_len, k_len, tile_q, tile_k)
    state = jnp.where(cross | relation.some_dense, PARTIAL, EMPTY)
    state = jnp.where(relation.all_dense, FULL, state)
    if granularity == "tile":
        state = jnp.where(cross & relation.all_cross, FULL, state)
    return build_mask(
        state.astype(jnp.int8)[:, None],
        q_len=q_len,
        k_len=k_len,
        tile_q=tile_q,
        tile_k=tile_k,
        fill=fill,
        strength=strength,
    )


def _cross_tiles(fill: GeometryFill, tile_q: int, tile_k: int) -> Bool[Array, "b nq nk"]:
    """Tile pairs that may hold a target and a reference token that correspond."""
    reach = fill.rule.reach if fill.soft else 1.0

    def bounds(geometry: TokenGeometry, keep: Array, tile: int, words: int) -> TileBounds:
        keep = keep & geometry.valid & geometry.exists
        return tile_bounds(geometry, keep, tile, reach=reach, other_words=words)

    query_words, key_words = fill.query.visibility.shape[-1], fill.key.visibility.shape[-1]
    query_target = bounds(fill.query, fill.query_group == 0, tile_q, key_words)
    key_reference = bounds(fill.key, fill.key_group > 0, tile_k, query_words)
    cross = overlapping_tiles(query_target, key_reference, fill.rule, soft=fill.soft)
    if not fill.two_way:
        return cross
    query_reference = bounds(fill.query, fill.query_group > 0, tile_q, key_words)
    key_target = bounds(fill.key, fill.key_group == 0, tile_k, query_words)
    back = overlapping_tiles(key_target, query_reference, fill.rule, soft=fill.soft)
    return cross | jnp.swapaxes(back, 1, 2)


class _GroupRelation(NamedTuple):
    """Of every tile pair, bool [b, nq, nk] each."""

    some_dense: Array  # may hold two tokens of one group
    all_dense: Array  # holds nothing else
    all_cross: Array  # every pair is a target and a reference token


def _group_relation(
    fill: GeometryFill, q_len: int, k_len: int, tile_q: int, tile_k: int
) -> _GroupRelation:
    limit = jnp.iinfo(jnp.int32)

    def ranges(x: Array, exists: Array, tile: int) -> tuple[Array, Array]:
        low = jnp.min(split_tiles(jnp.where(exists, x, limit.max), tile), axis=-1)
        high = jnp.max(split_tiles(jnp.where(exists, x, limit.min), tile), axis=-1)
        return low, high

    def complete(exists: Array, length: int, tile: int) -> Array:
        inside = jnp.arange(exists.shape[1])[None] < length
        return jnp.all(split_tiles(exists | ~inside, tile), axis=-1)

    def compare(query: Array, key: Array) -> tuple[Array, Array, Array, Array]:
        q_low, q_high = (x[:, :, None] for x in ranges(query, query_exists, tile_q))
        k_low, k_high = (x[:, None] for x in ranges(key, key_exists, tile_k))
        overlap = (q_low <= k_high) & (q_high >= k_low)
        uniform = (q_low == q_high) & (k_low == k_high)
        return overlap, uniform & (q_low == k_low), uniform, (q_low == 0) != (k_low == 0)

    query_exists, key_exists = fill.query_group >= 0, fill.key_group >= 0
    near, one_segment, _, _ = compare(fill.query.segment, fill.key.segment)
    overlap, same, uniform, opposite = compare(fill.query_group, fill.key_group)
    whole = one_segment
    whole &= complete(query_exists, q_len, tile_q)[:, :, None]
    whole &= complete(key_exists, k_len, tile_k)[:, None]
    return _GroupRelation(near & overlap, whole & same, whole & uniform & opposite)
