"""What fills the partial tiles of a block mask.

A fill answers for lists of tile pairs at once, where the tiles are: given batch and mask-head
indices [w] and tile indices [w, n], it returns `Pairs` of shape [w, n, tile_q, tile_k]. Batch and
head axes of size 1 are shared by all.
"""

import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, UInt32

from pallas_kernels.geometry import (
    CorrespondenceRule,
    Pairs,
    TokenGeometry,
    geometry_pairs,
    token_fields,
)

__all__ = [
    "EMPTY",
    "FULL",
    "PARTIAL",
    "BandFill",
    "BitFill",
    "FrameFill",
    "GeometryFill",
    "TileIndex",
    "has_part",
    "pack_bits",
    "unpack_bits",
]

EMPTY, PARTIAL, FULL = 0, 1, 2


@flax.struct.dataclass
@typing.no_type_check
class TileIndex:
    """A list of tile pairs: batch [w], head [w] (of the mask), q [w, n], k [w, n], all int32."""

    batch: Int[Array, "w"]
    head: Int[Array, "w"]
    q: Int[Array, "w n"]
    k: Int[Array, "w n"]

    def take(self, table: Array) -> Array:
        """Entries [w, n, ...] of a table [b, heads, nq, nk, ...]."""
        batch, head = shared_axis(self.batch, table, 0), shared_axis(self.head, table, 1)
        return table[batch[:, None], head[:, None], self.q, self.k]


def shared_axis(index: Int[Array, "w"], array: Array, axis: int) -> Int[Array, "w"]:
    """The index, or 0 where the array's axis has size 1 and is shared by all."""
    return jnp.zeros_like(index) if array.shape[axis] == 1 else index


def take_tokens(x: Array, batch: Int[Array, "w"], tiles: Int[Array, "w n"], tile: int) -> Array:
    """Tiles of a per-token array [b, n_tiles * tile, ...] -> [w, n, tile, ...]."""
    split = x.reshape(x.shape[0], -1, tile, *x.shape[2:])
    return split[shared_axis(batch, x, 0)[:, None], tiles]


def pack_bits(mask: Bool[Array, "... k"]) -> UInt32[Array, "... words"]:
    """Pack the last axis (a multiple of 32) into 32-bit words, lowest bit first."""
    groups = mask.reshape(*mask.shape[:-1], -1, 32).astype(jnp.uint32)
    weights = jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)
    return jnp.sum(groups * weights.reshape((1,) * (groups.ndim - 1) + (32,)), -1, jnp.uint32)


def unpack_bits(words: UInt32[Array, "... words"]) -> Bool[Array, "... k"]:
    """The inverse of `pack_bits`."""
    shifts = jnp.arange(32, dtype=jnp.uint32).reshape((1,) * words.ndim + (32,))
    bits = (words[..., None] >> shifts) & jnp.uint32(1)
    return (bits == 1).reshape(*words.shape[:-1], -1)


def has_part(parts: Int[Array, "*n"], part: int) -> Int[Array, "*n"]:
    """1 where a tile's part is held, 0 where it is empty, from the flags of all; in kernels too."""
    return (parts >> part) & 1


@flax.struct.dataclass
@typing.no_type_check
class BitFill:
    """Bit-packed token masks of the partial tiles only, a tall tile's by parts of its rows.

    flat      uint32 [b, heads, slots, rows * tile_k / 32]: a slot for every part that is not empty,
              its `words` row by row. As rows of four words a TPU would keep them in rows of 128,
              thirty-two times as large.
    slot      int32 [b, heads, nq, nk]: where the first held part of a tile pair is, the others
              follow it; -1: none is, nothing is allowed.
    parts     int32 [b, heads, nq, nk]: which parts of `rows` queries are held, the first part the
              lowest bit. None where a tile is one part.
    overflow  int32 [b, heads]: parts that found no slot; their tiles lost all their pairs.
    rows      static: queries of a part.
    """

    flat: UInt32[Array, "b heads slots flat"]
    slot: Int[Array, "b heads nq nk"]
    parts: Int[Array, "b heads nq nk"] | None
    overflow: Int[Array, "b heads"]
    rows: int = flax.struct.field(pytree_node=False)

    soft: typing.ClassVar[bool] = False

    @property
    def words(self) -> UInt32[Array, "b heads slots rows words"]:
        """The bits of every slot, a row of words for every query."""
        return self._by_row(self.flat)

    def _by_row(self, flat: UInt32[Array, "*n flat"]) -> UInt32[Array, "*n rows words"]:
        return flat.reshape(*flat.shape[:-1], self.rows, flat.shape[-1] // self.rows)

    def evaluate(self, index: TileIndex, tile_q: int, tile_k: int) -> Pairs:
        """Pairs of the listed tiles."""
        slot = index.take(self.slot)
        parts = jnp.ones_like(slot) if self.parts is None else index.take(self.parts)
        parts, at, found = jnp.where(slot >= 0, parts, 0), jnp.maximum(slot, 0), []
        batch = shared_axis(index.batch, self.flat, 0)[:, None]
        head = shared_axis(index.head, self.flat, 1)[:, None]
        for part in range(tile_q // self.rows):
            held = has_part(parts, part)
            words = self._by_row(self.flat[batch, head, at])
            found.append(unpack_bits(words) & (held == 1)[..., None, None])
            at = at + held
        return Pairs(jnp.concatenate(found, axis=-2))


@flax.struct.dataclass
@typing.no_type_check
class FrameFill:
    """A permission table between frames: query frame i may see key frame j.

    query_frame int32 [b, tq], key_frame int32 [b, tk]: padded to whole tiles; negative = no token.
    table       bool [b, fq, fk].
    """

    query_frame: Int[Array, "b tq"]
    key_frame: Int[Array, "b tk"]
    table: Bool[Array, "b fq fk"]

    soft: typing.ClassVar[bool] = False

    def evaluate(self, index: TileIndex, tile_q: int, tile_k: int) -> Pairs:
        """Pairs of the listed tiles."""
        query = take_tokens(self.query_frame, index.batch, index.q, tile_q)[..., :, None]
        key = take_tokens(self.key_frame, index.batch, index.k, tile_k)[..., None, :]
        batch = shared_axis(index.batch, self.table, 0)[:, None, None, None]
        allowed = self.table[batch, jnp.maximum(query, 0), jnp.maximum(key, 0)]
        return Pairs(allowed & (query >= 0) & (key >= 0))


@flax.struct.dataclass
@typing.no_type_check
class BandFill:
    """A band: key j is allowed for query i when -before <= j - i - offset <= after."""

    before: int = flax.struct.field(pytree_node=False)
    after: int = flax.struct.field(pytree_node=False)
    offset: int = flax.struct.field(pytree_node=False, default=0)

    soft: typing.ClassVar[bool] = False

    def evaluate(self, index: TileIndex, tile_q: int, tile_k: int) -> Pairs:
        """Pairs of the listed tiles."""
        rows = jnp.arange(tile_q, dtype=jnp.int32)[None, None, :, None]
        columns = jnp.arange(tile_k, dtype=jnp.int32)[None, None, None, :]
        rows = index.q[..., None, None] * tile_q + rows
        step = index.k[..., None, None] * tile_k + columns - rows - self.offset
        return Pairs((step >= -self.before) & (step <= self.after))


@flax.struct.dataclass
@typing.no_type_check
class GeometryFill:
    """The correspondence predicate, evaluated where the tiles are (rows S14, S15).

    query, key    TokenGeometry padded to whole tiles.
    query_group, key_group int32 [b, tq], [b, tk]: 0 = target, j + 1 = reference view j, negative =
                  no token. Tokens of one group see each other densely, two reference views never,
                  target and reference where they correspond.
    rule          static CorrespondenceRule.
    soft          static: pairs carry a soft constraint.
    token_level   static: False drops the predicate, so that an active tile is wholly visible.
    two_way       static: some queries are references.
    """

    query: TokenGeometry
    key: TokenGeometry
    query_group: Int[Array, "b tq"]
    key_group: Int[Array, "b tk"]
    rule: CorrespondenceRule = flax.struct.field(pytree_node=False)
    soft: bool = flax.struct.field(pytree_node=False, default=False)
    token_level: bool = flax.struct.field(pytree_node=False, default=True)
    two_way: bool = flax.struct.field(pytree_node=False, default=False)

    def evaluate(self, index: TileIndex, tile_q: int, tile_k: int) -> Pairs:
        """Pairs of the listed tiles."""

        def queries(x):
            return take_tokens(x, index.batch, index.q, tile_q)

        def keys(x):
            return take_tokens(x, index.batch, index.k, tile_k)

        query, key = (
            token_fields(
                TokenGeometry(**{name: take(getattr(side, name)) for name in _FIELDS}),
                take(group),
                other.visibility.shape[-1],
            )
            for side, group, other, take in (
                (self.query, self.query_group, self.key, queries),
                (self.key, self.key_group, self.query, keys),
            )
        )
        return geometry_pairs(
            jax.tree.map(lambda x: x[..., :, None], query),
            jax.tree.map(lambda x: x[..., None, :], key),
            self.rule,
            soft=self.soft,
            token_level=self.token_level,
            two_way=self.two_way,
        )


_FIELDS = tuple(TokenGeometry.__dataclass_fields__)
