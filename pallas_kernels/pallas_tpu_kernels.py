"""The bodies of the TPU kernels: one row of listed tiles, for a group of heads.

References that a body gets: the row of `make_rows`, blocks of the program's own tokens
[heads, tile, d], whole arrays in HBM whose listed tiles are fetched, the mask's arrays, results,
and scratch memory. Products of several heads are written side by side, so that one's latency
hides behind the others.
"""

from typing import Any

import jax.numpy as jnp
from jax.experimental import pallas as pl

from pallas_kernels.pallas_tpu_walk import (
    EXCLUDED,
    LOG2E,
    dot,
    each_head,
    heads_together,
    some_heads,
    spread,
    token_stream,
    walk,
)

__all__ = ["forward_body", "key_body", "query_body"]


class _Group:
    """The heads of a program, and its mask."""

    def __init__(self, heads: int, mask: Any, refs: Any, scratch: Any):
        self.batch, self.mask_head, group = (pl.program_id(i) for i in range(3))
        self.first = (self.mask_head * pl.num_programs(2) + group) * heads
        self.heads = heads
        self.mask, self.refs, self.scratch = mask, refs, scratch

    def fetched(self, pairs, tile: int, axis: int = 1) -> list:
        """Streams of token arrays [b, heads, ...], tiles of `tile` tokens along axis + 1."""
        first, heads = self.first, self.heads
        return [
            token_stream(hbm.at[self.batch, pl.ds(first, heads)], buffer, tile, axis)
            for hbm, buffer in pairs
        ]

    def masks(self) -> list:
        """Streams of the mask."""
        return list(self.mask.streams(self.refs, self.scratch, self.batch, self.mask_head))

    def evaluate(self, buffer, slots) -> None:
        """Look at the mask of a step."""
        self.mask.evaluate(self.refs, self.scratch, buffer, slots)

    def biased(self, logits: list, heads) -> list:
        """Logits of some heads under the mask."""
        place = self.refs, self.scratch, self.batch
        return [
            x + self.mask.bias(*place, self.first + head)
            for x, head in zip(logits, heads, strict=True)
        ]

    def slope(self, head):
        """Derivative of the bias of a head by the strength."""
        return self.mask.slope(self.refs, self.scratch, self.batch, self.first + head)


def forward_body(
    row, q, k_hbm, v_hbm, mask_refs, out, lse, k, v, top, total, acc, mask_scratch, semaphores,
    *, mask, factor: float, tiles: int, tile: int,
):  # fmt: skip
    """Output and LSE of a query tile."""
    heads, own, lanes = top.shape
    width = tiles * tile
    group = _Group(heads, mask, mask_refs, mask_scratch)
    top[...] = jnp.full_like(top, EXCLUDED)
    total[...] = jnp.zeros_like(total)
    acc[...] = jnp.zeros_like(acc)

    def compute(buffer, masked, slots):
        if masked:
            group.evaluate(buffer, slots)

        def some(chosen):
            logits = [dot(q[h], k[buffer, h], (1, 1)) * factor for h in chosen]
            if masked:
                logits = group.biased(logits, chosen)
            before = [top[h] for h in chosen]
            now = [
                jnp.maximum(b, jnp.max(x, axis=1, keepdims=True))
                for b, x in zip(before, logits, strict=True)
            ]
            weights = [jnp.exp2(x - spread(n, width)) for x, n in zip(logits, now, strict=True)]
            products = [
                dot(w.astype(v.dtype), v[buffer, h], (1, 0))
                for w, h in zip(weights, chosen, strict=True)
            ]
            for i, h in enumerate(chosen):
                decay = jnp.exp2(before[i] - now[i])
                # Lanes are summed at the end of the row only.
                added = sum(weights[i][:, at : at + lanes] for at in range(0, width, lanes))
                top[h] = now[i]
                total[h] = decay * total[h] + added
                acc[h] = spread(decay, acc.shape[-1]) * acc[h] + products[i]

        some_heads(heads, heads_together(heads, own * width), some)

    streams = group.fetched(((k_hbm, k), (v_hbm, v)), tile)
    walk(row, tiles, streams, group.masks(), semaphores, compute)

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
    row, q, d_out, stats, k_hbm, v_hbm, mask_refs, *rest,
    mask, factor: float, scale: float, tiles: int, tile: int,
):  # fmt: skip
    """dq of a query tile. stats [heads, 2, tile]: LSE in powers of two, and delta.

    Of a soft mask also the gradient of the strength, [heads, 1, lanes].
    """
    dq, *slope, k, v, columns, acc, slopes, mask_scratch, semaphores = rest
    heads, own, _ = acc.shape
    lanes, width = columns.shape[-1], tiles * tile
    group = _Group(heads, mask, mask_refs, mask_scratch)
    acc[...] = jnp.zeros_like(acc)
    for each in slopes:
        each[...] = jnp.zeros_like(each)

    def prepare(head):
        for i in range(2):
            line = jnp.broadcast_to(stats[head, pl.ds(i, 1)], (lanes, own))
            columns[head, i] = jnp.transpose(line)

    each_head(heads, prepare)

    def compute(buffer, masked, slots):
        if masked:
            group.evaluate(buffer, slots)

        def some(chosen):
            logits = [dot(q[h], k[buffer, h], (1, 1)) * factor for h in chosen]
            d_weights = [dot(d_out[h], v[buffer, h], (1, 1)) for h in chosen]
            if masked:
                logits = group.biased(logits, chosen)
            weights = [
                jnp.exp2(x - spread(columns[h, 0], width))
                for x, h in zip(logits, chosen, strict=True)
            ]
            d_logits = [
                w * (d - spread(columns[h, 1], width))
                for w, d, h in zip(weights, d_weights, chosen, strict=True)
            ]
            products = [
                dot(d.astype(k.dtype), k[buffer, h], (1, 0))
                for d, h in zip(d_logits, chosen, strict=True)
            ]
            for i, h in enumerate(chosen):
                acc[h] += products[i]
                if masked:
                    for each in slopes:
                        lines = jnp.sum(d_logits[i] * group.slope(h), axis=0, keepdims=True)
                        each[h] += sum(lines[:, at : at + lanes] for at in range(0, width, lanes))

        some_heads(heads, heads_together(heads, own * width), some)

    streams = group.fetched(((k_hbm, k), (v_hbm, v)), tile)
    walk(row, tiles, streams, group.masks(), semaphores, compute)
    dq[...] = (acc[...] * scale).astype(dq.dtype)
    for result, each in zip(slope, slopes, strict=True):
        result[...] = each[...]


def key_body(
    row, k, v, q_hbm, d_hbm, stats_hbm, mask_refs, dk, dv, q, d_out, stats, k_acc, v_acc,
    mask_scratch, semaphores,
    *, mask, factor: float, scale: float, tiles: int, tile: int,
):  # fmt: skip
    """dk and dv of a key tile; all pairs stand as [keys, queries], so that stats are rows."""
    heads, own, _ = k_acc.shape
    group = _Group(heads, mask, mask_refs, mask_scratch)
    k_acc[...] = jnp.zeros_like(k_acc)
    v_acc[...] = jnp.zeros_like(v_acc)

    def compute(buffer, masked, slots):
        if masked:
            group.evaluate(buffer, slots)

        def some(chosen):
            logits = [dot(k[h], q[buffer, h], (1, 1)) * factor for h in chosen]
            d_weights = [dot(v[h], d_out[buffer, h], (1, 1)) for h in chosen]
            if masked:
                logits = group.biased(logits, chosen)
            weights = [
                jnp.exp2(x - stats[buffer, h, pl.ds(0, 1)])
                for x, h in zip(logits, chosen, strict=True)
            ]
            values = [
                dot(w.astype(d_out.dtype), d_out[buffer, h], (1, 0))
                for w, h in zip(weights, chosen, strict=True)
            ]
            d_logits = [
                w * (d - stats[buffer, h, pl.ds(1, 1)])
                for w, d, h in zip(weights, d_weights, chosen, strict=True)
            ]
            keys = [
                dot(d.astype(q.dtype), q[buffer, h], (1, 0))
                for d, h in zip(d_logits, chosen, strict=True)
            ]
            for i, h in enumerate(chosen):
                v_acc[h] += values[i]
                k_acc[h] += keys[i]

        some_heads(heads, heads_together(heads, own * tiles * tile), some)

    streams = group.fetched(((q_hbm, q), (d_hbm, d_out)), tile)
    streams += group.fetched(((stats_hbm, stats),), tile, axis=2)
    walk(row, tiles, streams, group.masks(), semaphores, compute)
    dk[...] = (k_acc[...] * scale).astype(dk.dtype)
    dv[...] = v_acc[...].astype(dv.dtype)
