"""A mask without the keys that are not there, its partial tiles as they were held."""

import functools

import jax
import jax.numpy as jnp
from jax import Array
from jaxtyping import Bool, Int, Shaped

from pallas_kernels.block_mask import BlockMask, with_state
from pallas_kernels.fills import EMPTY, FULL, PARTIAL, BitFill, has_part, pack_bits
from pallas_kernels.patterns import frame_pattern, pad_tokens
from pallas_kernels.soft_fill import EXCLUDED_PAIR, SoftFill

__all__ = ["restrict_keys"]

_ALL = 0xFFFFFFFF


@jax.jit
def restrict_keys(mask: BlockMask, valid: Bool[Array, "b tk"]) -> BlockMask:
    """The same mask, in which no query sees a key that is not valid.

    What is packed stays packed, and is not evaluated anew: a full tile of which some keys are valid
    takes bits (or numbers) that all such tiles in its column share. A mask that is straight from
    geometry or from a pattern becomes a combined one.
    """
    fill = mask.fill
    bits = fill is None or isinstance(fill, BitFill)
    if not ((bits and mask.tile_k % 32 == 0) or isinstance(fill, SoftFill)):
        frame = jnp.zeros((valid.shape[0], mask.q_len), jnp.int32)
        key_frame = jnp.where(valid, 0, -1)
        everything = jnp.ones((valid.shape[0], 1, 1), bool)
        tiles = {"tile_q": mask.tile_q, "tile_k": mask.tile_k}
        return mask & frame_pattern(frame, key_frame, everything, **tiles)

    tiles = pad_tokens(valid, mask.tile_k, True).reshape(valid.shape[0], mask.k_tiles, -1)
    state = mask.state()
    batch, heads = max(state.shape[0], valid.shape[0]), mask.heads
    some, every = (x(tiles, axis=-1)[:, None, None] for x in (jnp.any, jnp.all))
    cut = (state == FULL) & some & ~every
    state = jnp.where(some, jnp.where(cut, PARTIAL, state), EMPTY)
    state = jnp.broadcast_to(state, (batch, *state.shape[1:])).astype(jnp.int8)

    overflow, parts = jnp.zeros((1, 1), jnp.int32), None
    if fill is None:
        shape = (1, 1, 0, mask.tile_q * mask.tile_k // 32)
        content, slot = jnp.zeros(shape, jnp.uint32), jnp.full((1, 1, 1, 1), -1, jnp.int32)
    elif isinstance(fill, SoftFill):
        content, slot, overflow = fill.pairs, fill.slot, fill.overflow
    else:
        content, slot, overflow, parts = fill.flat, fill.slot, fill.overflow, fill.parts
    content, slot = (jnp.broadcast_to(x, (batch, heads, *x.shape[2:])) for x in (content, slot))
    rows = fill.rows if isinstance(fill, BitFill) else mask.tile_q
    room, each = content.shape[2], mask.tile_q // rows
    first = room + each * jnp.arange(mask.k_tiles, dtype=jnp.int32)
    slot = jnp.where(state == PARTIAL, jnp.where(cut, first, slot), -1)
    if parts is not None:
        parts = jnp.where(cut, (1 << each) - 1, jnp.broadcast_to(parts, cut.shape))

    tiles = jnp.broadcast_to(tiles[:, None], (batch, heads, *tiles.shape[1:]))
    columns = pack_bits(tiles) if bits else tiles

    def keep(content: Array, columns: Shaped[Array, "b heads n _"]) -> Array:
        """Content [b, heads, n, ...] of tiles with some of their columns."""
        if bits:
            # Joined, not repeated on an axis of their own, which a TPU would spread over memory.
            return content & jnp.concatenate([columns] * rows, axis=-1)
        return jnp.where(columns[:, :, :, None], content, EXCLUDED_PAIR)

    # The column of tiles that every slot belongs to.
    held = jnp.ones_like(slot) if parts is None else jnp.broadcast_to(parts, slot.shape)
    owner = jax.vmap(jax.vmap(functools.partial(_owners, room=room, each=each)))(slot, held)
    content = keep(content, jnp.take_along_axis(columns, owner[..., None], axis=2))
    # Of a tile that was full: bits that all are set, or numbers of no constraint.
    columns = jnp.repeat(columns, each, axis=2)
    whole = jnp.full((*columns.shape[:3], *content.shape[3:]), _ALL if bits else 0, content.dtype)
    content = jnp.concatenate([content, keep(whole, columns)], axis=2)
    overflow = jnp.broadcast_to(overflow, (batch, heads))
    if bits:
        return with_state(mask, state, BitFill(content, slot, parts, overflow, rows))
    return with_state(mask, state, SoftFill(content, slot, overflow))


def _owners(
    slot: Int[Array, "nq nk"], parts: Int[Array, "nq nk"], *, room: int, each: int
) -> Int[Array, "slots"]:
    """The column that each of `room` slots is used in; 0 where it is not.

    parts: which of the `each` parts of a tile have one, as flags.
    """
    column = jnp.broadcast_to(jnp.arange(slot.shape[1], dtype=jnp.int32)[None], slot.shape)
    owner = jnp.zeros(room, jnp.int32)
    for part in range(each):
        held = (slot >= 0) & (has_part(parts, part) == 1)
        owner = owner.at[jnp.where(held, slot, room)].set(column, mode="drop")
        slot = slot + held.astype(slot.dtype)
    return owner
