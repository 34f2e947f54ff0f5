"""By which masks, and in which orders, the target's tokens read references and entries.

One curve through the world for all sequences: tiles of either meet few of the other. Views stay
together, since each attends to all of itself. Entries come along the same curve, but have no say in
how it runs: what the target reads of references is the same with and without them.
"""

import typing

from pallas_kernels import (
    BlockMask,
    TokenGeometry,
    TokenOrder,
    bounding_box,
    order_geometry,
    order_tokens,
    pack_partial_tiles,
    pack_soft_tiles,
)
from worldstereo_jax.models.worldstereo import StreamOrder
from worldstereo_jax.sampling.reading import READING, Reading

MOST_NUMBERS = 1 << 28
"""Bytes that a soft constraint's numbers may take, to be looked into once and not in each layer."""


class Pattern(typing.NamedTuple):
    """How target tokens read; a batch axis of 1 serves all clips.

    mask: over [references ; target] in their orders; None for the dense pattern. order: of both;
    None for the order in which they lie. entry_mask: of the target's tokens in their order by the
    entries in theirs. entry_order: of the entries. Both are None without entries.
    """

    mask: BlockMask | None
    order: StreamOrder | None
    entry_mask: BlockMask | None = None
    entry_order: TokenOrder | None = None


def token_pattern(
    wanted: TokenGeometry,
    seen: TokenGeometry | None,
    entries: TokenGeometry | None,
    *,
    reading: Reading = READING,
) -> Pattern:
    """The masks and orders of a batch of clips (rows S14, S17, S20).

    Args:
        wanted: of the target's tokens.
        seen: of the references' tokens; None where attention to them is dense: the target then
            keeps the order in which it lies, so that nothing of it changes with entries.
        entries: of the entries, None without.
        reading: what builds the masks.
    """
    mask = order = entry_mask = entry_order = None
    box = bounding_box(wanted)
    if seen is not None:
        box = bounding_box(seen, wanted)
        seen_order = order_tokens(seen, box=box, major=seen.frame)
        wanted_order = order_tokens(wanted, box=box)
        wanted = order_geometry(wanted, wanted_order)
        mask = evaluated(reading.reference_mask(order_geometry(seen, seen_order), wanted))
        order = StreamOrder(target=wanted_order, references=seen_order)
    if entries is not None:
        entry_order = order_tokens(entries, box=box)
        entry_mask = evaluated(reading.entry_mask(order_geometry(entries, entry_order), wanted))
    return Pattern(mask, order, entry_mask, entry_order)


def evaluated(mask: BlockMask) -> BlockMask:
    """The mask with its geometry evaluated: all layers share it, so once, not once a layer.

    There is room for all pairs of tokens, so that none is ever lost: a bit each of a hard mask (256
    MB at 45,240 tokens), four bytes of a soft one, whose strength stays a variable. A soft one that
    would take more than MOST_NUMBERS stays as it is.
    """
    if not mask.soft:
        return pack_partial_tiles(mask)
    pairs = mask.q_tiles * mask.tile_q * mask.k_tiles * mask.tile_k
    fits = 4 * pairs * mask.batch * mask.heads <= MOST_NUMBERS
    return pack_soft_tiles(mask) if fits else mask
