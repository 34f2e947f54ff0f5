"""The entry bank: small surface patches with features, fused from every frame that saw them.

An entry is a surfel (point-based fusion, Keller et al. 2013) that carries a feature pyramid. What
it stores are weighted means with their weights, so that fusing is a sum: the order in which
frames come does not matter (row S12), and two banks can be merged (row S33). Measurements are
taken on lines through `anchor`, the place where the entry was first put, and compared with the line
along which it was first seen, and not with moving means, for the same reason.
"""

import dataclasses
import typing
from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Int, Shaped, UInt32
from worldstereo_jax.errors import InputError

COUNTERS = ("count", "overflow", "uncounted")
"""Fields of a bank that have no entry axis."""


@dataclasses.dataclass(frozen=True)
class EntryConfig:
    """Sizes of an entry bank.

    capacity: most entries held. widths: channels of each level of the pyramid, finest first, at
    least one level (three by default, see `entry_features`). views: how many views can be told
    apart in the bitsets; rounded up to a multiple of 32, and a capacity like the other: frames
    beyond it are counted (`EntryBank.uncounted`).
    """

    capacity: int
    widths: tuple[int, ...] = (27, 27, 27)
    views: int = 64

    def __post_init__(self) -> None:
        if min(self.capacity, self.views, len(self.widths), *self.widths) < 1:
            raise InputError(
                "an entry bank needs a capacity, views, levels and widths of at least 1, got "
                f"capacity {self.capacity}, views {self.views} and widths {self.widths}"
            )

    @property
    def words(self) -> int:
        """32-bit words of one bitset over the views."""
        return -(-self.views // 32)


@typing.no_type_check
@flax.struct.dataclass
class EntryBank:
    """At most n entries; slots below `count` are in use, and hold an entry where `valid`.

    position [n, 3]: fused, world units (row S3). anchor [n, 3]: where the entry was first put; eye
    [n, 3]: the camera that saw it there. normal [n, 3]: unit, facing the cameras; 0 = unknown (row
    S4). normal_agreement [n]: length of the mean of the unit normals, 1 = all the same. footprint
    [n]: world size of one pixel of the sharpest view. direction [n, 3]: mean of the unit vectors to
    the cameras. distance [n]: mean distance to them. views [n, words]: bitset of the views that saw
    it; denied [n, words]: of those whose depth speaks against it (row S5). confidence [n]: 0 .. 1
    (row S6), from support [n] and against [n], the summed confidence of either, and from the
    variances. inherited [n]: the largest confidence of the frames that show it with depth that they
    read from the memory itself: it speaks for the entry where no more was measured, once however
    many such frames come. through [n]: the part of against that comes from frames that looked
    through it at something behind. beyond [n, 4]: the part that comes from frames whose surface
    lies too far away to be the same one, and the sum of what colours they show there, times their
    confidence (row S24). observations [n]: int32, frames fused. information [n]: 1 / variance of
    the position, 1 / world units squared. scatter [n]: weighted variance of the measured positions,
    world units squared. features: tuple over levels of [n, c], finest first (row S1).
    feature_weight [n]: sum of their weights, 1 / world units squared. feature_variance [n]:
    weighted variance of the first level, mean over its channels. appearance [n, 18]: how its colour
    goes with the view, see `entry_appearance` (row S24). edge [n]: share of the frames that saw it
    beside a jump of depth, 0 .. 1 (row S22). spacing [n]: distance to its neighbours on the surface
    when it was put there, in footprints, widened when pruning takes neighbours away (row S30).
    valid [n]. protected [n]: never pruned. source [n]: int32, number of the clip that put it there.
    count []: int32, slots in use. overflow []: int32, entries that found no room. uncounted []:
    int32, frames whose number has no bit: they are fused, but a repetition of them would be taken
    for another frame.
    """

    position: Float[Array, "n 3"]
    anchor: Float[Array, "n 3"]
    eye: Float[Array, "n 3"]
    normal: Float[Array, "n 3"]
    normal_agreement: Float[Array, "n"]
    footprint: Float[Array, "n"]
    direction: Float[Array, "n 3"]
    distance: Float[Array, "n"]
    views: UInt32[Array, "n words"]
    denied: UInt32[Array, "n words"]
    confidence: Float[Array, "n"]
    support: Float[Array, "n"]
    inherited: Float[Array, "n"]
    against: Float[Array, "n"]
    through: Float[Array, "n"]
    beyond: Float[Array, "n 4"]
    observations: Int[Array, "n"]
    information: Float[Array, "n"]
    scatter: Float[Array, "n"]
    features: tuple[Float[Array, "n c"], ...]
    feature_weight: Float[Array, "n"]
    feature_variance: Float[Array, "n"]
    appearance: Float[Array, "n 18"]
    edge: Float[Array, "n"]
    spacing: Float[Array, "n"]
    valid: Bool[Array, "n"]
    protected: Bool[Array, "n"]
    source: Int[Array, "n"]
    count: Int[Array, ""]
    overflow: Int[Array, ""]
    uncounted: Int[Array, ""]

    @property
    def capacity(self) -> int:
        """Most entries the bank can hold."""
        return self.position.shape[0]

    @property
    def backing(self) -> Float[Array, "n"]:
        """Confidence that speaks for each entry: what was measured, or, if more, inherited.

        What was read from the memory repeats what was measured already, so it adds nothing to it.
        """
        return jnp.maximum(self.support, self.inherited)

    @property
    def config(self) -> EntryConfig:
        """Sizes with which `init_entries` makes a bank of the same shapes."""
        widths = tuple(level.shape[-1] for level in self.features)
        return EntryConfig(self.capacity, widths, 32 * self.views.shape[-1])


def init_entries(config: EntryConfig) -> EntryBank:
    """Allocate an empty bank; every buffer is its own, so that all can be donated."""
    n, words = config.capacity, config.words

    def zeros(*shape: int) -> Array:
        return jnp.zeros(shape, jnp.float32)

    return EntryBank(
        position=zeros(n, 3),
        anchor=zeros(n, 3),
        eye=zeros(n, 3),
        normal=zeros(n, 3),
        normal_agreement=zeros(n),
        footprint=zeros(n),
        direction=zeros(n, 3),
        distance=zeros(n),
        views=jnp.zeros((n, words), jnp.uint32),
        denied=jnp.zeros((n, words), jnp.uint32),
        confidence=zeros(n),
        support=zeros(n),
        inherited=zeros(n),
        against=zeros(n),
        through=zeros(n),
        beyond=zeros(n, 4),
        observations=jnp.zeros((n,), jnp.int32),
        information=zeros(n),
        scatter=zeros(n),
        features=tuple(zeros(n, width) for width in config.widths),
        feature_weight=zeros(n),
        feature_variance=zeros(n),
        appearance=zeros(n, 18),
        edge=zeros(n),
        spacing=zeros(n),
        valid=jnp.zeros((n,), bool),
        protected=jnp.zeros((n,), bool),
        source=jnp.zeros((n,), jnp.int32),
        count=jnp.zeros((), jnp.int32),
        overflow=jnp.zeros((), jnp.int32),
        uncounted=jnp.zeros((), jnp.int32),
    )


def per_row(values: Shaped[Array, " n"], field: Array) -> Shaped[Array, "..."]:
    """Values of n rows with trailing axes of length one, as many as `field` has."""
    return values.reshape((-1,) + (1,) * (field.ndim - 1))


def take_entries(bank: EntryBank, index: Int[Array, " m"]) -> EntryBank:
    """The entries at `index` as a bank of m slots; empty slots where index is out of range.

    The result's `count` is m and its other counters are 0: it stands for a part of a bank.
    """
    there = (index >= 0) & (index < bank.capacity)
    safe = jnp.where(there, index, 0)

    def take(field: Array) -> Array:
        found = field[safe]
        return jnp.where(per_row(there, found), found, jnp.zeros((), found.dtype))

    counters = {
        "count": jnp.asarray(index.shape[0], jnp.int32),
        "overflow": jnp.zeros((), jnp.int32),
        "uncounted": jnp.zeros((), jnp.int32),
    }
    return dataclasses.replace(map_entries(take, bank), **counters)


def put_entries(bank: EntryBank, index: Int[Array, " m"], entries: EntryBank) -> EntryBank:
    """Write the m slots of `entries` to `index`, one scatter per field; counters stay.

    Indices out of range are dropped; negative ones must not occur.
    """
    return map_entries(lambda old, new: old.at[index].set(new, mode="drop"), bank, entries)


def append_entries(bank: EntryBank, entries: EntryBank, keep: Bool[Array, " m"]) -> EntryBank:
    """Add those of the m `entries` marked `keep`, in order; those without room are counted."""
    slot = bank.count + jnp.cumsum(keep, dtype=jnp.int32) - 1
    fits = keep & (slot < bank.capacity)
    added = fits.sum(dtype=jnp.int32)
    # Out of range on purpose: the scatter drops those.
    put = put_entries(bank, jnp.where(fits, slot, bank.capacity), entries)
    return dataclasses.replace(
        put,
        count=bank.count + added,
        overflow=bank.overflow + keep.sum(dtype=jnp.int32) - added,
    )


def map_entries(function: Callable[..., Array], *banks: EntryBank) -> EntryBank:
    """`function` on every field with a leading entry axis; counters are those of the first."""
    first = banks[0]
    counters = {name: getattr(first, name) for name in COUNTERS}
    rows = [dataclasses.replace(bank, **dict.fromkeys(COUNTERS)) for bank in banks]
    return dataclasses.replace(jax.tree.map(function, *rows), **counters)
