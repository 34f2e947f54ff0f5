"""The light of a frame against that of the entries it meets, taken out before both are fused (S35).

Entries keep the light of those that were there first. Which surface a pixel shows is decided by
geometry alone, so that neither needs the other.
"""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.photometry import TILES, frame_gain, known_light


def entry_gain(
    known: EntryBank,
    shown: EntryBank,
    pixel: Float[Array, "n 2"],
    seen: Bool[Array, " n"],
    *,
    height: int,
    width: int,
) -> Float[Array, "3"]:
    """A frame's gain and white balance against the entries it sees, 1 within doubt (row S35).

    Colours are means over the finest neighbourhoods, which misplaced pixels change less. Entries
    count by how sure they are and how well the frame sees them; those that no frame has seen yet
    have no light of their own. See `photometry.frame_gain` for what counts as doubt.

    Args:
        known: n entries.
        shown: what the frame shows of each.
        pixel: where.
        seen: which of them it shows for the first time.
        height, width: of the frame.
    """
    column = jnp.clip(pixel[:, 0] * (TILES / width), 0, TILES - 1).astype(jnp.int32)
    row = jnp.clip(pixel[:, 1] * (TILES / height), 0, TILES - 1).astype(jnp.int32)
    weight = jnp.where(seen & (known.observations > 0), known.confidence * shown.backing, 0.0)
    return frame_gain(_mean(shown), _mean(known), weight, row * TILES + column)


def in_known_light(
    shown: EntryBank, known: EntryBank, gain: Float[Array, "3"], colours: tuple[int, ...]
) -> EntryBank:
    """What a frame shows of n known entries, in their light: its gain divided out (row S35).

    What the frame's white has cut off is taken to be as near to what is known as it may be.
    `colours` is how many channels of each level are colours (see `EntryFrame`); learned ones stay.
    """

    def agree(least: Array, most: Array, known: Array) -> Array:
        return jnp.where(least < most, jnp.clip(known, least, most), least)

    return _relit(shown, gain, colours, agree, known)


def new_in_known_light(
    shown: EntryBank, gain: Float[Array, "3"], colours: tuple[int, ...]
) -> EntryBank:
    """Entries that only this frame knows, in the light of the others: white stays white."""
    return _relit(shown, gain, colours, lambda least, most, _: most, shown)


def _relit(
    shown: EntryBank,
    gain: Float[Array, "3"],
    colours: tuple[int, ...],
    choose: Callable[[Array, Array, Array], Array],
    known: EntryBank,
) -> EntryBank:
    features = [
        jnp.concatenate(
            [choose(*known_light(x[:, :n], jnp.tile(gain, n // 3)), k[:, :n]), x[:, n:]], -1
        )
        for x, k, n in zip(shown.features, known.features, colours, strict=True)
    ]
    return dataclasses.replace(shown, features=tuple(features))


def _mean(entries: EntryBank) -> Float[Array, "n 3"]:
    finest: Array = entries.features[0]
    cells = finest.shape[-1] // 3
    return finest[:, : 3 * cells].reshape(-1, cells, 3).mean(1)
