"""A block-sparse attention mask that is data: per query tile, the list of active key tiles."""

import functools
import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from pallas_kernels.composite_fills import CombinedFill, is_soft
from pallas_kernels.fills import EMPTY, FULL, PARTIAL, TileIndex
from pallas_kernels.geometry import Pairs

__all__ = ["BlockMask", "TileLists", "build_mask", "tile_count", "tile_lists", "with_state"]


@flax.struct.dataclass
@typing.no_type_check
class TileLists:
    """Per row of tiles, the active tiles of the other side, at worst-case capacity.

    index    int32 [b, heads, rows, capacity]: partial tiles first, then full ones, ascending in
             both parts; 0 past the end.
    count    int32 [b, heads, rows]: number of listed tiles.
    partial  int32 [b, heads, rows]: how many of them are partial.
    """

    index: Int[Array, "b heads rows capacity"]
    count: Int[Array, "b heads rows"]
    partial: Int[Array, "b heads rows"]


@flax.struct.dataclass
@typing.no_type_check
class BlockMask:
    """Which query may see which key, in tiles; traced data, except for the sizes.

    keys      TileLists: per query tile the active key tiles.
    queries   TileLists: the inverse, per key tile the active query tiles.
    fill      what decides inside partial tiles (see fills.py); None when all listed are full.
    strength  float32 [b, heads] or None: of the soft constraint, 0 = none, infinity = hard (row
              S15). `mask.replace(strength=...)` changes it without building the lists again.
    q_len, k_len     static: tokens of the two sequences; the last tiles may be ragged.
    tile_q, tile_k   static: tokens per tile.

    Batch and heads axes of size 1 are shared by all samples and heads. A tile is full when every
    pair of tokens that exists in it is allowed. Key tokens past k_len are never seen.
    """

    keys: TileLists
    queries: TileLists
    fill: typing.Any
    strength: Float[Array, "b heads"] | None
    q_len: int = flax.struct.field(pytree_node=False)
    k_len: int = flax.struct.field(pytree_node=False)
    tile_q: int = flax.struct.field(pytree_node=False)
    tile_k: int = flax.struct.field(pytree_node=False)

    @property
    def batch(self) -> int:
        """Samples, or 1 when all share the mask."""
        return self.keys.count.shape[0]

    @property
    def heads(self) -> int:
        """Heads, or 1 when all share the mask."""
        return self.keys.count.shape[1]

    @property
    def q_tiles(self) -> int:
        """Number of query tiles."""
        return tile_count(self.q_len, self.tile_q)

    @property
    def k_tiles(self) -> int:
        """Number of key tiles."""
        return tile_count(self.k_len, self.tile_k)

    @property
    def soft(self) -> bool:
        """Whether the mask carries a soft constraint."""
        return is_soft(self.fill)

    def state(self) -> Int[Array, "b heads nq nk"]:
        """Kind of every tile pair, int8 [b, heads, nq, nk]: EMPTY, PARTIAL or FULL."""
        return _tile_kinds(self.keys, self.k_tiles)

    def density(self) -> Float[Array, "b heads"]:
        """Share of tile pairs that are active."""
        total = self.q_tiles * self.k_tiles
        return jnp.sum(self.keys.count, axis=-1).astype(jnp.float32) / total

    def dense_pairs(self) -> Pairs:
        """Every pair of tokens, [b, heads, q_len, k_len]: for tests and the reference only."""
        return _dense_pairs(self)

    def dense(self) -> Bool[Array, "b heads tq tk"]:
        """The mask as booleans, [b, heads, q_len, k_len]: for tests only."""
        return self.dense_pairs().allowed

    def __and__(self, other: "BlockMask") -> "BlockMask":
        return _combine(self, other, both=True)

    def __or__(self, other: "BlockMask") -> "BlockMask":
        return _combine(self, other, both=False)


# Compiled as a whole even when called eagerly, as all below: small operations start much slower.
@functools.partial(jax.jit, static_argnums=1)
def _tile_kinds(lists: TileLists, columns: int) -> Int[Array, "b heads nq nk"]:
    position = lax.broadcasted_iota(jnp.int32, lists.index.shape, 3)
    kind = jnp.where(position < lists.count[..., None], FULL, EMPTY)
    kind = jnp.where(position < lists.partial[..., None], PARTIAL, kind)
    rows = lists.index.reshape(-1, lists.index.shape[-1])
    table = jnp.zeros((rows.shape[0], columns), jnp.int8)
    row = jnp.broadcast_to(jnp.arange(rows.shape[0])[:, None], rows.shape)
    table = table.at[row, rows].max(kind.reshape(rows.shape).astype(jnp.int8))
    return table.reshape(*lists.index.shape[:3], columns)


@jax.jit
def _dense_pairs(mask: BlockMask) -> Pairs:
    b, heads, nq, nk = mask.batch, mask.heads, mask.q_tiles, mask.k_tiles
    if mask.fill is not None:
        leaves = jax.tree.leaves(mask.fill)
        b = max([b] + [leaf.shape[0] for leaf in leaves])
    state = jnp.broadcast_to(mask.state(), (b, heads, nq, nk))
    w = jnp.arange(b * heads, dtype=jnp.int32)
    q, k = jnp.divmod(jnp.arange(nq * nk, dtype=jnp.int32), nk)
    shape = (b * heads, nq * nk)
    index = TileIndex(
        w // heads,
        w % heads,
        jnp.broadcast_to(q[None], shape),
        jnp.broadcast_to(k[None], shape),
    )
    kind = state.reshape(*shape, 1, 1)
    full = jnp.broadcast_to(kind == FULL, (*shape, mask.tile_q, mask.tile_k))

    def whole(x):
        x = x.reshape(b, heads, nq, nk, mask.tile_q, mask.tile_k)
        x = jnp.swapaxes(x, 3, 4).reshape(b, heads, nq * mask.tile_q, nk * mask.tile_k)
        return x[:, :, : mask.q_len, : mask.k_len]

    if mask.fill is None:
        return Pairs(whole(full))
    pairs = mask.fill.evaluate(index, mask.tile_q, mask.tile_k)
    partial = kind == PARTIAL
    pairs = pairs.restricted(full | (partial & pairs.allowed)).free_where(~partial)
    return jax.tree.map(whole, pairs)


def with_state(mask: BlockMask, state: Int[Array, "b heads nq nk"], fill: typing.Any) -> BlockMask:
    """A mask over the same tokens and tiles, with other kinds of tile pairs and another fill."""
    return build_mask(
        state,
        q_len=mask.q_len,
        k_len=mask.k_len,
        tile_q=mask.tile_q,
        tile_k=mask.tile_k,
        fill=fill,
        strength=mask.strength,
    )


def tile_count(length: int, tile: int) -> int:
    """Tiles that cover `length` tokens."""
    return -(-length // tile)


@jax.jit
def tile_lists(state: Int[Array, "b heads rows columns"]) -> TileLists:
    """Lists of the active columns of each row from the tile pairs' kinds."""
    columns = state.shape[-1]
    column = lax.broadcasted_iota(jnp.int32, state.shape, 3)
    kind = jnp.where(state == PARTIAL, 0, jnp.where(state == FULL, 1, 2))
    order = jnp.sort(kind * columns + column, axis=-1)
    count = jnp.sum(state != EMPTY, axis=-1, dtype=jnp.int32)
    index = jnp.where(column < count[..., None], order % columns, 0)
    return TileLists(index, count, jnp.sum(state == PARTIAL, axis=-1, dtype=jnp.int32))


def build_mask(
    state: Int[Array, "b heads nq nk"],
    *,
    q_len: int,
    k_len: int,
    tile_q: int,
    tile_k: int,
    fill: typing.Any = None,
    strength: Float[Array, "..."] | float | None = None,
) -> BlockMask:
    """A mask from the kinds of its tile pairs (EMPTY, PARTIAL, FULL) and what fills the partial.

    `strength` may be a scalar, [heads] or [b, heads]. Raises ValueError when sizes disagree, or
    when there is a soft fill without a strength or a strength without a soft fill.
    """
    tiles = (tile_count(q_len, tile_q), tile_count(k_len, tile_k))
    if state.shape[2:] != tiles:
        raise ValueError(
            f"state has {state.shape[2]}x{state.shape[3]} tile pairs, but {q_len}x{k_len} tokens "
            f"in tiles of {tile_q}x{tile_k} make {tiles[0]}x{tiles[1]}"
        )
    if is_soft(fill) != (strength is not None):
        raise ValueError("a soft fill needs a strength, and a strength needs a soft fill")
    if strength is not None:
        strength = jnp.asarray(strength, jnp.float32)
        strength = strength.reshape((1,) * (2 - strength.ndim) + strength.shape)
    return BlockMask(
        keys=tile_lists(state),
        queries=tile_lists(jnp.swapaxes(state, 2, 3)),
        fill=fill,
        strength=strength,
        q_len=q_len,
        k_len=k_len,
        tile_q=tile_q,
        tile_k=tile_k,
    )


@functools.partial(jax.jit, static_argnames="both")
def _combine(left: BlockMask, right: BlockMask, *, both: bool) -> BlockMask:
    """Intersection or union of two masks over the same tokens and tiles."""
    sizes = tuple((m.q_len, m.k_len, m.tile_q, m.tile_k) for m in (left, right))
    if sizes[0] != sizes[1]:
        raise ValueError(f"masks of different sizes cannot be combined: {sizes[0]}, {sizes[1]}")
    if left.soft and right.soft:
        raise ValueError("two soft masks cannot be combined: their constraints would have to be")
    if not both and (left.soft or right.soft):
        raise ValueError("a soft mask has no union: pairs of the other mask have no constraint")
    states = left.state(), right.state()
    shape = jnp.broadcast_shapes(states[0].shape, states[1].shape)
    a, b = (jnp.broadcast_to(state, shape) for state in states)
    state = jnp.minimum(a, b) if both else jnp.maximum(a, b)
    fill = CombinedFill(left.fill, right.fill, states[0], states[1], both)
    return with_state(left if left.soft else right, state, fill)
