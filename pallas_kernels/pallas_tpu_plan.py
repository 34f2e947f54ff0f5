"""What the TPU kernels read instead of a mask: rows of listed tiles in steps."""

import dataclasses

import jax.numpy as jnp
from jax import Array
from jaxtyping import Int

from pallas_kernels.block_mask import BlockMask, TileLists

__all__ = [
    "EMPTY_SLOT",
    "FIRST_SLOT",
    "FULL_SLOT",
    "HEADER",
    "RAGGED_SLOT",
    "Entries",
    "TpuConfig",
    "choose_config",
    "make_rows",
    "slot_entries",
]

# Slots of every row: what is listed nowhere, a full tile, a full tile that ends the keys.
EMPTY_SLOT, FULL_SLOT, RAGGED_SLOT, FIRST_SLOT = 0, 1, 2, 3
# Numbers before the lists in a row: see `make_rows`.
HEADER = 8
_WIDTH = 512  # tokens of a compute tile, along the lists
_MOST_HEADS = 5  # 40 heads over 8 chips leave groups of 5


@dataclasses.dataclass(frozen=True)
class TpuConfig:
    """Size of a kernel's step.

    heads       heads that share a mask and are computed together: the predicate is evaluated once.
    key_tiles   listed key tiles gathered into one compute tile (forward, dq).
    query_tiles listed query tiles gathered into one compute tile (dk and dv).
    """

    heads: int
    key_tiles: int
    query_tiles: int

    def __post_init__(self):
        if min(self.heads, self.key_tiles, self.query_tiles) < 1:
            raise ValueError(f"heads and tiles must be at least 1, got {self}")

    def check(self, mask: BlockMask, heads: int) -> None:
        """Raise ValueError unless `heads` attention heads make whole groups under the mask."""
        if heads // mask.heads % self.heads:
            raise ValueError(
                f"{heads} heads, of which {heads // mask.heads} share a mask, cannot be computed "
                f"in groups of {self.heads}"
            )


def choose_config(mask: BlockMask, heads: int, token_bytes: int = 256) -> TpuConfig:
    """Compute tiles of 512 tokens, or all there are; up to 5 of the heads that share a mask.

    token_bytes: of a token of one head in memory, where it takes whole registers of 128 numbers.
    Fewer heads of larger ones fit the 16 MiB that a kernel may use on the smallest chips.
    """
    shared = heads // mask.heads
    most = max(1, _MOST_HEADS * 256 // token_bytes)
    group = max(n for n in range(1, most + 1) if shared % n == 0)

    def gathered(tile: int, tiles: int) -> int:
        return max(1, min(_WIDTH // tile, tiles))

    return TpuConfig(
        heads=group,
        key_tiles=gathered(mask.tile_k, mask.k_tiles),
        query_tiles=gathered(mask.tile_q, mask.q_tiles),
    )


@dataclasses.dataclass(frozen=True)
class Entries:
    """What a row says of each listed tile's mask.

    partial  int32 [b, heads, rows, columns], of the partial tiles; None when any number will do.
    empty, full, ragged  of what is listed nowhere, a full tile, a full tile that ends the keys.
    """

    partial: Int[Array, "b heads rows columns"] | None
    empty: int
    full: int
    ragged: int


def slot_entries(slot: Int[Array, "b heads rows columns"] | None) -> Entries:
    """Slots: those of the partial tiles (-1: none) after three of every row's own."""
    own = None if slot is None else jnp.where(slot >= 0, slot + FIRST_SLOT, EMPTY_SLOT)
    return Entries(own, EMPTY_SLOT, FULL_SLOT, RAGGED_SLOT)


def make_rows(
    lists: TileLists, entries: Entries, *, tiles: int, ragged: bool
) -> Int[Array, "b heads rows 1 width"]:
    """Lists as the kernels read them, one row of int32 at a time.

    A row is HEADER numbers, then the listed tiles, then their entries, both padded to whole steps
    of `tiles`. Steps [0, header[0]) and [header[1], header[2]) need the mask, the ones between do
    not. A padded entry names tile 0 and is empty.
    `ragged`: the last column's tile ends the tokens, so that even a full one needs the mask.
    """
    b, heads, rows, capacity = lists.index.shape
    columns = capacity
    position = jnp.arange(capacity, dtype=jnp.int32)[None, None, None]
    listed = position < lists.count[..., None]
    partial = position < lists.partial[..., None]
    if entries.partial is None:
        own = jnp.full_like(lists.index, FIRST_SLOT)
    else:
        own = jnp.broadcast_to(entries.partial, (b, heads, rows, columns))
        own = jnp.take_along_axis(own, lists.index, axis=-1)
    last = (lists.index == columns - 1) & listed & ~partial
    last = last if ragged else jnp.zeros_like(last)
    kind = jnp.where(last, entries.ragged, entries.full)
    kind = jnp.where(listed, jnp.where(partial, own, kind), entries.empty)
    whole = lists.count - jnp.any(last, axis=-1)
    head = -(-lists.partial // tiles)
    end = jnp.maximum(head, whole // tiles)
    total = -(-lists.count // tiles)
    header = jnp.stack([head, end, total], axis=-1)
    header = jnp.pad(header, ((0, 0),) * 3 + ((0, HEADER - 3),))
    extra = -capacity % tiles
    margins = ((0, 0),) * 3 + ((0, extra),)
    kind = jnp.pad(kind, margins, constant_values=entries.empty)
    parts = (header, jnp.pad(lists.index, margins), kind)
    return jnp.concatenate([x.astype(jnp.int32) for x in parts], axis=-1)[:, :, :, None]
