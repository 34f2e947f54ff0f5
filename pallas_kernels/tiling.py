"""How much a backend computes at once: frozen configurations, and the choice of them."""

import dataclasses

import jax

__all__ = ["ChunkConfig", "choose_chunks"]


@dataclasses.dataclass(frozen=True)
class ChunkConfig:
    """Step of the chunked backend: rows of tiles side by side, and listed tiles per row."""

    rows: int
    tiles: int

    def __post_init__(self):
        if self.rows < 1 or self.tiles < 1:
            raise ValueError(f"rows and tiles must be at least 1, got {self.rows}, {self.tiles}")


def choose_chunks(
    *, items: int, capacity: int, heads: int, tile_q: int, tile_k: int, platform: str | None = None
) -> ChunkConfig:
    """Chunk sizes for `items` rows with lists of `capacity` tiles, `heads` heads in each.

    A CPU does one row at a time with as many listed tiles as leave the logits in its cache; other
    devices need many rows at once to be busy. `platform` defaults to jax's default backend.
    """
    platform = jax.default_backend() if platform is None else platform
    tile_bytes = 4 * heads * tile_q * tile_k
    tiles = max(1, min(capacity, 4, (1 << 20) // tile_bytes))
    if platform == "cpu":
        return ChunkConfig(rows=1, tiles=tiles)
    tiles = min(capacity, max(1, 512 // tile_k))
    rows = max(1, min(items, (256 << 20) // (tile_bytes * tiles)))
    return ChunkConfig(rows=rows, tiles=tiles)
