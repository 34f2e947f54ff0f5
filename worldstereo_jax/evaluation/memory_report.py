"""What a spatial-stereo memory holds: counts, confidence, bytes, and how its views overlap."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Bool, Float, Int, ndarray
from worldstereo_jax.geometry.cameras import strided_intrinsics
from worldstereo_jax.memory.correspondence import dense_correspondence
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_codec import QuantisedEntries, bytes_per_entry
from worldstereo_jax.memory.entry_views import count_views
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory

CONFIDENCE_BINS = 10

MOST_ASKED = 2_000_000
"""Pixels of all views together that are looked for in each view; of more, evenly spread ones."""


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Figures of one memory.

    Attributes:
        views: number of stored views, v.
        sources: views per clip that they come from, clip number -> count.
        known: share of pixels with depth, of each view [v].
        confidence: histogram of the confidence of known pixels, `CONFIDENCE_BINS` bins over 0..1.
        shared: [v, v], share of the known pixels of view i that correspond to a pixel of view j; of
            many views, of evenly spread pixels (see `MOST_ASKED`).
        bytes_per_view: of the keyframe fields, uncompressed.
    """

    views: int
    sources: dict[int, int]
    known: Float[ndarray, "v"]
    confidence: Int[ndarray, "bins"]
    shared: Float[ndarray, "v v"]
    bytes_per_view: int


@dataclasses.dataclass(frozen=True)
class EntryReport:
    """Figures of a bank of surface entries.

    Attributes:
        entries: entries held.
        overflow: entries that found no room.
        widths: channels of each level of the pyramid, finest first.
        levels: entries whose level of the pyramid is filled, per level.
        confidence: histogram of their confidence, `CONFIDENCE_BINS` bins over 0..1.
        views: histogram of the number of views that saw an entry, from 0 on.
        bytes_per_entry: as it is stored.
    """

    entries: int
    overflow: int
    widths: tuple[int, ...]
    levels: tuple[int, ...]
    confidence: Int[ndarray, "bins"]
    views: Int[ndarray, "views"]
    bytes_per_entry: int


def report_entries(bank: EntryBank | QuantisedEntries) -> EntryReport:
    """Figures of the entries; empty slots do not count."""
    is_quantised = isinstance(bank, QuantisedEntries)
    rest, levels = (bank.rest, bank.codes) if is_quantised else (bank, bank.features)
    held = np.flatnonzero(np.asarray(rest.valid))
    histogram, _ = np.histogram(
        np.asarray(rest.confidence)[held], bins=CONFIDENCE_BINS, range=(0.0, 1.0)
    )
    # Codes may hold two channels to a byte; scales never do.
    channels = bank.scales if is_quantised else bank.features
    return EntryReport(
        entries=len(held),
        overflow=int(rest.overflow),
        widths=tuple(level.shape[-1] for level in channels),
        levels=tuple(int(np.asarray(level)[held].any(-1).sum()) for level in levels),
        confidence=histogram,
        views=np.bincount(np.asarray(count_views(rest.views))[held]),
        bytes_per_entry=bytes_per_entry(bank)["total"],
    )


@functools.partial(jax.jit, static_argnames="stride")
def shared_surface(
    depth: Float[Array, "v h w"],
    w2c: Float[Array, "v 4 4"],
    intrinsics: Float[Array, "v 3 3"],
    valid: Bool[Array, "v"],
    *,
    stride: int = 1,
) -> Float[Array, "v v"]:
    """Share of each view's known pixels (row) that another view (column) shows too (row S8).

    Every `stride`-th pixel along both axes is asked about.
    """
    first = stride // 2
    asked = depth[:, first::stride, first::stride]
    lenses = strided_intrinsics(intrinsics, stride)

    def shown_by(view: tuple[Array, Array, Array, Array]) -> Array:
        *other, is_there = view

        def one(mine: tuple[Array, Array, Array]) -> Array:
            _, found = dense_correspondence(*mine, *other, most_drift=1.0 / stride)
            return found.sum() / jnp.maximum((mine[0] > 0).sum(), 1)

        # Views by the dozen: what is made of the other view is made once for them.
        share = jax.lax.map(one, (asked, w2c, lenses), batch_size=16)
        return jnp.where(is_there, share, 0.0)

    return jax.lax.map(shown_by, (depth, w2c, intrinsics, valid)).T


def report_stride(views: int, height: int, width: int) -> int:
    """Pixels from one that is asked about to the next, so that `MOST_ASKED` are not exceeded."""
    stride = 1
    while views * -(-height // stride) * -(-width // stride) > MOST_ASKED:
        stride += 1
    return stride


def report_memory(memory: SpatialStereoMemory) -> MemoryReport:
    """Figures of the stored views; empty slots do not count."""
    held = np.flatnonzero(np.asarray(memory.valid))
    depth = np.asarray(memory.depth)[held]
    confidence = np.asarray(memory.confidence)[held]
    known = depth > 0
    histogram, _ = np.histogram(confidence[known], bins=CONFIDENCE_BINS, range=(0.0, 1.0))
    numbers, counts = np.unique(np.asarray(memory.source)[held], return_counts=True)
    shared = np.zeros((len(held), len(held)), np.float32)
    if len(held):
        part = [jnp.asarray(np.asarray(a)[held]) for a in (memory.w2c, memory.intrinsics)]
        shared = np.asarray(
            shared_surface(
                jnp.asarray(depth),
                *part,
                jnp.ones(len(held), bool),
                stride=report_stride(*depth.shape),
            ),
            np.float32,
        )
    fields = (memory.images, memory.depth, memory.confidence, memory.w2c, memory.intrinsics)
    return MemoryReport(
        views=len(held),
        sources={int(n): int(c) for n, c in zip(numbers, counts, strict=True)},
        known=known.mean((1, 2)) if len(held) else np.zeros(0),
        confidence=histogram,
        shared=shared,
        bytes_per_view=sum(field[0].nbytes for field in fields) if memory.capacity else 0,
    )
