"""Tile sizes tuned per device, as data: experiments/attention_bench.py measures them."""

import functools
import json
from pathlib import Path
from typing import NamedTuple

from pallas_kernels.target_device import target_of

__all__ = ["TileSizes", "best_tiles"]

_TABLE = Path(__file__).with_name("tile_sizes.json")


class TileSizes(NamedTuple):
    """Tokens per tile of a mask, and where the figures are from."""

    tile_q: int
    tile_k: int
    source: str


def best_tiles(device_kind: str | None = None) -> TileSizes:
    """Tile sizes for a correspondence mask on a device.

    device_kind: what jax calls it, by default the one that programs are compiled for in this
    context (`target_of`). A kind that has no entry of its own has that of the longest entry that
    it begins with ("TPU v5e": "TPU"); one that has none at all is no error but has tiles of 128,
    which every implementation takes.
    """
    kind = target_of().kind if device_kind is None else device_kind
    found = max((name for name in _read() if kind.startswith(name)), key=len, default=None)
    return TileSizes(128, 128, "no entry for this device") if found is None else _read()[found]


@functools.cache
def _read() -> dict[str, TileSizes]:
    return {name: TileSizes(**entry) for name, entry in json.loads(_TABLE.read_text()).items()}
