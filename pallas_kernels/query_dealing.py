"""Query tiles dealt out to chips, one to each in turn, as the masks of their shares."""

import dataclasses
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Shaped

from pallas_kernels.block_mask import BlockMask, tile_lists
from pallas_kernels.fills import BitFill, GeometryFill
from pallas_kernels.soft_fill import SoftFill

__all__ = ["QueryDealing", "stands_for_rows"]


def stands_for_rows(path: typing.Any) -> bool:
    """Whether a leaf of a mask stands for rows of queries: lists, slots and query geometry."""
    names = [key.name for key in path]
    return (
        names[0] == "keys"
        or names[-1] in ("slot", "parts")
        or names[1:2] in (["query"], ["query_group"])
    )


class QueryDealing:
    """A mask's query tiles as `turns` x `parts` of them: tile i is the share of part i % parts.

    Rows of tiles become [turns, parts], tokens [turns, parts, tile]; a part's share has `length`
    tokens. Tiles that are added to fill the last turn list nothing.

    Raises ValueError for masks whose partial tiles are neither packed nor straight from geometry.
    """

    def __init__(self, mask: BlockMask, parts: int):
        self.q_len, self.tile, self.tiles, self.parts = (
            mask.q_len, mask.tile_q, mask.q_tiles, parts,
        )  # fmt: skip
        self.turns = -(-mask.q_tiles // parts)
        self.length = self.turns * mask.tile_q
        if not (mask.fill is None or isinstance(mask.fill, BitFill | SoftFill | GeometryFill)):
            raise ValueError(
                "to be split by queries a mask's partial tiles must be packed (see "
                "`pack_partial_tiles`) or straight from geometry"
            )

    def deal(self, x: Shaped[Array, "b t *rest"]) -> Shaped[Array, "b turns parts tile *rest"]:
        """Tokens of all parts."""
        extra = self.length * self.parts - x.shape[1]
        x = jnp.pad(x, ((0, 0), (0, extra), *((0, 0),) * (x.ndim - 2)))
        return x.reshape(x.shape[0], self.turns, self.parts, self.tile, *x.shape[2:])

    def collect(self, x: Shaped[Array, "b turns parts tile *rest"]) -> Shaped[Array, "b t *rest"]:
        """The reverse of `deal`."""
        return x.reshape(x.shape[0], self.length * self.parts, *x.shape[4:])[:, : self.q_len]

    def share(self, x: Shaped[Array, "b turns 1 tile *rest"]) -> Shaped[Array, "b own *rest"]:
        """Tokens of one part, in a row."""
        return x.reshape(x.shape[0], self.length, *x.shape[4:])

    def as_dealt(self, x: Shaped[Array, "b own *rest"]) -> Shaped[Array, "b turns 1 tile *rest"]:
        """The reverse of `share`."""
        return x.reshape(x.shape[0], self.turns, 1, self.tile, *x.shape[2:])

    def deal_mask(self, mask: BlockMask) -> BlockMask:
        """The leaves that stand for rows of queries as those of all parts."""

        def deal(x: Array, axis: int) -> Array:
            tile = x.shape[axis] // self.tiles
            margins = [(0, 0)] * x.ndim
            margins[axis] = (0, self.turns * self.parts * tile - x.shape[axis])
            inner = () if axis == 2 else (tile,)
            shape = (*x.shape[:axis], self.turns, self.parts, *inner, *x.shape[axis + 1 :])
            return jnp.pad(x, margins).reshape(shape)

        return _over_rows(mask, deal)

    def share_mask(self, mask: BlockMask) -> BlockMask:
        """The mask of one part, from its dealt leaves."""

        def share(x: Array, axis: int) -> Array:
            count, after = (self.turns, 2) if axis == 2 else (self.length, 3)
            return x.reshape(*x.shape[:axis], count, *x.shape[axis + after :])

        mask = dataclasses.replace(_over_rows(mask, share), q_len=self.length)
        queries = tile_lists(jnp.swapaxes(mask.state(), 2, 3))
        return dataclasses.replace(mask, queries=queries)


_OF_TILES = ("slot", "parts", "index", "count", "partial")


def _over_rows(mask: BlockMask, change: Callable[[Array, int], Array]) -> BlockMask:
    """Change what stands for rows of queries: of tiles along axis 2, of tokens along axis 1."""

    def leaf(path: typing.Any, x: Array) -> Array:
        if not stands_for_rows(path):
            return x
        return change(x, 2 if path[-1].name in _OF_TILES else 1)

    return jax.tree_util.tree_map_with_path(leaf, mask)
