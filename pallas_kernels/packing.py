"""A mask whose partial tiles are evaluated once and held as bits, for use by many layers."""

import jax
import jax.numpy as jnp
from jax import Array

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.fills import PARTIAL, BitFill, TileIndex, pack_bits

__all__ = ["pack_partial_tiles"]

# Partial tiles evaluated at a time, for each sample: bounds the memory of unpacked masks.
_AT_ONCE = 8


def pack_partial_tiles(mask: BlockMask, *, capacity: int | None = None) -> BlockMask:
    """The same mask with its partial tiles as packed bits instead of the predicate behind them.

    Layers that share a mask then read a bit per pair where each would evaluate the geometry anew.

    mask: a hard mask; a soft constraint is no bit (ValueError). Its tile_k is a multiple of 32.
    capacity: partial tiles there is room for per sample and head; by default all tile pairs. Those
        beyond it lose their pairs and are counted in `fill.overflow`.
    """
    if mask.soft or mask.strength is not None:
        raise ValueError("only a hard mask can be packed into bits, and this one is soft")
    if mask.tile_k % 32:
        raise ValueError(f"tile_k must be a multiple of 32 for packed masks, got {mask.tile_k}")
    if mask.fill is None:
        return mask
    # Lists may be shared by all samples while the fill is not.
    batch = max([mask.batch] + [leaf.shape[0] for leaf in jax.tree.leaves(mask.fill)])
    rows = batch * mask.heads
    pairs = mask.q_tiles * mask.k_tiles
    room = pairs if capacity is None else min(capacity, pairs)
    state = jnp.broadcast_to(mask.state(), (batch, mask.heads, mask.q_tiles, mask.k_tiles))
    partial = (state == PARTIAL).reshape(rows, pairs)
    slot = jnp.cumsum(partial, axis=-1, dtype=jnp.int32) - 1
    kept = partial & (slot < room)
    # Where each slot's tile pair is; slots without one read pair 0 and are never asked for.
    row = jnp.broadcast_to(jnp.arange(rows)[:, None], (rows, pairs))
    listed = jnp.zeros((rows, -(-room // _AT_ONCE) * _AT_ONCE), jnp.int32)
    pair = jnp.broadcast_to(jnp.arange(pairs, dtype=jnp.int32)[None], (rows, pairs))
    listed = listed.at[row, jnp.where(kept, slot, listed.shape[1])].set(pair, mode="drop")
    number = jnp.arange(rows, dtype=jnp.int32)

    def evaluate(chunk: Array) -> Array:
        q, k = jnp.divmod(chunk, mask.k_tiles)
        index = TileIndex(number // mask.heads, number % mask.heads, q, k)
        return pack_bits(mask.fill.evaluate(index, mask.tile_q, mask.tile_k).allowed)

    chunks = jnp.moveaxis(listed.reshape(rows, -1, _AT_ONCE), 1, 0)
    words = jnp.moveaxis(jax.lax.map(evaluate, chunks), 0, 1)
    words = words.reshape(batch, mask.heads, -1, *words.shape[3:])[:, :, :room]
    fill = BitFill(
        words=words,
        slot=jnp.where(kept, slot, -1).reshape(state.shape),
        overflow=(partial & ~kept).sum(-1, dtype=jnp.int32).reshape(batch, mask.heads),
    )
    return mask.replace(fill=fill)
