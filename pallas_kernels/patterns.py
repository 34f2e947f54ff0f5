"""Constructors of block masks; all work inside jit with traced data.

Called outside of it, each is compiled as a whole: dozens of small operations start much slower.
"""

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Bool, Int

from pallas_kernels.block_mask import BlockMask, build_mask, tile_count
from pallas_kernels.fills import EMPTY, FULL, PARTIAL, BandFill, BitFill, FrameFill, pack_bits
from pallas_kernels.token_order import TokenOrder

__all__ = [
    "dense_pattern",
    "frame_pair",
    "frame_pattern",
    "from_dense",
    "from_tile_lists",
    "sliding_window",
]


def _kind(some: Array, all_: Array) -> Int[Array, "..."]:
    """EMPTY, PARTIAL or FULL from 'has an allowed pair' and 'has no other pair'."""
    return jnp.where(some, jnp.where(all_, FULL, PARTIAL), EMPTY).astype(jnp.int8)


@functools.partial(jax.jit, static_argnums=(1, 2))
def from_dense(
    mask: Bool[Array, "b tq tk"] | Bool[Array, "b heads tq tk"], tile_q: int, tile_k: int
) -> BlockMask:
    """Block mask from booleans [b, tq, tk], or [b, heads, tq, tk] with a mask per head.

    tile_k must be a multiple of 32 (ValueError). Room is made for every tile pair to be partial.
    """
    if tile_k % 32:
        raise ValueError(f"tile_k must be a multiple of 32 for packed masks, got {tile_k}")
    if mask.ndim == 3:
        mask = mask[:, None]
    b, heads, q_len, k_len = mask.shape
    nq, nk = tile_count(q_len, tile_q), tile_count(k_len, tile_k)
    margins = ((0, 0), (0, 0), (0, nq * tile_q - q_len), (0, nk * tile_k - k_len))

    def tiles(x):
        x = x.reshape(b, heads, nq, tile_q, nk, tile_k)
        return jnp.swapaxes(x, 3, 4)

    inside = tiles(jnp.pad(mask, margins))
    some = jnp.any(inside, axis=(4, 5))
    all_ = jnp.all(tiles(jnp.pad(mask, margins, constant_values=True)), axis=(4, 5))
    state = _kind(some, all_)
    slots = nq * nk
    partial = (state == PARTIAL).reshape(b, heads, slots)
    slot = jnp.where(partial, jnp.cumsum(partial, axis=-1, dtype=jnp.int32) - 1, slots)
    words = pack_bits(inside).reshape(b * heads, slots, tile_q, tile_k // 32)
    row = jnp.broadcast_to(jnp.arange(b * heads)[:, None], (b * heads, slots))
    packed = jnp.zeros_like(words)
    packed = packed.at[row, slot.reshape(b * heads, slots)].set(words, mode="drop")
    fill = BitFill(
        flat=packed.reshape(b, heads, slots, -1),
        slot=jnp.where(partial, slot, -1).reshape(b, heads, nq, nk),
        parts=None,
        overflow=jnp.zeros((b, heads), jnp.int32),
        rows=tile_q,
    )
    return build_mask(state, q_len=q_len, k_len=k_len, tile_q=tile_q, tile_k=tile_k, fill=fill)


@functools.partial(jax.jit, static_argnames=("q_len", "k_len", "tile_q", "tile_k"))
def from_tile_lists(
    index: Int[Array, "b heads nq capacity"],
    count: Int[Array, "b heads nq"],
    *,
    q_len: int,
    k_len: int,
    tile_q: int,
    tile_k: int,
) -> BlockMask:
    """Block mask whose listed tiles are wholly visible.

    index holds key tiles (int32), of which the first `count` of each row count; the heads axis may
    be 1. An entry outside [0, key tiles) is ignored, one listed twice counts once.
    """
    b, heads, nq, capacity = index.shape
    nk = tile_count(k_len, tile_k)
    position = lax.broadcasted_iota(jnp.int32, index.shape, 3)
    listed = (position < count[..., None]) & (index >= 0)
    column = jnp.where(listed, index, nk).reshape(-1, capacity)
    row = jnp.broadcast_to(jnp.arange(column.shape[0])[:, None], column.shape)
    state = jnp.full((column.shape[0], nk), EMPTY, jnp.int8).at[row, column].set(FULL, mode="drop")
    state = state.reshape(b, heads, nq, nk)
    return build_mask(state, q_len=q_len, k_len=k_len, tile_q=tile_q, tile_k=tile_k)


@functools.partial(jax.jit, static_argnames=("q_len", "k_len", "tile_q", "tile_k", "batch"))
def dense_pattern(
    q_len: int, k_len: int, *, tile_q: int = 128, tile_k: int = 128, batch: int = 1
) -> BlockMask:
    """Every query sees every key: the official 2.0 attention (row S20)."""
    state = jnp.full((batch, 1, tile_count(q_len, tile_q), tile_count(k_len, tile_k)), FULL)
    state = state.astype(jnp.int8)
    return build_mask(state, q_len=q_len, k_len=k_len, tile_q=tile_q, tile_k=tile_k)


@functools.partial(
    jax.jit,
    static_argnames=("q_len", "k_len", "before", "after", "offset", "tile_q", "tile_k", "batch"),
)
def sliding_window(
    q_len: int,
    k_len: int,
    *,
    before: int,
    after: int,
    offset: int = 0,
    tile_q: int = 128,
    tile_k: int = 128,
    batch: int = 1,
) -> BlockMask:
    """Query i sees keys i + offset - before to i + offset + after."""
    q_start = jnp.arange(tile_count(q_len, tile_q)) * tile_q + offset
    k_start = jnp.arange(tile_count(k_len, tile_k)) * tile_k
    q_end = jnp.minimum(q_start + tile_q, q_len + offset) - 1
    k_end = jnp.minimum(k_start + tile_k, k_len) - 1
    nearest = k_start[None] - q_end[:, None], k_end[None] - q_start[:, None]
    some = (nearest[0] <= after) & (nearest[1] >= -before)
    all_ = (nearest[0] >= -before) & (nearest[1] <= after)
    state = jnp.broadcast_to(_kind(some, all_)[None, None], (batch, 1, *some.shape))
    fill = BandFill(before, after, offset)
    return build_mask(state, q_len=q_len, k_len=k_len, tile_q=tile_q, tile_k=tile_k, fill=fill)


def pad_tokens(x: Array, tile: int, value) -> Array:
    """Pad axis 1 to whole tiles."""
    extra = -x.shape[1] % tile
    return jnp.pad(x, ((0, 0), (0, extra)) + ((0, 0),) * (x.ndim - 2), constant_values=value)


@functools.partial(jax.jit, static_argnames=("tile_q", "tile_k"))
def frame_pattern(
    query_frame: Int[Array, "b tq"],
    key_frame: Int[Array, "b tk"],
    table: Bool[Array, "b fq fk"],
    *,
    tile_q: int = 128,
    tile_k: int = 128,
) -> BlockMask:
    """Tokens of frame i see tokens of frame j where table[i, j]; a negative frame is no token."""
    q_len, k_len = query_frame.shape[1], key_frame.shape[1]
    query = pad_tokens(query_frame.astype(jnp.int32), tile_q, -1)
    key = pad_tokens(key_frame.astype(jnp.int32), tile_k, -1)

    def members(frame: Array, length: int, tile: int, frames: int) -> tuple[Array, Array]:
        """Frames present in each tile, float32 [b, n, frames], and tiles with an empty slot."""
        split = frame.reshape(frame.shape[0], -1, tile)
        ids = jnp.arange(frames)[None, None, :, None]
        present = jnp.any(split[:, :, None] == ids, axis=-1).astype(jnp.float32)
        inside = (jnp.arange(frame.shape[1]) < length).reshape(1, -1, tile)
        return present, jnp.any((split < 0) & inside, axis=-1)

    query_has, query_gap = members(query, q_len, tile_q, table.shape[1])
    key_has, key_gap = members(key, k_len, tile_k, table.shape[2])

    def any_pair(permitted: Array) -> Array:
        reach = jnp.einsum("bqi,bij->bqj", query_has, permitted.astype(jnp.float32))
        return jnp.einsum("bqj,bkj->bqk", reach, key_has) > 0

    some = any_pair(table)
    all_ = ~any_pair(~table) & ~query_gap[:, :, None] & ~key_gap[:, None]
    fill = FrameFill(query, key, table)
    return build_mask(
        _kind(some, all_)[:, None],
        q_len=q_len,
        k_len=k_len,
        tile_q=tile_q,
        tile_k=tile_k,
        fill=fill,
    )


def frame_pair(
    pairs: Int[Array, "b f"],
    *,
    references: int,
    tokens_per_frame: int,
    tile_q: int = 128,
    tile_k: int = 128,
    order: TokenOrder | None = None,
) -> BlockMask:
    """Each target frame and its one reference attend to each other: official 1.0 (row S20).

    Over the joint sequence [references ; target] of tokens_per_frame tokens each. pairs[b, f] is
    the reference of target frame f; negative: none, the frame sees itself. A reference that
    several frames share sees them all. `order` is the joint sequence's, when it is permuted.
    """
    b, f = pairs.shape
    total = references + f
    chosen = pairs[:, :, None] == jnp.arange(references)[None, None]
    own = jnp.broadcast_to(jnp.eye(f, dtype=bool)[None], (b, f, f))
    own_view = jnp.broadcast_to(jnp.eye(references, dtype=bool)[None], (b, references, references))
    top = jnp.concatenate([own_view, jnp.swapaxes(chosen, 1, 2)], axis=2)
    table = jnp.concatenate([top, jnp.concatenate([chosen, own], axis=2)], axis=1)
    frame = jnp.repeat(jnp.arange(total, dtype=jnp.int32), tokens_per_frame)
    frame = jnp.broadcast_to(frame[None], (b, frame.shape[0]))
    if order is not None:
        frame = order.apply(frame)
    return frame_pattern(frame, frame, table, tile_q=tile_q, tile_k=tile_k)
