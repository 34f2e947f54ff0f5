"""Masks looked into, made exact, or coarsened to larger tiles, on the device."""

import functools
import typing
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Float, Int

from pallas_kernels.block_mask import BlockMask, build_mask, with_state
from pallas_kernels.compat import vary_like
from pallas_kernels.composite_fills import CoarseFill
from pallas_kernels.fills import EMPTY, FULL, PARTIAL, TileIndex
from pallas_kernels.geometry import Pairs

__all__ = ["TileDensity", "coarsen", "over_partial", "refine", "tile_density", "tile_kind"]

_AT_ONCE = 8  # tiles evaluated per step


def over_partial(
    mask: BlockMask,
    start: typing.Any,
    update: Callable[[typing.Any, TileIndex, Pairs, Bool[Array, "n"]], typing.Any],
) -> typing.Any:
    """Fold `update(carry, index, pairs, real)` over the partial tiles, a few at a time.

    pairs: of n tiles, [n, tile_q, tile_k]; real [n]: False past the last tile.
    """
    state = mask.state()
    partial = (state == PARTIAL).reshape(-1)
    total = jnp.sum(partial, dtype=jnp.int32)
    place = jnp.nonzero(partial, size=partial.shape[0] + _AT_ONCE, fill_value=0)[0]
    place = place.astype(jnp.int32)

    def step(at, carry):
        chosen = lax.dynamic_slice_in_dim(place, at * _AT_ONCE, _AT_ONCE)
        real = at * _AT_ONCE + jnp.arange(_AT_ONCE, dtype=jnp.int32) < total
        b, head, q, k = jnp.unravel_index(chosen, state.shape)
        index = TileIndex(b, head, q[:, None], k[:, None])
        pairs = mask.fill.evaluate(index, mask.tile_q, mask.tile_k)
        pairs = pairs.restricted(pairs.allowed & _inside(mask, index))
        return update(carry, index, jax.tree.map(lambda x: x[:, 0], pairs), real)

    start = jax.tree.map(lambda x: vary_like(x, mask), start)
    return lax.fori_loop(0, -(-total // _AT_ONCE), step, start)


def _inside(mask: BlockMask, index: TileIndex) -> Bool[Array, "w n tq tk"]:
    """Pairs of tokens that exist, in ragged tiles too."""
    row = index.q[..., None, None] * mask.tile_q
    row = row + jnp.arange(mask.tile_q, dtype=jnp.int32)[None, None, :, None]
    column = index.k[..., None, None] * mask.tile_k
    column = column + jnp.arange(mask.tile_k, dtype=jnp.int32)[None, None, None, :]
    return (row < mask.q_len) & (column < mask.k_len)


def tile_kind(
    mask: BlockMask, index: TileIndex, allowed: Bool[Array, "n tq tk"]
) -> Int[Array, "n"]:
    """EMPTY, PARTIAL or FULL (int8) from what is allowed in the tiles of `index`.

    A tile of a soft mask is never full: it would lose its constraint.
    """
    some = jnp.any(allowed, axis=(1, 2))
    every = jnp.all(allowed | ~_inside(mask, index)[:, 0], axis=(1, 2)) & (not mask.soft)
    return jnp.where(some, jnp.where(every, FULL, PARTIAL), EMPTY).astype(jnp.int8)


def _exact_state(mask: BlockMask) -> Int[Array, "b heads nq nk"]:
    """Kinds of the tile pairs with the partial ones looked into."""

    def update(state, index, pairs, real):
        row = jnp.where(real, index.q[:, 0], state.shape[2])
        kind = tile_kind(mask, index, pairs.allowed)
        return state.at[index.batch, index.head, row, index.k[:, 0]].set(kind, mode="drop")

    return over_partial(mask, mask.state(), update)


@jax.jit
def refine(mask: BlockMask) -> BlockMask:
    """The same mask with exact lists: partial tiles that hold nothing are dropped, whole ones full.

    Costs one look at every partial tile; worth it when the mask serves many layers.
    """
    return mask if mask.fill is None else with_state(mask, _exact_state(mask), mask.fill)


@functools.partial(jax.jit, static_argnums=(1, 2))
def coarsen(mask: BlockMask, tile_q: int, tile_k: int) -> BlockMask:
    """The same mask in larger tiles. Raises ValueError unless they are multiples of its own."""
    if tile_q % mask.tile_q or tile_k % mask.tile_k:
        raise ValueError(
            f"tiles of {tile_q}x{tile_k} are no multiples of the mask's {mask.tile_q}x{mask.tile_k}"
        )
    factor_q, factor_k = tile_q // mask.tile_q, tile_k // mask.tile_k
    state = mask.state()
    b, heads, nq, nk = state.shape
    margins = ((0, 0), (0, 0), (0, -nq % factor_q), (0, -nk % factor_k))

    def blocks(padding):
        x = jnp.pad(state, margins, constant_values=padding)
        return x.reshape(b, heads, x.shape[2] // factor_q, factor_q, -1, factor_k)

    some = jnp.any(blocks(EMPTY) != EMPTY, axis=(3, 5))
    every = jnp.all(blocks(FULL) == FULL, axis=(3, 5))
    kind = jnp.where(some, jnp.where(every, FULL, PARTIAL), EMPTY).astype(jnp.int8)
    return build_mask(
        kind,
        q_len=mask.q_len,
        k_len=mask.k_len,
        tile_q=tile_q,
        tile_k=tile_k,
        fill=CoarseFill(mask.fill, state, factor_q, factor_k),
        strength=mask.strength,
    )


class TileDensity(typing.NamedTuple):
    """Shares of a mask, averaged over samples and mask heads; scalars.

    listed  tile pairs that the lists hold (conservative for geometry).
    active  tile pairs that hold at least one allowed pair.
    full    tile pairs that are wholly allowed.
    pairs   token pairs that are allowed.
    """

    listed: Float[Array, ""]
    active: Float[Array, ""]
    full: Float[Array, ""]
    pairs: Float[Array, ""]


@jax.jit
def tile_density(mask: BlockMask) -> TileDensity:
    """How sparse a mask is, in tiles and in tokens; looks into every partial tile once."""
    state = mask.state()
    exact = _exact_state(mask) if mask.fill is not None else state
    q_size = jnp.minimum(mask.tile_q, mask.q_len - jnp.arange(mask.q_tiles) * mask.tile_q)
    k_size = jnp.minimum(mask.tile_k, mask.k_len - jnp.arange(mask.k_tiles) * mask.tile_k)
    sizes = (q_size[:, None] * k_size[None]).astype(jnp.float32)[None, None]
    count = jnp.sum(jnp.where(state == FULL, sizes, 0.0))
    if mask.fill is not None:

        def update(carry, index, pairs, real):
            each = jnp.sum(pairs.allowed, axis=(1, 2), dtype=jnp.float32)
            return carry + jnp.sum(jnp.where(real, each, 0.0))

        count = over_partial(mask, count, update)
    rows = mask.batch * mask.heads
    return TileDensity(
        listed=jnp.mean((state != EMPTY).astype(jnp.float32)),
        active=jnp.mean((exact != EMPTY).astype(jnp.float32)),
        full=jnp.mean((exact == FULL).astype(jnp.float32)),
        pairs=count / (rows * mask.q_len * mask.k_len),
    )
