"""Block-sparse attention in plain XLA, for any device: loops over listed tiles only (row S32).

Rows of tiles are taken a few at a time, longest first, and each group loops to its longest list;
memory is bounded by the step, work is proportional to the active tiles. The backward pass walks
the key lists once for dq and the inverse lists once for dk and dv, so that every sum has one fixed
order (deterministic).
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jaxtyping import Float

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.chunk_schedule import (
    Rows,
    Schedule,
    listed_tiles,
    make_schedule,
    restore_rows,
    run_schedule,
)
from pallas_kernels.compat import reduce_like, vary_like
from pallas_kernels.fills import TileIndex
from pallas_kernels.folding import fold_vmap
from pallas_kernels.geometry import Pairs
from pallas_kernels.tiling import ChunkConfig, choose_chunks

__all__ = ["chunked_attention"]


def chunked_attention(
    q: Float[Array, "b tq heads d"],
    k: Float[Array, "b tk heads d"],
    v: Float[Array, "b tk heads dv"],
    mask: BlockMask,
    scale: float,
    config: ChunkConfig | None = None,
) -> tuple[Float[Array, "b tq heads dv"], Float[Array, "b tq heads"]]:
    """Attention and LSE as `reference_attention` defines them, without a [tq, tk] array.

    `config` sets the chunk sizes; by default `tiling.choose_chunks` does.
    """
    return _attention(
        float(scale), config, q, k, v, mask.strength, dataclasses.replace(mask, strength=None)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(scale, config, q, k, v, strength, mask):
    return _attention_forward(scale, config, q, k, v, strength, mask)[0]


def _attention_forward(scale, config, q, k, v, strength, mask):
    run = fold_vmap(functools.partial(_forward, scale, config))
    out, lse = run(q, k, v, strength, mask)
    return (out, lse), (q, k, v, strength, mask, out, lse)


def _attention_backward(scale, config, saved, cotangents):
    q, k, v, strength, mask, out, lse = saved
    d_out, d_lse = cotangents
    some = lse > -jnp.inf
    delta = jnp.sum(d_out.astype(jnp.float32) * out.astype(jnp.float32), axis=-1)
    delta = jnp.where(some, delta - d_lse, 0.0)
    # exp(logit - inf) = 0: rows that see nothing get nothing.
    lse = jnp.where(some, lse, jnp.inf)
    rows = (q, k, v, d_out, lse, delta)
    walk = functools.partial(_backward_q, scale, config)
    dq, d_strength = fold_vmap(walk)(*rows, strength, mask)
    walk = functools.partial(_backward_kv, scale, config)
    dk, dv = fold_vmap(walk)(*rows, strength, mask)
    dq, dk, dv = (reduce_like(*pair) for pair in ((dq, q), (dk, k), (dv, v)))
    if strength is None:
        return dq, dk, dv, None, None
    for axis in (0, 1):
        if strength.shape[axis] == 1:
            d_strength = jnp.sum(d_strength, axis=axis, keepdims=True)
    return dq, dk, dv, reduce_like(d_strength, strength), None


_attention.defvjp(_attention_forward, _attention_backward)


class _Problem:
    """Shapes of one walk: the mask's heads are `groups`, each for `shared` attention heads."""

    def __init__(self, operands: tuple, mask: BlockMask, config: ChunkConfig | None, inverse: bool):
        self.batch, _, heads, _ = operands[0].shape
        self.groups = mask.heads
        self.shared = heads // self.groups
        self.mask = mask
        self.operands = (operands, mask)
        lists = mask.queries if inverse else mask.keys
        config = config or choose_chunks(
            items=self.batch * self.groups * lists.count.shape[2],
            capacity=lists.index.shape[3],
            heads=self.shared,
            tile_q=mask.tile_q,
            tile_k=mask.tile_k,
        )
        self.schedule: Schedule = make_schedule(lists, self.batch, config)
        self.inverse = inverse

    def tiles(self, x: Array, tile: int, padding: float = 0.0) -> Array:
        """[b, t, heads, ...] -> [b, groups, n, shared, tile, ...]."""
        extra = -x.shape[1] % tile
        margins = [(0, 0), (0, extra)] + [(0, 0)] * (x.ndim - 2)
        x = jnp.pad(x, margins, constant_values=padding)
        x = x.reshape(self.batch, -1, tile, self.groups, self.shared, *x.shape[3:])
        return jnp.moveaxis(x, (3, 1, 4, 2), (1, 2, 3, 4))

    def tokens(self, x: Array, length: int) -> Array:
        """[groups, w, shared, tile, ...] of the schedule -> [b, t, heads, ...]."""
        x = jnp.moveaxis(restore_rows(x, self.schedule), (1, 2, 3, 4), (3, 1, 4, 2))
        x = x.reshape(self.batch, -1, self.groups * self.shared, *x.shape[5:])
        return x[:, :length]

    def strengths(self, strength: Array | None, rows: Rows) -> Array | None:
        """[b or 1, heads or 1] -> [w, shared, 1, 1] for the rows' samples and heads."""
        if strength is None:
            return None
        table = jnp.broadcast_to(strength, (self.batch, self.groups * self.shared))
        table = table.reshape(self.batch, self.groups, self.shared)
        return table[rows.batch, rows.head][..., None, None]

    def zeros(self, *shape: int, value: float = 0.0) -> Array:
        """Start of a loop's carry, float32."""
        return vary_like(jnp.full(shape, value, jnp.float32), self.operands)

    def step(self, rows: Rows, at: Array) -> tuple[Array, Pairs]:
        """Listed tiles [w, n] of a step, and their pairs, [w, tile_q, n * tile_k].

        Of the inverse lists: [w, n * tile_q, tile_k]. The predicate is skipped where no tile of
        the step is partial.
        """
        mask = self.mask
        tiles, partial, listed = listed_tiles(rows, at, self.schedule.tiles)
        own = jnp.broadcast_to(rows.tile[:, None], tiles.shape)
        q, k = (tiles, own) if self.inverse else (own, tiles)
        index = TileIndex(rows.batch, rows.head, q, k)

        def flat(x):
            w, n = tiles.shape
            if self.inverse:
                return x.reshape(w, n * mask.tile_q, mask.tile_k)
            return jnp.swapaxes(x, 1, 2).reshape(w, mask.tile_q, n * mask.tile_k)

        whole = listed[..., None, None]
        if mask.k_len % mask.tile_k:
            column = jnp.arange(mask.tile_k, dtype=jnp.int32)[None, None, None, :]
            whole = whole & (k[..., None, None] * mask.tile_k + column < mask.k_len)
        whole = jnp.broadcast_to(whole, (*tiles.shape, mask.tile_q, mask.tile_k))
        if mask.fill is None:
            return tiles, Pairs(flat(whole))

        def evaluate():
            pairs = mask.fill.evaluate(index, mask.tile_q, mask.tile_k)
            free = ~partial[..., None, None]
            return pairs.restricted(whole & (pairs.allowed | free)).free_where(free)

        def skip():
            zero = jnp.zeros(whole.shape, jnp.float32)
            return Pairs(whole, zero, zero) if mask.soft else Pairs(whole)

        def varying(branch):
            return lambda: jax.tree.map(lambda x: vary_like(x, self.operands), branch())

        pairs = lax.cond(jnp.any(partial), varying(evaluate), varying(skip))
        return tiles, jax.tree.map(flat, pairs)


def _each_head(one: Callable[..., Any]) -> Callable[..., Any]:
    """`one`, for all heads that share a mask: axis 1 of all its operands and results."""
    return jax.vmap(one, in_axes=1, out_axes=1)


_dot = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)


def _gather(x: Array, rows: Rows, tiles: Array) -> Array:
    """Tiles of x [b, groups, n, shared, tile, ...] -> [w, shared, listed * tile, ...]."""
    x = jnp.moveaxis(x[rows.batch[:, None], rows.head[:, None], tiles], 1, 2)
    return x.reshape(*x.shape[:2], -1, *x.shape[4:])


def _masked(logits: Array, pairs: Pairs, strength: Array | None) -> Array:
    """Logits [w, rows, columns] of a head with the soft constraint, -inf where not allowed."""
    if strength is not None:
        logits = logits + pairs.bias(strength)
    return jnp.where(pairs.allowed, logits, -jnp.inf)


def _forward(scale, config, q, k, v, strength, mask):
    problem = _Problem((q, k, v, strength), mask, config, inverse=False)
    q_tiles = problem.tiles(q, mask.tile_q)
    k_tiles, v_tiles = (problem.tiles(x, mask.tile_k) for x in (k, v))

    def group(rows: Rows, trips: Array):
        query = q_tiles[rows.batch, rows.head, rows.tile]
        strengths = problem.strengths(strength, rows)

        def step(at, carry):
            tiles, pairs = problem.step(rows, at)

            def one(query, key, value, strength, top, total, out):
                logits = _masked(_dot("wqd,wkd->wqk", query, key) * scale, pairs, strength)
                new_top = jnp.maximum(top, jnp.max(logits, axis=-1))
                # A row that has seen nothing keeps -inf: it must not meet itself in a difference.
                base = jnp.where(new_top > -jnp.inf, new_top, 0.0)
                weights = jnp.exp(logits - base[..., None])
                decay = jnp.exp(top - base)
                added = _dot("wqk,wkd->wqd", weights.astype(v.dtype), value)
                total = total * decay + jnp.sum(weights, axis=-1)
                return new_top, total, out * decay[..., None] + added

            key, value = (_gather(x, rows, tiles) for x in (k_tiles, v_tiles))
            return _each_head(one)(query, key, value, strengths, *carry)

        shape = query.shape[:3]
        start = (
            problem.zeros(*shape, value=-jnp.inf),
            problem.zeros(*shape),
            problem.zeros(*shape, v.shape[-1]),
        )
        top, total, out = lax.fori_loop(0, trips, step, start)
        some = total > 0
        total = jnp.where(some, total, 1.0)
        lse = jnp.where(some, jnp.where(some, top, 0.0) + jnp.log(total), -jnp.inf)
        return (out / total[..., None]).astype(q.dtype), lse

    out, lse = run_schedule(problem.schedule, group)
    return problem.tokens(out, mask.q_len), problem.tokens(lse, mask.q_len)


def _backward_q(scale, config, q, k, v, d_out, lse, delta, strength, mask):
    """dq, and the strength's gradient [b, heads]."""
    problem = _Problem((q, k, v, d_out, lse, delta, strength), mask, config, inverse=False)
    q_tiles, d_tiles = (problem.tiles(x, mask.tile_q) for x in (q, d_out))
    lse_tiles = problem.tiles(lse, mask.tile_q, jnp.inf)
    delta_tiles = problem.tiles(delta, mask.tile_q)
    k_tiles, v_tiles = (problem.tiles(x, mask.tile_k) for x in (k, v))

    def group(rows: Rows, trips: Array):
        row = [
            x[rows.batch, rows.head, rows.tile] for x in (q_tiles, d_tiles, lse_tiles, delta_tiles)
        ]
        strengths = problem.strengths(strength, rows)

        def step(at, carry):
            tiles, pairs = problem.step(rows, at)

            def one(query, d_row, lse, delta, key, value, strength, dq, slope):
                logits = _masked(_dot("wqd,wkd->wqk", query, key) * scale, pairs, strength)
                weights = jnp.exp(logits - lse[..., None])
                d_weights = _dot("wqd,wkd->wqk", d_row, value)
                d_logits = weights * (d_weights - delta[..., None])
                if strength is not None:
                    slope = slope + jnp.sum(d_logits * pairs.bias_slope(strength), axis=(1, 2))
                return dq + _dot("wqk,wkd->wqd", d_logits.astype(k.dtype), key), slope

            key, value = (_gather(x, rows, tiles) for x in (k_tiles, v_tiles))
            return _each_head(one)(*row, key, value, strengths, *carry)

        start = (problem.zeros(*row[0].shape), problem.zeros(*row[0].shape[:2]))
        dq, slope = lax.fori_loop(0, trips, step, start)
        return (dq * scale).astype(q.dtype), slope

    dq, slope = run_schedule(problem.schedule, group)
    slope = jnp.sum(restore_rows(slope, problem.schedule), axis=2)
    return problem.tokens(dq, mask.q_len), slope.reshape(problem.batch, -1)


def _backward_kv(scale, config, q, k, v, d_out, lse, delta, strength, mask):
    problem = _Problem((q, k, v, d_out, lse, delta, strength), mask, config, inverse=True)
    q_tiles, d_tiles = (problem.tiles(x, mask.tile_q) for x in (q, d_out))
    lse_tiles = problem.tiles(lse, mask.tile_q, jnp.inf)
    delta_tiles = problem.tiles(delta, mask.tile_q)
    k_tiles, v_tiles = (problem.tiles(x, mask.tile_k) for x in (k, v))

    def group(rows: Rows, trips: Array):
        key, value = (x[rows.batch, rows.head, rows.tile] for x in (k_tiles, v_tiles))
        strengths = problem.strengths(strength, rows)

        def step(at, carry):
            tiles, pairs = problem.step(rows, at)

            def one(key, value, query, d_row, lse, delta, strength, dk, dv):
                logits = _masked(_dot("wqd,wkd->wqk", query, key) * scale, pairs, strength)
                weights = jnp.exp(logits - lse[..., None])
                dv = dv + _dot("wqk,wqd->wkd", weights.astype(d_out.dtype), d_row)
                d_weights = _dot("wqd,wkd->wqk", d_row, value)
                d_logits = weights * (d_weights - delta[..., None])
                return dk + _dot("wqk,wqd->wkd", d_logits.astype(q.dtype), query), dv

            row = [_gather(x, rows, tiles) for x in (q_tiles, d_tiles, lse_tiles, delta_tiles)]
            return _each_head(one)(key, value, *row, strengths, *carry)

        start = (problem.zeros(*key.shape), problem.zeros(*value.shape))
        dk, dv = lax.fori_loop(0, trips, step, start)
        return (dk * scale).astype(k.dtype), dv.astype(v.dtype)

    dk, dv = run_schedule(problem.schedule, group)
    return problem.tokens(dk, mask.k_len), problem.tokens(dv, mask.k_len)
