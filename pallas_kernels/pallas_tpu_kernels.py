"""The bodies of the TPU kernels: one row of listed tiles, for a group of heads.

References that a body gets: the row of `make_rows`, blocks of the program's own tokens
[heads, tile, d], whole arrays in HBM whose listed tiles are fetched, the mask's arrays, results,
and scratch memory.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.pallas_tpu_walk import (
    EXCLUDED,
    LOG2E,
    dot,
    each_head,
    spread,
    token_stream,
    walk,
)

__all__ = ["forward_body", "key_body", "query_body"]


def _first_head(heads: int) -> tuple[Any, Any, Any]:
    """Sample, mask head, and the first attention head of this program."""
    batch, mask_head, group = (pl.program_id(i) for i in range(3))
    return batch, mask_head, (mask_head * pl.num_programs(2) + group) * heads


def _fetched(pairs, first, heads: int, batch, tile: int) -> list:
    """Streams of token arrays [b, heads, t, d], tiles of `tile` tokens."""
    return [
        token_stream(hbm.at[batch, pl.ds(first, heads)], buffer, tile, 1) for hbm, buffer in pairs
    ]


def forward_body(
    row, q, k_hbm, v_hbm, mask_refs, out, lse, k, v, top, total, acc, mask_scratch, semaphores,
    *, mask, factor: float, tiles: int, tile: int,
):  # fmt: skip
    """Output and LSE of a query tile."""
    heads, lanes = top.shape[0], top.shape[-1]
    batch, mask_head, first = _first_head(heads)
    top[...] = jnp.full_like(top, EXCLUDED)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)
    mask.start(mask_refs, mask_scratch)

    def compute(step, buffer, masked):
        if masked:
            mask.evaluate(mask_scratch, buffer)

        def one(head):
            logits = dot(q[head], k[buffer, head], (1, 1)) * factor
            width = logits.shape[1]
            if masked:
                logits = logits + mask.bias(mask_scratch, head)
            before = top[head]
            now = jnp.maximum(before, jnp.max(logits, axis=1, keepdims=True))
            weights = jnp.exp2(logits - spread(now, width))
            decay = jnp.exp2(before - now)
            # Lanes are summed at the end of the row only.
            added = sum(weights[:, i : i + lanes] for i in range(0, width, lanes))
            top[head] = now
            total[head] = decay * total[head] + added
            value = v[buffer, head]
            product = dot(weights.astype(value.dtype), value, (1, 0))
            acc[head] = spread(decay, acc.shape[-1]) * acc[head] + product

        each_head(heads, one)

    streams = _fetched(((k_hbm, k), (v_hbm, v)), first, heads, batch, tile)
    masks = mask.streams(mask_refs, mask_scratch, batch, mask_head)
    walk(row, tiles, streams, masks, semaphores, compute)

    def finish(head):
        highest = top[head]
        some = highest > 0.5 * EXCLUDED
        whole = jnp.sum(total[head], axis=1, keepdims=True)
        whole = jnp.where(some, jnp.broadcast_to(whole, some.shape), 1.0)
        share = jnp.where(some, 1.0 / whole, 0.0)
        out[head] = (acc[head] * spread(share, acc.shape[-1])).astype(out.dtype)
        value = jnp.where(some, highest / LOG2E + jnp.log(whole), -jnp.inf)
        lse[head] = jnp.transpose(value)[:1]

    each_head(heads, finish)


def query_body(
    row, q, d_out, stats, k_hbm, v_hbm, mask_refs, dq, k, v, columns, acc, mask_scratch, semaphores,
    *, mask, factor: float, scale: float, tiles: int, tile: int,
):  # fmt: skip
    """dq of a query tile. stats [heads, 2, tile]: LSE in powers of two, and delta."""
    heads = acc.shape[0]
    batch, mask_head, first = _first_head(heads)
    acc[...] = jnp.zeros_like(acc)
    mask.start(mask_refs, mask_scratch)
    lanes = columns.shape[-1]

    def prepare(head):
        for i in range(2):
            line = jnp.broadcast_to(stats[head, pl.ds(i, 1)], (lanes, columns.shape[2]))
            columns[head, i] = jnp.transpose(line)

    each_head(heads, prepare)

    def compute(step, buffer, masked):
        if masked:
            mask.evaluate(mask_scratch, buffer)

        def one(head):
            key = k[buffer, head]
            logits = dot(q[head], key, (1, 1)) * factor
            width = logits.shape[1]
            if masked:
                logits = logits + mask.bias(mask_scratch, head)
            weights = jnp.exp2(logits - spread(columns[head, 0], width))
            d_weights = dot(d_out[head], v[buffer, head], (1, 1))
            d_logits = weights * (d_weights - spread(columns[head, 1], width))
            acc[head] += dot(d_logits.astype(key.dtype), key, (1, 0))

        each_head(heads, one)

    streams = _fetched(((k_hbm, k), (v_hbm, v)), first, heads, batch, tile)
    masks = mask.streams(mask_refs, mask_scratch, batch, mask_head)
    walk(row, tiles, streams, masks, semaphores, compute)
    dq[...] = (acc[...] * scale).astype(dq.dtype)


def key_body(
    row, k, v, q_hbm, d_hbm, stats_hbm, mask_refs, dk, dv, q, d_out, stats, k_acc, v_acc,
    mask_scratch, semaphores,
    *, mask, factor: float, scale: float, tiles: int, tile: int,
):  # fmt: skip
    """dk and dv of a key tile; all pairs stand as [keys, queries], so that stats are rows."""
    heads = k_acc.shape[0]
    batch, mask_head, first = _first_head(heads)
    k_acc[...] = jnp.zeros_like(k_acc)
    v_acc[...] = jnp.zeros_like(v_acc)
    mask.start(mask_refs, mask_scratch)

    def compute(step, buffer, masked):
        if masked:
            mask.evaluate(mask_scratch, buffer)

        def one(head):
            query, d_row = q[buffer, head], d_out[buffer, head]
            logits = dot(k[head], query, (1, 1)) * factor
            if masked:
                logits = logits + mask.bias(mask_scratch, head)
            lse, delta = (stats[buffer, head, pl.ds(i, 1)] for i in range(2))
            weights = jnp.exp2(logits - lse)
            v_acc[head] += dot(weights.astype(d_row.dtype), d_row, (1, 0))
            d_weights = dot(v[head], d_row, (1, 1))
            d_logits = weights * (d_weights - delta)
            k_acc[head] += dot(d_logits.astype(query.dtype), query, (1, 0))

        each_head(heads, one)

    streams = _fetched(((q_hbm, q), (d_hbm, d_out)), first, heads, batch, tile)
    streams.append(token_stream(stats_hbm.at[batch, pl.ds(first, heads)], stats, tile, 2))
    masks = mask.streams(mask_refs, mask_scratch, batch, mask_head)
    walk(row, tiles, streams, masks, semaphores, compute)
    dk[...] = (k_acc[...] * scale).astype(dk.dtype)
    dv[...] = v_acc[...].astype(dv.dtype)
