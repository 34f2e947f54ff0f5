"""Fills made of other masks: intersection and union, and larger tiles over smaller ones."""

import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from pallas_kernels.fills import FULL, PARTIAL, TileIndex
from pallas_kernels.geometry import Pairs

__all__ = ["CoarseFill", "CombinedFill", "is_soft"]


@flax.struct.dataclass
@typing.no_type_check
class CombinedFill:
    """Both, or either, of two masks over the same tiles.

    left, right             the masks' fills, or None.
    left_state, right_state int8 [b, heads, nq, nk]: EMPTY, PARTIAL or FULL in each.
    both                    static: True for `and`, False for `or`.
    """

    left: typing.Any
    right: typing.Any
    left_state: Int[Array, "b heads nq nk"]
    right_state: Int[Array, "b heads nq nk"]
    both: bool = flax.struct.field(pytree_node=False)

    @property
    def soft(self) -> bool:
        """Whether one of the two carries a soft constraint."""
        return is_soft(self.left) or is_soft(self.right)

    def evaluate(self, index: TileIndex, tile_q: int, tile_k: int) -> Pairs:
        """Pairs of the listed tiles."""
        left = _with_state(self.left, self.left_state, index, tile_q, tile_k)
        right = _with_state(self.right, self.right_state, index, tile_q, tile_k)
        if not self.both:
            return Pairs(left.allowed | right.allowed)
        one = left if left.penalty is not None else right
        return Pairs(left.allowed & right.allowed, one.attraction, one.penalty)


@flax.struct.dataclass
@typing.no_type_check
class CoarseFill:
    """A mask of smaller tiles, seen in tiles of factor_q x factor_k of them.

    fine   the smaller tiles' fill, or None.
    state  int8 [b, heads, nq, nk]: EMPTY, PARTIAL or FULL for each smaller tile pair.
    """

    fine: typing.Any
    state: Int[Array, "b heads nq nk"]
    factor_q: int = flax.struct.field(pytree_node=False)
    factor_k: int = flax.struct.field(pytree_node=False)

    @property
    def soft(self) -> bool:
        """Whether the smaller tiles carry a soft constraint."""
        return is_soft(self.fine)

    def evaluate(self, index: TileIndex, tile_q: int, tile_k: int) -> Pairs:
        """Pairs of the listed tiles."""
        w, n = index.q.shape
        nq, nk = self.state.shape[2:]
        inner = (n, self.factor_q, self.factor_k)
        row = jnp.arange(self.factor_q, dtype=jnp.int32)[None, None, :, None]
        column = jnp.arange(self.factor_k, dtype=jnp.int32)[None, None, None, :]
        q = jnp.broadcast_to(index.q[..., None, None] * self.factor_q + row, (w, *inner))
        k = jnp.broadcast_to(index.k[..., None, None] * self.factor_k + column, (w, *inner))
        inside = ((q < nq) & (k < nk)).reshape(w, -1, 1, 1)
        q, k = (jnp.minimum(x, limit - 1).reshape(w, -1) for x, limit in ((q, nq), (k, nk)))
        fine_q, fine_k = tile_q // self.factor_q, tile_k // self.factor_k
        index = TileIndex(index.batch, index.head, q, k)
        pairs = _with_state(self.fine, self.state, index, fine_q, fine_k)

        def whole(x):
            x = jnp.swapaxes(x.reshape(w, *inner, fine_q, fine_k), 3, 4)
            return x.reshape(w, n, tile_q, tile_k)

        return jax.tree.map(whole, pairs.restricted(pairs.allowed & inside))


def is_soft(fill) -> bool:
    """Whether the fill's pairs carry a soft constraint."""
    return fill is not None and fill.soft


def _with_state(fill, state: Array, index: TileIndex, tile_q: int, tile_k: int) -> Pairs:
    kind = index.take(state)[..., None, None]
    if fill is None:
        allowed = jnp.broadcast_to(kind == FULL, (*index.q.shape, tile_q, tile_k))
        return Pairs(allowed)
    pairs = fill.evaluate(index, tile_q, tile_k)
    partial = kind == PARTIAL
    allowed = (kind == FULL) | (partial & pairs.allowed)
    return pairs.restricted(allowed).free_where(~partial)
