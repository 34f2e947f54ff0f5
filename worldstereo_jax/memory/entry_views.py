"""Who saw an entry, and how far to believe it (rows S5, S6)."""

import jax.numpy as jnp
from jax import lax

from worldstereo_jax.array_types import Array, Bool, Float, Int, UInt32
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_appearance import entry_colour

# Summed confidence that one certain observation has to be weighed against.
_PRIOR = 0.25
# Variance of the finest features, in squared units of [-1, 1] colours, that halves confidence:
# about what two views of a mirror differ by.
_RESTLESS = 0.1
_TWICE = 2  # views for and views against that make a pane, at least
_BALANCE = 3.0  # how much more may be said for a pane than against it, or less
_ANSWERED = 2.0  # votes against a pane for which one for it answers
_DEVIATIONS = 3.0  # by which mean colours of both may differ
_GRAIN = 2.5e-3  # variance of colours in [-1, 1] that noise and resampling leave


def has_view(bits: UInt32[Array, "n words"], view: Int[Array, ""]) -> Bool[Array, " n"]:
    """Whether the bit of `view` is set; False for views beyond the bitset."""
    return (bits & _mask(view, bits.shape[-1])).any(-1)


def set_view(
    bits: UInt32[Array, "n words"], view: Int[Array, ""], where: Bool[Array, " n"]
) -> UInt32[Array, "n words"]:
    """The bit of `view` set `where` asked; views beyond the bitset set none."""
    return bits | jnp.where(where[:, None], _mask(view, bits.shape[-1]), jnp.uint32(0))


def views_at(
    index: Int[Array, "r"], valid: Bool[Array, "r"], words: int
) -> UInt32[Array, "1 words"]:
    """The bitset of the views at `index`, without those that are not valid."""
    bits = jnp.zeros((1, words), jnp.uint32)
    for view, there in zip(index, valid, strict=True):
        bits = set_view(bits, view, there[None])
    return bits


def share_beyond(
    bits: UInt32[Array, "n words"], known: UInt32[Array, "1 words"]
) -> Float[Array, " n"]:
    """Share of each entry's views that are not among the known ones.

    1 where no view is on record: points of a cloud, and views beyond the bitset.
    """
    total = count_views(bits)
    other = count_views(bits & ~known).astype(jnp.float32)
    return jnp.where(total > 0, other / jnp.maximum(total, 1).astype(jnp.float32), 1.0)


def used_views(bits: UInt32[Array, "n words"]) -> Bool[Array, " views"]:
    """Which of the 32 * words views left a bit in any of n bitsets."""
    place = jnp.arange(32, dtype=jnp.uint32)

    def word(bits: UInt32[Array, " n"]) -> Bool[Array, "32"]:
        # Not one `or` of whole words: over a mesh XLA:CPU has no such sum.
        return ((bits[:, None] >> place[None]) & 1).astype(bool).any(0)

    # Word by word: all places at once would take 32 times the bitsets' memory.
    return lax.map(word, bits.T).reshape(-1)


def move_views(
    bits: UInt32[Array, "n old"], new_number: Int[Array, " views"], *, words: int
) -> UInt32[Array, "n words"]:
    """Bitsets in which view i is called `new_number[i]`.

    Args:
        bits: the bitsets.
        new_number: one for each of their 32 * old places, no two alike; views whose number does
            not fit into `words`, or is negative, are left out.
        words: 32-bit words of the result.
    """
    room = 32 * words
    there = (new_number >= 0) & (new_number < room)
    # Out of range on purpose: the scatter drops those.
    origin = jnp.full((room,), -1, jnp.int32)
    number = jnp.arange(new_number.shape[0], dtype=jnp.int32)
    origin = origin.at[jnp.where(there, new_number, room)].set(number, mode="drop")
    weight = jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32)

    def word(origin: Int[Array, "32"]) -> UInt32[Array, " n"]:
        safe = jnp.maximum(origin, 0)
        found = (bits[:, safe // 32] >> (safe % 32).astype(jnp.uint32)[None]) & 1
        found = jnp.where(origin[None] >= 0, found, jnp.uint32(0))
        return (found * weight[None]).sum(-1, dtype=jnp.uint32)

    # Word by word: all places at once would take 32 times the bitsets' memory.
    return lax.map(word, origin.reshape(words, 32)).T


def count_views(bits: UInt32[Array, "n words"]) -> Int[Array, " n"]:
    """How many bits are set."""
    return lax.population_count(bits).astype(jnp.int32).sum(-1)


def two_depths(bank: EntryBank) -> Bool[Array, " n"]:
    """Entries of a transparent surface, or seen through one (row S24).

    Depth where a pane of glass stands is now its own, now that of what lies behind, and colours are
    a mixture of both whichever it is. So at least two views see an entry of either and two
    contradict it by far; their votes are balanced, within a factor of three; and the mean colours
    of both sorts of views differ by no more than colours of the entry differ from view to view. An
    opaque thing that comes and goes uncovers other colours. In which order views come, and how
    they are numbered, does not matter.
    """
    seen, denied = bank.observations, count_views(bank.denied & ~bank.views)
    far = bank.beyond[:, 0]
    often = (seen >= _TWICE) & (denied >= _TWICE) & (far > 0.5 * bank.against)
    balanced = jnp.maximum(bank.backing, far) <= _BALANCE * jnp.minimum(bank.backing, far)
    shown = bank.beyond[:, 1:] / jnp.where(far > 0, far, 1.0)[:, None]
    away = jnp.square(shown - entry_colour(bank)).mean(-1)
    n, m = (jnp.maximum(x, 1).astype(jnp.float32) for x in (seen, denied))
    single = bank.feature_variance * n / jnp.maximum(n - 1.0, 1.0) + _GRAIN
    return often & balanced & (away <= _DEVIATIONS**2 * single * (1.0 / n + 1.0 / m))


def standing_against(bank: EntryBank) -> Float[Array, " n"]:
    """Summed confidence of the views against each entry, as far as it counts (rows S6, S24).

    All of it but at a pane and behind it, where every view for an entry answers for two against.
    """
    answered = jnp.where(two_depths(bank), _ANSWERED * bank.backing, 0.0)
    return jnp.maximum(bank.against - answered, 0.0)


def see_through(bank: EntryBank) -> Bool[Array, " n"]:
    """Entries of transparent surfaces: seen, and looked through, in balance (row S24).

    Of two depths on one ray the nearer is looked through; what lies behind is only found hidden.
    """
    looked = bank.through > 0.5 * bank.against
    return bank.valid & looked & two_depths(bank)


def entry_confidence(
    support: Float[Array, " n"],
    against: Float[Array, " n"],
    scatter: Float[Array, " n"],
    feature_variance: Float[Array, " n"],
    distance: Float[Array, " n"],
    *,
    gate: float,
) -> Float[Array, " n"]:
    """Confidence of entries in [0, 1] (row S6): a product of four factors, each in [0, 1].

    How much was seen of it, support / (support + 1/4); the square of the share of votes for it;
    how little the measured positions scatter, against the scatter that the gate lets through;
    and how little its appearance changes with the view, so that mirrors and moving things lose
    confidence instead of being copied (row S24).

    Args:
        support: summed confidence of the frames that saw it; each is high for certain depth, seen
            frontally, away from depth edges.
        against: summed confidence of the frames that contradict it.
        scatter: variance of measured positions, world units squared.
        feature_variance: variance of the finest features.
        distance: mean distance to the cameras, world units.
        gate: share of depth within which a measurement is matched.
    """
    seen = support / (support + _PRIOR)
    votes = support / jnp.maximum(support + against, 1e-12)
    # What no camera saw has distance 0, which lets nothing through. Nothing is divided by it: the
    # derivative would be NaN.
    told = distance > 0
    allowed = jnp.square(jnp.maximum(jnp.where(told, gate * distance, 1.0), 1e-20))
    steady = 1.0 / (1.0 + scatter / jnp.maximum(allowed, 1e-30))
    steady = jnp.where(told, steady, jnp.where(scatter > 0, 0.0, 1.0))
    calm = 1.0 / (1.0 + feature_variance / _RESTLESS)
    return seen * jnp.square(votes) * steady * calm


def _mask(view: Int[Array, ""], words: int) -> UInt32[Array, "1 words"]:
    word = jnp.arange(words, dtype=jnp.int32)
    bit = jnp.uint32(1) << (view % 32).astype(jnp.uint32)
    return jnp.where(word == view // 32, bit, jnp.uint32(0))[None]
