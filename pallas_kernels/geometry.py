"""What a correspondence mask is made of: tokens with a place in the world, and the predicate.

All positions and normals are in one world frame, in world units (metres). The predicate (row S14)
is evaluated on tiles of tokens; nothing here ever makes an array over all queries and all keys.
"""

import dataclasses
import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Float, Int, UInt32

__all__ = [
    "CorrespondenceRule",
    "PairFields",
    "Pairs",
    "TokenGeometry",
    "correspondence",
    "correspondence_pairs",
    "ellipse_metric",
    "geometry_pairs",
    "make_token_geometry",
    "sphere_metric",
    "token_fields",
]

ALL_VIEWS = 0xFFFFFFFF
FIELDS = ("target", "either")


@flax.struct.dataclass
@typing.no_type_check
class TokenGeometry:
    """Where the tokens of one sequence are in the world.

    position    float32 [b, t, 3]: the surface point behind the token, world units.
    metric      float32 [b, t, 6]: M = (xx, yy, zz, xy, xz, yz), symmetric positive definite; a
                point at offset d lies in the token's field when d' M d <= 1. A sphere of radius r
                is (1, 1, 1, 0, 0, 0) / r^2; a surface ellipse is the full case (row S19).
    normal      float32 [b, t, 3]: unit normal; the zero vector means unknown, and agrees with all.
    log_weight  float32 [b, t]: log confidence of the token as a key, 0 = certain; sharper and more
                frontal observations are higher (row S15).
    segment     int32 [b, t]: only tokens of one segment can see each other. Negative: the slot is
                empty (padding), sees nothing and is seen by nothing.
    frame       int32 [b, t]: the view that the token belongs to, counted within its own sequence.
    visibility  uint32 [b, t, words]: bit i of word j is set when the point is not occluded in view
                32 j + i of the *other* sequence (a query: in the references; a key: in the target).
    valid       bool [b, t]: the geometry is known. A token without geometry corresponds to none.
    """

    position: Float[Array, "b t 3"]
    metric: Float[Array, "b t 6"]
    normal: Float[Array, "b t 3"]
    log_weight: Float[Array, "b t"]
    segment: Int[Array, "b t"]
    frame: Int[Array, "b t"]
    visibility: UInt32[Array, "b t words"]
    valid: Bool[Array, "b t"]

    @property
    def length(self) -> int:
        """Number of tokens, t."""
        return self.position.shape[-2]

    @property
    def exists(self) -> Bool[Array, "b t"]:
        """Whether the slot holds a token at all."""
        return self.segment >= 0


def sphere_metric(radius: Float[Array, "..."]) -> Float[Array, "... 6"]:
    """Metric of a ball: radius [...] in world units -> [..., 6]."""
    inverse = 1.0 / jnp.square(radius.astype(jnp.float32))
    zero = jnp.zeros_like(inverse)
    return jnp.stack([inverse, inverse, inverse, zero, zero, zero], axis=-1)


@jax.jit
def ellipse_metric(
    axes: Float[Array, "... 3 3"], radii: Float[Array, "... 3"]
) -> Float[Array, "... 6"]:
    """Metric of an ellipsoid: rows of `axes` are its orthonormal axes, `radii` its half lengths."""
    matrix = jnp.einsum(
        "...ki,...k,...kj->...ij",
        axes,
        1.0 / jnp.square(radii),
        axes,
        precision=jax.lax.Precision.HIGHEST,
    )
    entries = ((0, 0), (1, 1), (2, 2), (0, 1), (0, 2), (1, 2))
    return jnp.stack([matrix[..., i, j] for i, j in entries], axis=-1).astype(jnp.float32)


def make_token_geometry(
    position: Float[Array, "b t 3"],
    *,
    radius: Float[Array, "b t"] | float | None = None,
    metric: Float[Array, "b t 6"] | None = None,
    normal: Float[Array, "b t 3"] | None = None,
    log_weight: Float[Array, "b t"] | None = None,
    segment: Int[Array, "b t"] | None = None,
    frame: Int[Array, "b t"] | None = None,
    visibility: UInt32[Array, "b t words"] | None = None,
    valid: Bool[Array, "b t"] | None = None,
    views: int = 32,
) -> TokenGeometry:
    """Token geometry with everything unknown filled in.

    Give either `radius` (world units) or `metric`. Defaults: normals unknown, certain, one
    segment, frame 0, seen in all `views` views of the other sequence, valid. Where `valid` is
    False the position may be anything, NaN included: it is replaced by 0.
    Raises ValueError when neither or both of radius and metric are given.
    """
    if (radius is None) == (metric is None):
        raise ValueError("token geometry needs either `radius` or `metric`, and not both")
    size = jnp.asarray(radius, jnp.float32) if metric is None else metric
    return _token_geometry(
        position, size, normal, log_weight, segment, frame, visibility, valid, metric is None, views
    )


# Compiled as a whole even when called eagerly: dozens of small operations start much slower.
@functools.partial(jax.jit, static_argnums=(8, 9))
def _token_geometry(
    position: Float[Array, "b t 3"],
    size: Float[Array, "..."],
    normal: Float[Array, "b t 3"] | None,
    log_weight: Float[Array, "b t"] | None,
    segment: Int[Array, "b t"] | None,
    frame: Int[Array, "b t"] | None,
    visibility: UInt32[Array, "b t words"] | None,
    valid: Bool[Array, "b t"] | None,
    spheres: bool,
    views: int,
) -> TokenGeometry:
    """As `make_token_geometry`; size is a metric, or of spheres the radius."""
    b, t = position.shape[:2]
    metric = sphere_metric(jnp.broadcast_to(size, (b, t))) if spheres else size
    if valid is None:
        valid = jnp.ones((b, t), bool)
    words = -(-views // 32)
    known = valid[..., None]
    unit = jnp.array([1.0, 1.0, 1.0, 0.0, 0.0, 0.0], jnp.float32)[None, None]
    return TokenGeometry(
        position=jnp.where(known, position.astype(jnp.float32), 0.0),
        metric=jnp.where(known, metric.astype(jnp.float32), unit),
        normal=jnp.zeros((b, t, 3), jnp.float32)
        if normal is None
        else jnp.where(known, normal.astype(jnp.float32), 0.0),
        log_weight=jnp.zeros((b, t), jnp.float32)
        if log_weight is None
        else jnp.where(valid, log_weight.astype(jnp.float32), 0.0),
        segment=jnp.zeros((b, t), jnp.int32) if segment is None else segment.astype(jnp.int32),
        frame=jnp.zeros((b, t), jnp.int32) if frame is None else frame.astype(jnp.int32),
        visibility=jnp.full((b, t, words), ALL_VIEWS, jnp.uint32)
        if visibility is None
        else visibility,
        valid=valid,
    )


@dataclasses.dataclass(frozen=True)
class CorrespondenceRule:
    """What counts as the same place (rows S14, S15). Static: a change compiles anew.

    normal_cos  normals agree when their cosine is at least this; -1 switches the test off.
    reach       soft constraint only: pairs beyond `reach` times the query's radius are dropped, so
                that the mask stays sparse; infinity keeps every pair.
    falloff     soft constraint only: log-weight lost per squared normalised distance.
    field       whose field decides how near is near: "target", the target token's, in both
                directions of a joint mask; or "either", the wider of the two along the line between
                them, so that a key of uncertain place is found from further away (row S19).
    """

    normal_cos: float = 0.5
    reach: float = 2.0
    falloff: float = 0.5
    field: str = "target"

    def __post_init__(self):
        if self.field not in FIELDS:
            raise ValueError(f"field must be one of {FIELDS}, got {self.field!r}")
        if not -1.0 <= self.normal_cos <= 1.0:
            raise ValueError(f"normal_cos must lie in [-1, 1], got {self.normal_cos}")
        if not self.reach >= 1.0:
            raise ValueError(f"reach must be at least 1, got {self.reach}")
        if not self.falloff >= 0.0:
            raise ValueError(f"falloff must not be negative, got {self.falloff}")


@flax.struct.dataclass
@typing.no_type_check
class Pairs:
    """The answer for tiles of token pairs, [..., tile_q, tile_k] each.

    allowed     bool: the pair is in the mask.
    attraction  float32 or None: soft constraint, log-weight at full strength, <= 0.
    penalty     float32 or None: soft constraint, disagreement, >= 0; 0 where a hard mask allows.

    At strength s an allowed pair's logit is raised by s / (1 + s) attraction - s penalty: nothing
    at s = 0, and the hard mask (with the weights of `attraction`) as s goes to infinity. Which
    pairs are allowed is the same at every strength: all of them only with a `reach` of infinity.
    """

    allowed: Bool[Array, "*n tq tk"]
    attraction: Float[Array, "*n tq tk"] | None = None
    penalty: Float[Array, "*n tq tk"] | None = None

    def constraint(self) -> tuple[Array, Array]:
        """Attraction and penalty of a soft mask; ValueError for a hard one."""
        if self.attraction is None or self.penalty is None:
            raise ValueError("a hard mask has no soft constraint")
        return self.attraction, self.penalty

    def restricted(self, allowed: Bool[Array, "*n tq tk"]) -> "Pairs":
        """The same constraint on other allowed pairs."""
        return Pairs(allowed, self.attraction, self.penalty)

    def free_where(self, free: Bool[Array, "*n"]) -> "Pairs":
        """Without constraint (if there is any) where `free`, which broadcasts."""
        if self.penalty is None:
            return self
        values = (jnp.where(free, 0.0, x) for x in self.constraint())
        return Pairs(self.allowed, *values)

    def bias(self, strength: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Additive logit at a strength; -inf where an infinite strength excludes."""
        attraction, penalty = self.constraint()
        # Not strength * 0: an infinite strength must leave agreeing pairs alone.
        cost = jnp.where(penalty > 0, strength * jnp.where(penalty > 0, penalty, 1.0), 0.0)
        return (1.0 - 1.0 / (1.0 + strength)) * attraction - cost

    def bias_slope(self, strength: Float[Array, "*n"]) -> Float[Array, "*n"]:
        """Derivative of the bias by the strength."""
        attraction, penalty = self.constraint()
        return attraction / jnp.square(1.0 + strength) - penalty


class PairFields(typing.NamedTuple):
    """What the predicate needs of a token; all arrays of one shape, float32 unless said.

    frame_bits   uint32 words: the token's view, as a bit of the other side's visibility.
    """

    position: tuple[Array, ...]
    metric: tuple[Array, ...]
    normal: tuple[Array, ...]
    normal_unknown: Array  # bool
    log_weight: Array
    segment: Array  # int32
    group: Array  # int32, see GeometryFill
    known: Array  # bool: the token exists and has geometry
    visibility: tuple[Array, ...]  # uint32 words
    frame_bits: tuple[Array, ...]


def _split(x: Array) -> tuple[Array, ...]:
    return tuple(x[..., i] for i in range(x.shape[-1]))


def token_fields(geometry: TokenGeometry, group: Array, other_words: int) -> PairFields:
    """Fields of tokens, all of the shape of `group`.

    other_words: words of the other side's visibility bitsets.
    """
    bit = jnp.uint32(1) << (geometry.frame & 31).astype(jnp.uint32)
    word = geometry.frame >> 5
    return PairFields(
        position=_split(geometry.position),
        metric=_split(geometry.metric),
        normal=_split(geometry.normal),
        normal_unknown=jnp.all(geometry.normal == 0.0, axis=-1),
        log_weight=geometry.log_weight,
        segment=geometry.segment,
        group=group,
        known=geometry.valid & geometry.exists,
        visibility=_split(geometry.visibility),
        frame_bits=tuple(jnp.where(word == i, bit, jnp.uint32(0)) for i in range(other_words)),
    )


def _distance(offset: tuple[Array, ...], metric: tuple[Array, ...]) -> Array:
    x, y, z = offset
    xx, yy, zz, xy, xz, yz = metric
    return x * (xx * x + 2.0 * (xy * y + xz * z)) + y * (yy * y + 2.0 * yz * z) + zz * z * z


def _seen(visibility: tuple[Array, ...], frame_bits: tuple[Array, ...]) -> Array:
    """Whether the view is one of those that see the token."""
    common: typing.Any = None
    for mine, theirs in zip(visibility, frame_bits, strict=True):
        both = mine & theirs
        common = both if common is None else common | both
    return common != 0


def correspondence_pairs(
    query: PairFields, key: PairFields, rule: CorrespondenceRule, *, soft: bool, two_way: bool
) -> Pairs:
    """`correspondence` of fields that broadcast; `two_way`: some queries are references."""
    offset = tuple(k - q for q, k in zip(query.position, key.position, strict=True))
    distance = _distance(offset, query.metric)
    if rule.field == "either":
        distance = jnp.minimum(distance, _distance(offset, key.metric))
    elif two_way:
        distance = jnp.where(query.group == 0, distance, _distance(offset, key.metric))
    known = query.known & key.known & (query.segment == key.segment)
    cosine = sum(q * k for q, k in zip(query.normal, key.normal, strict=True))
    unknown = query.normal_unknown | key.normal_unknown
    key_seen = _seen(key.visibility, query.frame_bits)
    query_seen = _seen(query.visibility, key.frame_bits)
    if not soft:
        agree = unknown | (cosine >= rule.normal_cos)
        return Pairs(known & (distance <= 1.0) & agree & key_seen & query_seen)
    penalty = jnp.maximum(distance - 1.0, 0.0)
    penalty += jnp.where(unknown, 0.0, jnp.maximum(rule.normal_cos - cosine, 0.0))
    penalty += jnp.where(key_seen, 0.0, 1.0) + jnp.where(query_seen, 0.0, 1.0)
    attraction = key.log_weight - rule.falloff * distance
    return Pairs(known & (distance <= rule.reach**2), attraction, penalty)


def geometry_pairs(
    query: PairFields,
    key: PairFields,
    rule: CorrespondenceRule,
    *,
    soft: bool,
    token_level: bool,
    two_way: bool,
) -> Pairs:
    """What a GeometryFill answers: dense within a group, by correspondence across."""
    exists = (query.group >= 0) & (key.group >= 0) & (query.segment == key.segment)
    dense = exists & (query.group == key.group)
    cross = exists & ((query.group == 0) != (key.group == 0))
    if not token_level:
        return Pairs(dense | cross)
    pairs = correspondence_pairs(query, key, rule, soft=soft, two_way=two_way)
    return pairs.restricted(dense | (cross & pairs.allowed)).free_where(dense)


def correspondence(
    query: TokenGeometry,
    key: TokenGeometry,
    rule: CorrespondenceRule,
    *,
    soft: bool,
    query_is_target: Bool[Array, "*n tq"] | None = None,
) -> Pairs:
    """The correspondence predicate of rows S14 and S15 on tiles of tokens.

    `query` and `key` hold fields with leading axes [*n, tq] and [*n, tk]. A pair is allowed when
    both have geometry and share a segment, the key lies in the query's field (d' M d <= 1; or the
    query in the key's, where `rule.field` says so), the normals agree, and neither is occluded in
    the other's view. With `soft` the pair is kept up to
    `rule.reach` radii, and what disagrees is a penalty instead (row S15): excess squared
    distance, missing cosine, and 1 for each occlusion.

    `query_is_target` marks the queries whose own field decides; for the others the key's field
    does, which makes the mask of reference queries the transpose of the target's.
    """
    groups = (
        jnp.zeros_like(query.frame)
        if query_is_target is None
        else jnp.where(query_is_target, 0, 1),
        jnp.zeros_like(key.frame),
    )
    fields = token_fields(query, groups[0], key.visibility.shape[-1])
    others = token_fields(key, groups[1], query.visibility.shape[-1])
    return correspondence_pairs(
        jax.tree.map(lambda x: x[..., :, None], fields),
        jax.tree.map(lambda x: x[..., None, :], others),
        rule,
        soft=soft,
        two_way=query_is_target is not None,
    )
