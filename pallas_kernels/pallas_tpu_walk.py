"""How a TPU kernel walks a row of listed tiles: fetched a step ahead, masked only where needed."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from pallas_kernels.pallas_tpu_plan import HEADER

__all__ = [
    "EXCLUDED",
    "LOG2E",
    "Stream",
    "dot",
    "each_head",
    "heads_together",
    "lanes_of",
    "some_heads",
    "spread",
    "token_stream",
    "walk",
]

# Added to a logit that the mask excludes: finite, so that a difference of two is no NaN.
EXCLUDED = -1e30
# Kernels count logits in powers of two, which the hardware has.
LOG2E = math.log2(math.e)
_PAIRS = 512 * 512

# (place within the step, tile, slot, buffer) -> source and destination of a copy.
Stream = Callable[[int, Array, Array, Array], tuple[Any, Any]]


def token_stream(source: Any, buffer: Any, tile: int, axis: int) -> Stream:
    """Tiles of tokens along `axis` of `source`, laid side by side in buffer[0] and buffer[1]."""

    def copy(place: int, listed: Array, slot: Array, at: Array):
        start = pl.multiple_of(listed * tile, tile)
        before = (slice(None),) * axis
        origin = source.at[(*before, pl.ds(start, tile))]
        return origin, buffer.at[(at, *before, pl.ds(place * tile, tile))]

    return copy


def walk(
    row: Any,
    tiles: int,
    streams: Sequence[Stream],
    masks: Sequence[Stream],
    semaphores: Any,
    compute: Callable[[Array, bool, Sequence[Array]], None],
) -> None:
    """Call `compute(buffer, masked, slots)` for all steps of a row, its tiles fetched by then.

    row: reference [1, width] to numbers laid out by `make_rows`. `masks` are fetched for the steps
    that need the mask only. semaphores: one per buffer and stream, [2, streams + masks].
    """
    capacity = (row.shape[-1] - HEADER) // 2
    head, end, total = (row[0, i] for i in range(3))

    def needs_mask(step: Array) -> Array:
        return (step < head) | (step >= end)

    def listed(step: Array) -> list[tuple[Array, Array]]:
        places = (HEADER + step * tiles + place for place in range(tiles))
        return [(row[0, at], row[0, at + capacity]) for at in places]

    def each(step: Array, act: Callable[[Any], None]) -> None:
        buffer = lax.bitwise_and(step, 1)

        def copies(chosen: Sequence[Stream], first: int) -> None:
            for place, (tile, slot) in enumerate(listed(step)):
                for i, stream in enumerate(chosen):
                    source, target = stream(place, tile, slot, buffer)
                    act(pltpu.make_async_copy(source, target, semaphores.at[buffer, first + i]))

        copies(streams, 0)
        pl.when(needs_mask(step))(lambda: copies(masks, len(streams)))

    def body(at: Array, _: None) -> None:
        # Once more than there are steps: the first time only fetches.
        pl.when(at < total)(lambda: each(at, lambda copy: copy.start()))
        step = at - 1

        @pl.when(step >= 0)
        def _arrived() -> None:
            each(step, lambda copy: copy.wait())
            buffer = lax.bitwise_and(step, 1)
            masked = needs_mask(step)
            slots = [slot for _, slot in listed(step)]
            pl.when(masked)(lambda: compute(buffer, True, slots))
            pl.when(jnp.logical_not(masked))(lambda: compute(buffer, False, slots))

    lax.fori_loop(0, jnp.where(total > 0, total + 1, 0), body, None)


def dot(a: Array, b: Array, contract: tuple[int, int]) -> Array:
    """Product in float32 over the given axes; exact products for float32 operands too."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else lax.Precision.DEFAULT
    axes = (((contract[0],), (contract[1],)), ((), ()))
    return lax.dot_general(a, b, axes, precision=precision, preferred_element_type=jnp.float32)


def lanes_of(width: int) -> int:
    """Lanes that statistics per row are repeated over, for compute tiles of `width` columns."""
    return math.gcd(width, 128)


def spread(x: Array, width: int) -> Array:
    """Columns [rows, lanes], all equal, as [rows, width]."""
    lanes = x.shape[1]
    if width > lanes:
        x = jnp.tile(x, (1, -(-width // lanes)))
    return x[:, :width]


def each_head(heads: int, body: Callable[[Any], None]) -> None:
    """Call body(head) for every head of the group, one after the other."""
    some_heads(heads, 1, lambda chosen: body(chosen[0]))


def some_heads(heads: int, together: int, body: Callable[[Sequence[Any]], None]) -> None:
    """Call body([head, ...]) for all heads of the group, `together` at a time."""
    if together == heads:
        body(range(heads))
        return

    def step(at: Any, _: None) -> None:
        body([at * together + i for i in range(together)])

    lax.fori_loop(0, heads // together, step, None)


def heads_together(heads: int, pairs: int) -> int:
    """How many heads are computed side by side, for compute tiles of so many pairs.

    Of a small tile every product waits for the one before; those of other heads fill the time.
    """
    return max(n for n in range(1, heads + 1) if heads % n == 0 and n * pairs <= max(_PAIRS, pairs))
