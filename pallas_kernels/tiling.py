"""How much a backend computes at once: frozen configurations, and the choice of them."""

import dataclasses

from pallas_kernels.target_device import target_of

__all__ = ["ChunkConfig", "choose_chunks"]


@dataclasses.dataclass(frozen=True)
class ChunkConfig:
    """Step of the chunked backend.

    rows   rows of tiles computed side by side.
    tiles  listed tiles taken at once per row.
    """

    rows: int
    tiles: int

    def __post_init__(self):
        if self.rows < 1 or self.tiles < 1:
            raise ValueError(f"rows and tiles must be at least 1, got {self.rows}, {self.tiles}")


def choose_chunks(
    *, items: int, capacity: int, heads: int, tile_q: int, tile_k: int, platform: str | None = None
) -> ChunkConfig:
    """Chunk sizes for `items` rows with lists of `capacity` tiles, `heads` heads in each.

    A CPU takes one listed tile at a time, which leaves the logits in its cache (faster than two or
    four, at 1 to 6 heads and tiles of 64 and 128), and looks into partial tiles only; other
    devices need many rows at once to be busy. `platform` defaults to that
    which the program is compiled for.
    """
    platform = target_of().platform if platform is None else platform
    if platform == "cpu":
        return ChunkConfig(rows=1, tiles=1)
    tile_bytes = 4 * heads * tile_q * tile_k
    tiles = min(capacity, max(1, 512 // tile_k))
    rows = max(1, min(items, (256 << 20) // (tile_bytes * tiles)))
    return ChunkConfig(rows=rows, tiles=tiles)
