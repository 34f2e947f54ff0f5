"""Entries with quantised features (row S31): whole numbers of 8 or 4 bits and a scale per channel.

Symmetric, without an offset, so that a code times its scale is the value: 8 bits cost 25 % of
float32. Everything but the features stays as it is.
"""

import dataclasses
import typing

import flax.struct
import jax
import jax.numpy as jnp

from worldstereo_jax.array_types import Array, Bool, Float, Shaped
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.smooth import root
from worldstereo_jax.memory.entries import EntryBank


@typing.no_type_check
@flax.struct.dataclass
class QuantisedEntries:
    """A bank of n entries whose features are quantised.

    rest: the bank without features (an empty tuple). codes: tuple over levels of int8 [n, c], or
    uint8 [n, ceil(c / 2)] with two channels in a byte, low half first. scales: tuple over levels
    of float32 [c]; value = code * scale. appearance int8 [n, 18] and appearance_scale [18]: the
    change of colour with the view (row S24), of whose second moments roots with signs are coded, so
    that small ones keep their precision.
    """

    rest: EntryBank
    codes: tuple[Shaped[Array, "n c"], ...]
    scales: tuple[Float[Array, "c"], ...]
    appearance: Shaped[Array, "n 18"]
    appearance_scale: Float[Array, "18"]


def quantise_entries(bank: EntryBank, *, bits: tuple[int, ...] | None = None) -> QuantisedEntries:
    """The bank with quantised features.

    Codes are rounded, which has no derivative: of what is restored only the scales have one.

    Args:
        bank: any.
        bits: 8 or 4 per level; 8 for all when None.

    Raises:
        InputError: for other numbers of bits, or another number of levels.
    """
    bits = (8,) * len(bank.features) if bits is None else bits
    if len(bits) != len(bank.features) or any(b not in (4, 8) for b in bits):
        raise InputError(
            f"bits must be 8 or 4 for each of the {len(bank.features)} levels, got {bits}"
        )
    coded = [_encode(x, bank.valid, b) for x, b in zip(bank.features, bits, strict=True)]
    appearance, scale = _encode(_rooted(bank.appearance), bank.valid, 8)
    return QuantisedEntries(
        rest=dataclasses.replace(bank, features=(), appearance=jnp.zeros((0, 18), jnp.float32)),
        codes=tuple(codes for codes, _ in coded),
        scales=tuple(scale for _, scale in coded),
        appearance=appearance,
        appearance_scale=scale,
    )


def restore_entries(quantised: QuantisedEntries) -> EntryBank:
    """The bank with float32 features, each within half a step of what it was."""
    features = [
        _decode(codes, scale)
        for codes, scale in zip(quantised.codes, quantised.scales, strict=True)
    ]
    rooted = _decode(quantised.appearance, quantised.appearance_scale)
    return dataclasses.replace(
        quantised.rest, features=tuple(features), appearance=_squared(rooted)
    )


def bytes_per_entry(bank: EntryBank | QuantisedEntries) -> dict[str, int]:
    """Bytes that one entry takes: `features` with their change by view, `geometry`, and `total`.

    Counters and scales, which are stored once for the whole bank, are left out.
    """
    if isinstance(bank, QuantisedEntries):
        levels, rest = (*bank.codes, bank.appearance), bank.rest
    else:
        levels = (*bank.features, bank.appearance)
        rest = dataclasses.replace(bank, features=(), appearance=bank.appearance[:0])
    features = sum(level.shape[-1] * level.dtype.itemsize for level in levels)
    rows = [leaf for leaf in jax.tree.leaves(rest) if leaf.size > 1]
    geometry = sum(leaf.dtype.itemsize * (leaf.size // leaf.shape[0]) for leaf in rows)
    return {"features": features, "geometry": geometry, "total": features + geometry}


def _rooted(appearance: Float[Array, "n 18"]) -> Float[Array, "n 18"]:
    moments = appearance[:, 3:]
    rooted = jnp.sign(moments) * root(jnp.abs(moments))
    return jnp.concatenate([appearance[:, :3], rooted], -1)


def _squared(rooted: Float[Array, "n 18"]) -> Float[Array, "n 18"]:
    return jnp.concatenate([rooted[:, :3], rooted[:, 3:] * jnp.abs(rooted[:, 3:])], -1)


def _encode(
    values: Float[Array, "n c"], valid: Bool[Array, " n"], bits: int
) -> tuple[Shaped[Array, "n k"], Float[Array, " c"]]:
    most = 2 ** (bits - 1) - 1
    largest = jnp.where(valid[:, None], jnp.abs(values), 0.0).max(0)
    scale = jnp.where(largest > 0, largest / most, 1.0)
    codes = jnp.clip(jnp.round(values / scale[None]), -most, most).astype(jnp.int8)
    codes = jnp.where(valid[:, None], codes, jnp.int8(0))
    if bits == 8:
        return codes, scale
    even = jnp.pad(codes, ((0, 0), (0, codes.shape[1] % 2))).astype(jnp.uint8) & 15
    return even[:, ::2] | (even[:, 1::2] << 4), scale


def _decode(codes: Shaped[Array, "n k"], scale: Float[Array, " c"]) -> Float[Array, "n c"]:
    if codes.dtype == jnp.uint8:
        halves = jnp.stack([codes & 15, codes >> 4], -1).reshape(codes.shape[0], -1)
        halves = halves[:, : scale.shape[0]].astype(jnp.int8)
        # The upper half of four bits stands for negative numbers.
        codes = jnp.where(halves > 7, halves - jnp.int8(16), halves)
    return codes.astype(jnp.float32) * scale[None]
