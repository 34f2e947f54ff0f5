"""Kernel bodies of the Triton route: a program computes one block of rows over its listed tiles.

Logits are kept in base 2 (scaled by log2 e), where the hardware's exponential is.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.kernel_tables import WEAKEST
from pallas_kernels.soft_fill import EXCLUDED_PAIR, decode

__all__ = [
    "KernelShape",
    "Masks",
    "backward_kv_kernel",
    "backward_q_kernel",
    "forward_kernel",
]

LOG2_E = math.log2(math.e)


@dataclasses.dataclass(frozen=True)
class KernelShape:
    """Static sizes of one kernel.

    tile_q, tile_k    the mask's tiles.
    block_q, block_k  what is computed at once: divisors of the tiles.
    q_len, k_len      tokens.
    scale             of the logits.
    inverse           rows are key blocks, which visit query tiles.
    """

    tile_q: int
    tile_k: int
    block_q: int
    block_k: int
    q_len: int
    k_len: int
    scale: float
    inverse: bool = False

    @property
    def row_parts(self) -> int:
        """Programs per row of tiles."""
        return self.tile_k // self.block_k if self.inverse else self.tile_q // self.block_q

    @property
    def visit_parts(self) -> int:
        """Steps per listed tile."""
        return self.tile_q // self.block_q if self.inverse else self.tile_k // self.block_k


class Look(NamedTuple):
    """What the mask says of a block of pairs, [the row's tokens, the other side's].

    allowed  bool; None: all are.
    bias     of a soft mask, added to the logits in base 2; slope: its derivative by the strength,
             in natural logits. None where there is no constraint.
    """

    allowed: Array | None
    bias: Array | None = None
    slope: Array | None = None


class Masks(NamedTuple):
    """References of what decides in partial tiles; None what the mask has not.

    words    [b, heads, slots * tile_q, tile_k / 32] of a hard mask.
    pairs    [b, heads, slots * tile_q, tile_k] of a soft one; numbers [b, heads, 3], see
             `strength_numbers`.
    """

    words: Any = None
    pairs: Any = None
    numbers: Any = None


class _Program:
    """One program: its sample, head and row, and the loops over the tiles that the row lists."""

    def __init__(self, shape: KernelShape, tables: tuple[Any, ...], masks: Masks):
        order, self._index, self._slot, count, partial = tables
        self.shape, self._masks = shape, masks
        self.head, self.batch = pl.program_id(1), pl.program_id(2)
        rank = lax.div(pl.program_id(0), jnp.int32(shape.row_parts))
        self._part = lax.rem(pl.program_id(0), jnp.int32(shape.row_parts))
        at = self._shared(order)
        self._row = order[(*at, rank)]
        self._count, self._partial = count[(*at, self._row)], partial[(*at, self._row)]
        if masks.words is None and masks.pairs is None:
            self._partial = jnp.int32(0)
        tile = shape.tile_k if shape.inverse else shape.tile_q
        block = shape.block_k if shape.inverse else shape.block_q
        self.start = self._row * tile + self._part * block

    def _shared(self, table: Any) -> tuple[Array, Array]:
        """Sample and head of a table that may be shared by all samples or heads."""
        batch, heads = table.shape[:2]
        first = jnp.int32(0)
        return (self.batch if batch > 1 else first), (self.head if heads > 1 else first)

    def load(self, ref: Any, start: Array, size: int, length: int) -> Array:
        """Tokens [size, d] of ref [b, t, heads, d] from `start`; zero past `length`."""
        here = ref.at[self.batch, pl.ds(start, size), self.head, :]
        if length % size == 0:
            return plgpu.load(here)
        inside = _tokens(start, size) < length
        return plgpu.load(here, mask=inside[:, None], other=0.0)

    def store(self, ref: Any, value: Array, length: int) -> None:
        """The row's tokens [size, d] into ref [b, t, heads, d]."""
        size = value.shape[0]
        here = ref.at[self.batch, pl.ds(self.start, size), self.head, :]
        inside = None if length % size == 0 else (_tokens(self.start, size) < length)[:, None]
        plgpu.store(here, value.astype(ref.dtype), mask=inside)

    def load_row(self, ref: Any, start: Array, size: int, padding: float) -> Array:
        """Values [size] of ref [b, heads, t] from `start`; `padding` past its end."""
        here = ref.at[self.batch, self.head, pl.ds(start, size)]
        length = ref.shape[2]
        if length % size == 0:
            return plgpu.load(here)
        return plgpu.load(here, mask=_tokens(start, size) < length, other=padding)

    def store_row(self, ref: Any, value: Array) -> None:
        """The row's values [size] into ref [b, heads, t]."""
        size, length = value.shape[0], ref.shape[2]
        here = ref.at[self.batch, self.head, pl.ds(self.start, size)]
        plgpu.store(
            here, value, mask=None if length % size == 0 else _tokens(self.start, size) < length
        )

    def visit(self, step: Callable[..., Any], carry: Any) -> Any:
        """Fold `step(start, look, carry)` over the listed tiles' blocks.

        start: first token of the block of the other side; look: what the mask says of the block.
        Partial tiles come first, full ones in a loop of their own without a mask.
        """
        shape, parts = self.shape, jnp.int32(self.shape.visit_parts)
        ragged = shape.k_len % shape.tile_k != 0

        def block(at: Array, carry: Any, partial: bool) -> Any:
            entry, part = lax.div(at, parts), lax.rem(at, parts)
            where = (*self._shared(self._index), self._row, entry)
            tile = self._index[where]
            inner = part * (shape.block_q if shape.inverse else shape.block_k)
            start = tile * (shape.tile_q if shape.inverse else shape.tile_k) + inner
            look = self._look(entry, inner) if partial else Look(None)
            if ragged:
                inside = _tokens(self.start if shape.inverse else start, shape.block_k)
                inside = inside < shape.k_len
                inside = inside[:, None] if shape.inverse else inside[None, :]
                allowed = inside if look.allowed is None else look.allowed & inside
                look = look._replace(allowed=allowed)
            return step(start, look, carry)

        middle, end = self._partial * parts, self._count * parts
        if self._masks.words is not None or self._masks.pairs is not None:
            carry = lax.fori_loop(0, middle, lambda at, carry: block(at, carry, True), carry)
        return lax.fori_loop(middle, end, lambda at, carry: block(at, carry, False), carry)

    def _look(self, entry: Array, inner: Array) -> Look:
        """What the mask says of a partial tile's block, `inner` tokens into it."""
        shape = self.shape
        own = self._part * (shape.block_k if shape.inverse else shape.block_q)
        row, column = (inner, own) if shape.inverse else (own, inner)
        slot = self._slot[(*self._shared(self._slot), self._row, entry)]
        rows = pl.ds(jnp.maximum(slot, 0) * shape.tile_q + row, shape.block_q)
        if self._masks.pairs is None:
            return Look(self._bits(slot, rows, column))
        pairs, numbers = self._masks.pairs, self._masks.numbers
        columns = pl.ds(column, shape.block_k)
        found = plgpu.load(pairs.at[(*self._shared(pairs), rows, columns)])
        found = jnp.where(slot >= 0, found, EXCLUDED_PAIR)
        attraction, penalty, allowed = decode(found.T if shape.inverse else found)
        at = self._shared(numbers)
        bias = numbers[(*at, 0)] * attraction - numbers[(*at, 1)] * penalty
        slope = numbers[(*at, 2)] * attraction - penalty
        return Look(allowed & (bias > WEAKEST), bias, slope)

    def _bits(self, slot: Array, rows: Any, column: Array) -> Array:
        """What a partial tile's bits allow: bool [the row's tokens, the block's]."""
        shape, words = self.shape, self._masks.words
        count = shape.block_k // 32
        chosen = pl.ds(lax.div(column, jnp.int32(32)), count)
        found = plgpu.load(words.at[(*self._shared(words), rows, chosen)])
        found = jnp.where(slot >= 0, found, 0)
        # The bits of a word get an axis of their own, which then joins that of the words.
        if shape.inverse:
            spread, axis, joined = found.T[:, None, :], 1, (shape.block_k, shape.block_q)
        else:
            spread, axis, joined = found[:, :, None], 2, (shape.block_q, shape.block_k)
        sizes = tuple(32 if i == axis else size for i, size in enumerate(spread.shape))
        bit = lax.broadcasted_iota(jnp.int32, sizes, axis)
        allowed = lax.shift_right_arithmetic(jnp.broadcast_to(spread, sizes), bit)
        return lax.bitwise_and(allowed, jnp.int32(1)).reshape(joined) != 0


def _tokens(start: Array, size: int) -> Array:
    return start + lax.broadcasted_iota(jnp.int32, (size,), 0)


def _dot(a: Array, b: Array, *, trans_b: bool = False) -> Array:
    exact = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return plgpu.dot(a, b, trans_b=trans_b, precision=exact)


def _masked(look: Look, logits: Array) -> Array:
    logits = logits if look.bias is None else logits + look.bias
    return logits if look.allowed is None else jnp.where(look.allowed, logits, -jnp.inf)


def forward_kernel(
    shape: KernelShape, tables: tuple[Any, ...], masks: Masks, q, k, v, out, lse
) -> None:
    """Output [b, t, heads, d] and LSE [b, heads, t] of a block of queries."""
    program = _Program(shape, tables, masks)
    query = program.load(q, program.start, shape.block_q, shape.q_len)

    def step(start: Array, look: Look, carry: Any) -> Any:
        top, total, found = carry
        key = program.load(k, start, shape.block_k, shape.k_len)
        logits = _masked(look, _dot(query, key, trans_b=True) * (shape.scale * LOG2_E))
        new_top = jnp.maximum(top, jnp.max(logits, axis=1))
        # A row that has seen nothing keeps -inf, which must not meet itself in a difference.
        base = jnp.where(new_top > -jnp.inf, new_top, 0.0)
        weights = jnp.exp2(logits - base[:, None])
        decay = jnp.exp2(top - base)
        value = program.load(v, start, shape.block_k, shape.k_len)
        found = found * decay[:, None] + _dot(weights.astype(value.dtype), value)
        return new_top, total * decay + jnp.sum(weights, axis=1), found

    start = (
        jnp.full((shape.block_q,), -jnp.inf, jnp.float32),
        jnp.zeros((shape.block_q,), jnp.float32),
        jnp.zeros((shape.block_q, v.shape[-1]), jnp.float32),
    )
    top, total, found = program.visit(step, start)
    some = total > 0
    total = jnp.where(some, total, 1.0)
    program.store(out, found / total[:, None], shape.q_len)
    program.store_row(lse, jnp.where(some, top / LOG2_E + jnp.log(total), -jnp.inf))


def backward_q_kernel(
    shape: KernelShape,
    tables: tuple[Any, ...],
    masks: Masks,
    q,
    k,
    v,
    d_out,
    lse,
    delta,
    dq,
    *slope,
) -> None:
    """dq of a block of queries, and [b, heads, t] of a soft mask: the strength's slope by row."""
    program = _Program(shape, tables, masks)
    query, d_row = (program.load(x, program.start, shape.block_q, shape.q_len) for x in (q, d_out))
    top = program.load_row(lse, program.start, shape.block_q, jnp.inf) * LOG2_E
    offset = program.load_row(delta, program.start, shape.block_q, 0.0)

    def step(start: Array, look: Look, carry: Any) -> Any:
        found, *slopes = carry
        key, value = (program.load(x, start, shape.block_k, shape.k_len) for x in (k, v))
        logits = _masked(look, _dot(query, key, trans_b=True) * (shape.scale * LOG2_E))
        weights = jnp.exp2(logits - top[:, None])
        d_logits = weights * (_dot(d_row, value, trans_b=True) - offset[:, None])
        if look.slope is not None:
            slopes = [x + jnp.sum(d_logits * look.slope, axis=1) for x in slopes]
        return found + _dot(d_logits.astype(key.dtype), key), *slopes

    start = [jnp.zeros((shape.block_q,), jnp.float32) for _ in slope]
    found, *slopes = program.visit(step, (jnp.zeros(query.shape, jnp.float32), *start))
    program.store(dq, found * shape.scale, shape.q_len)
    for ref, value in zip(slope, slopes, strict=True):
        program.store_row(ref, value)


def backward_kv_kernel(
    shape: KernelShape, tables: tuple[Any, ...], masks: Masks, q, k, v, d_out, lse, delta, dk, dv
) -> None:
    """dk and dv of a block of keys, over the query tiles that see it."""
    program = _Program(shape, tables, masks)
    key, value = (program.load(x, program.start, shape.block_k, shape.k_len) for x in (k, v))

    def step(start: Array, look: Look, carry: Any) -> Any:
        dk, dv = carry
        query, d_row = (program.load(x, start, shape.block_q, shape.q_len) for x in (q, d_out))
        top = program.load_row(lse, start, shape.block_q, jnp.inf) * LOG2_E
        offset = program.load_row(delta, start, shape.block_q, 0.0)
        # Keys by queries, so that the products below take the weights as they are.
        logits = _masked(look, _dot(key, query, trans_b=True) * (shape.scale * LOG2_E))
        weights = jnp.exp2(logits - top[None, :])
        dv = dv + _dot(weights.astype(d_row.dtype), d_row)
        d_logits = weights * (_dot(value, d_row, trans_b=True) - offset[None, :])
        return dk + _dot(d_logits.astype(query.dtype), query), dv

    start = jnp.zeros(key.shape, jnp.float32), jnp.zeros(value.shape, jnp.float32)
    found_k, found_v = program.visit(step, start)
    program.store(dk, found_k * shape.scale, shape.k_len)
    program.store(dv, found_v, shape.k_len)
