"""The calls of the TPU kernels: grids, blocks and memory."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.block_mask import BlockMask
from pallas_kernels.compat import output_like
from pallas_kernels.pallas_tpu_kernels import forward_body, key_body, query_body
from pallas_kernels.pallas_tpu_masks import mask_entries, mask_source
from pallas_kernels.pallas_tpu_plan import TpuConfig, make_rows
from pallas_kernels.pallas_tpu_walk import LOG2E, lanes_of

__all__ = ["backward_keys", "backward_queries", "forward"]


def _by_head(x: Array, tile: int) -> Array:
    """[b, t, heads, ...] -> [b, heads, whole tiles, ...]."""
    margins = [(0, 0), (0, -x.shape[1] % tile)] + [(0, 0)] * (x.ndim - 2)
    return jnp.swapaxes(jnp.pad(x, margins), 1, 2)


def _by_token(x: Array, length: int) -> Array:
    return jnp.swapaxes(x, 1, 2)[:, :length]


class _Call:
    """Grid and blocks of a kernel whose programs own a tile each of `tokens` padded tokens.

    The grid is (sample, mask head, group of heads, own tile).
    """

    def __init__(
        self, mask: BlockMask, strength: Array | None, config: TpuConfig, batch: int, heads: int,
        *, inverse: bool,
    ):  # fmt: skip
        self.heads = config.heads
        self.groups = heads // mask.heads // config.heads
        self.batch, self.all_heads = batch, heads
        self.lists = mask.queries if inverse else mask.keys
        self.own, self.other = (mask.tile_k, mask.tile_q) if inverse else (mask.tile_q, mask.tile_k)
        self.tiles = config.query_tiles if inverse else config.key_tiles
        self.width = self.tiles * self.other
        self.count = self.lists.count.shape[2]
        self.grid = (batch, mask.heads, self.groups, self.count)
        self.mask = mask_source(
            mask, strength, tiles=self.tiles, inverse=inverse, batch=batch, heads=heads
        )
        entries = mask_entries(mask, self.mask, inverse=inverse)
        ragged = not inverse and mask.k_len % mask.tile_k != 0
        self.rows = make_rows(self.lists, entries, tiles=self.tiles, ragged=ragged)

    def row_spec(self) -> Any:
        """One row of the lists, in scalar memory."""
        shared = self.rows.shape[0] == 1

        def place(b, m, g, i):
            return (0 if shared else b, m, i, 0, 0)

        shape = (None, None, None, 1, self.rows.shape[-1])
        return pl.BlockSpec(shape, place, memory_space=pltpu.SMEM)

    def own_spec(self, *tail: int) -> Any:
        """The own tile's tokens of a group of heads, [heads, own, *tail]."""
        return self._spec((self.own, *tail), lambda i: (i, *(0,) * len(tail)))

    def line_spec(self, lines: int) -> Any:
        """The own tile's tokens along the last axis, [heads, lines, own]."""
        return self._spec((lines, self.own), lambda i: (0, i))

    def _spec(self, tail: tuple, place: Callable) -> Any:
        groups = self.groups
        return pl.BlockSpec(
            (None, self.heads, *tail), lambda b, m, g, i: (b, m * groups + g, *place(i))
        )

    def buffer(self, *shape: int, dtype: Any = jnp.float32) -> Any:
        """Two buffers for all heads of the group."""
        return pltpu.VMEM((2, self.heads, *shape), dtype)

    def scratch(self, *shape: int) -> Any:
        """float32 memory for all heads of the group."""
        return pltpu.VMEM((self.heads, *shape), jnp.float32)

    def tile_spec(self, lanes: int) -> Any:
        """A line per own tile, [heads, 1, lanes]."""
        groups = self.groups
        shape = (None, self.heads, None, 1, lanes)
        return pl.BlockSpec(shape, lambda b, m, g, i: (b, m * groups + g, i, 0, 0))

    def tile_shape(self, lanes: int) -> tuple:
        """Of a result with a line per own tile."""
        return (self.batch, self.all_heads, self.count, 1, lanes), jnp.float32

    def shape(self, dtype: Any, *tail: int, lines: int | None = None) -> tuple:
        """Of a result over all heads and tokens."""
        tokens = self.count * self.own
        middle = (tokens,) if lines is None else (lines, tokens)
        return (self.batch, self.all_heads, *middle, *tail), dtype

    def __call__(
        self, body: Callable, own: Sequence, others: Sequence, results: Sequence,
        scratch: Sequence, *, name: str, interpret: Any, operands: Any,
    ) -> Any:  # fmt: skip
        """Run the kernel. own: (array, spec); others stay in HBM; results: trees of (shape, spec).

        A shape is (sizes, dtype).
        """
        body = functools.partial(body, mask=self.mask, tiles=self.tiles, tile=self.other)
        hbm = pl.BlockSpec(memory_space=pltpu.HBM)
        semaphores = pltpu.SemaphoreType.DMA((2, len(others) + 1))
        call = pl.pallas_call(
            body,
            grid=self.grid,
            in_specs=(
                self.row_spec(),
                *(spec for _, spec in own),
                *(hbm for _ in others),
                self.mask.specs,
            ),
            out_specs=tuple(spec for _, spec in results),
            out_shape=tuple(output_like(*shape, operands) for shape, _ in results),
            scratch_shapes=(*scratch, self.mask.scratch, semaphores),
            compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel",) * 4),
            name=name,
            interpret=interpret,
        )
        return call(self.rows, *(x for x, _ in own), *others, self.mask.operands)


def forward(
    scale: float, config: TpuConfig, interpret: Any, q: Array, k: Array, v: Array,
    strength: Array | None, mask: BlockMask,
) -> tuple[Array, Array]:  # fmt: skip
    """Output [b, tq, heads, dv] and LSE [b, tq, heads]."""
    call = _Call(mask, strength, config, q.shape[0], q.shape[2], inverse=False)
    queries, keys, values = (
        _by_head(x, tile) for x, tile in ((q, mask.tile_q), (k, mask.tile_k), (v, mask.tile_k))
    )
    d, dv, lanes = q.shape[-1], v.shape[-1], lanes_of(call.width)
    out, lse = call(
        functools.partial(forward_body, factor=scale * LOG2E),
        [(queries, call.own_spec(d))],
        [keys, values],
        [
            (call.shape(q.dtype, dv), call.own_spec(dv)),
            (call.shape(jnp.float32, lines=1), call.line_spec(1)),
        ],
        [
            call.buffer(call.width, d, dtype=k.dtype),
            call.buffer(call.width, dv, dtype=v.dtype),
            call.scratch(call.own, lanes),
            call.scratch(call.own, lanes),
            call.scratch(call.own, dv),
        ],
        name="block_sparse_forward",
        interpret=interpret,
        operands=(q, k, v, strength, mask),
    )
    return _by_token(out, mask.q_len), _by_token(lse[:, :, 0], mask.q_len)


def _statistics(lse: Array, delta: Array, tile: int) -> Array:
    """LSE in powers of two, and delta, [b, heads, 2, whole tiles]; rows without keys weigh 0."""
    lse = jnp.where(lse > -jnp.inf, lse * LOG2E, jnp.inf)
    extra = ((0, 0), (0, -lse.shape[1] % tile), (0, 0))
    both = jnp.pad(lse, extra, constant_values=jnp.inf), jnp.pad(delta, extra)
    return jnp.moveaxis(jnp.stack(both, axis=1), 3, 1)


def backward_queries(
    scale: float, config: TpuConfig, interpret: Any,
    q: Array, k: Array, v: Array, d_out: Array, lse: Array, delta: Array,
    strength: Array | None, mask: BlockMask, *, strength_asked: bool,
) -> tuple[Array, Array | None]:  # fmt: skip
    """dq [b, tq, heads, d], and the strength's gradient [b, heads] where it is asked for."""
    call = _Call(mask, strength, config, q.shape[0], q.shape[2], inverse=False)
    d, dv, lanes = q.shape[-1], v.shape[-1], lanes_of(call.width)
    dq, *slope = call(
        functools.partial(query_body, factor=scale * LOG2E, scale=scale),
        [
            (_by_head(q, mask.tile_q), call.own_spec(d)),
            (_by_head(d_out, mask.tile_q), call.own_spec(dv)),
            (_statistics(lse, delta, mask.tile_q), call.line_spec(2)),
        ],
        [_by_head(k, mask.tile_k), _by_head(v, mask.tile_k)],
        [
            (call.shape(q.dtype, d), call.own_spec(d)),
            *([(call.tile_shape(lanes), call.tile_spec(lanes))] if strength_asked else []),
        ],
        [
            call.buffer(call.width, d, dtype=k.dtype),
            call.buffer(call.width, dv, dtype=v.dtype),
            call.scratch(2, call.own, lanes),
            call.scratch(call.own, d),
            (call.scratch(1, lanes),) if strength_asked else (),
        ],
        name="block_sparse_backward_queries",
        interpret=interpret,
        operands=(q, k, v, d_out, lse, delta, strength, mask),
    )
    slopes = jnp.sum(slope[0], axis=(2, 3, 4)) if strength_asked else None
    return _by_token(dq, mask.q_len), slopes


def backward_keys(
    scale: float, config: TpuConfig, interpret: Any,
    q: Array, k: Array, v: Array, d_out: Array, lse: Array, delta: Array,
    strength: Array | None, mask: BlockMask,
) -> tuple[Array, Array]:  # fmt: skip
    """dk [b, tk, heads, d] and dv [b, tk, heads, dv]."""
    call = _Call(mask, strength, config, q.shape[0], q.shape[2], inverse=True)
    d, dv = q.shape[-1], v.shape[-1]
    dk, d_value = call(
        functools.partial(key_body, factor=scale * LOG2E, scale=scale),
        [
            (_by_head(k, mask.tile_k), call.own_spec(d)),
            (_by_head(v, mask.tile_k), call.own_spec(dv)),
        ],
        [
            _by_head(q, mask.tile_q),
            _by_head(d_out, mask.tile_q),
            _statistics(lse, delta, mask.tile_q),
        ],
        [
            (call.shape(k.dtype, d), call.own_spec(d)),
            (call.shape(v.dtype, dv), call.own_spec(dv)),
        ],
        [
            call.buffer(call.width, d, dtype=q.dtype),
            call.buffer(call.width, dv, dtype=d_out.dtype),
            call.buffer(2, call.width),
            call.scratch(call.own, d),
            call.scratch(call.own, dv),
        ],
        name="block_sparse_backward_keys",
        interpret=interpret,
        operands=(q, k, v, d_out, lse, delta, strength, mask),
    )
    return _by_token(dk, mask.k_len), _by_token(d_value, mask.k_len)
