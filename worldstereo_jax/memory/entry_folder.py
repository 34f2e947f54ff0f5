"""Entry banks as fields of a memory folder, exactly (row S33).

What `folder_format` names is stored under that name: positions, normals, views, the pyramid. What
fusing needs besides, the running weights and votes, is packed side by side into two more arrays,
`descriptor.state` and `descriptor.record`, whose columns are listed here. Further ones came later,
and folders without them load too: `descriptor.extent`, `descriptor.appearance`, how colours go with
the view, `descriptor.beyond`, what contradicting frames show (row S24), and `descriptor.inherited`,
what frames say that had their depth from the memory.
"""

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Shaped, ndarray
from worldstereo_jax.errors import InputError
from worldstereo_jax.memory.entries import COUNTERS, EntryBank, EntryConfig, init_entries
from worldstereo_jax.memory.entry_codec import QuantisedEntries, quantise_entries

_NAMED = {
    "position": "position",
    "normal": "normal",
    "views": "views",
    "direction": "direction",
    "distance": "distance",
    "footprint": "footprint",
    "confidence": "entry_confidence",
}
_STATE = (
    "normal_agreement",
    "support",
    "against",
    "information",
    "scatter",
    "feature_weight",
    "feature_variance",
)
_EXTENT = ("edge", "spacing", "through")
# The counters of the whole bank stand in row 0.
_ROWS = ("observations", "valid", "protected", "source")
_RECORD = (*_ROWS, *COUNTERS)
_Fields = dict[str, Shaped[ndarray, "..."]]


def entry_fields(bank: EntryBank | QuantisedEntries) -> _Fields:
    """The bank's slots in use as arrays for `save_memory(..., optional=...)`.

    descriptor.state is float32 [n, 13]: anchor, eye, then the columns of `_STATE`.
    descriptor.record is uint32 [n, 7 + words]: the columns of `_RECORD`, then the bitset `denied`.
    descriptor.extent is float32 [n, 3]: the columns of `_EXTENT`; descriptor.beyond [n, 4];
    descriptor.inherited [n, 1].
    Quantised features and appearance are stored as they are, 8 or 4 bits, with `pyramid_scale`. An
    empty bank stores one empty slot.
    """
    rest = bank.rest if isinstance(bank, QuantisedEntries) else bank
    levels = bank.codes if isinstance(bank, QuantisedEntries) else bank.features
    n = max(int(rest.count), 1)
    fields: _Fields = {name: np.asarray(getattr(rest, field))[:n] for field, name in _NAMED.items()}
    fields |= {f"pyramid.{i}": np.asarray(level)[:n] for i, level in enumerate(levels)}
    if isinstance(bank, QuantisedEntries):
        fields |= {f"pyramid_scale.{i}": np.asarray(x) for i, x in enumerate(bank.scales)}
    columns = [np.asarray(getattr(rest, name))[:n, None] for name in _STATE]
    fields["descriptor.state"] = np.concatenate(
        [np.asarray(rest.anchor)[:n], np.asarray(rest.eye)[:n], *columns], -1
    )
    record = np.zeros((n, len(_RECORD)), np.uint32)
    for i, name in enumerate(_RECORD):
        value = np.asarray(getattr(rest, name))
        if value.ndim:
            record[:, i] = value[:n].astype(np.int64).astype(np.uint32)
        else:
            record[0, i] = value
    fields["descriptor.record"] = np.concatenate([record, np.asarray(rest.denied)[:n]], -1)
    fields["descriptor.extent"] = np.stack([np.asarray(getattr(rest, x))[:n] for x in _EXTENT], -1)
    fields["descriptor.beyond"] = np.asarray(rest.beyond)[:n]
    fields["descriptor.inherited"] = np.asarray(rest.inherited)[:n, None]
    fields["descriptor.appearance"] = np.asarray(bank.appearance)[:n]
    if isinstance(bank, QuantisedEntries):
        fields["pyramid_scale.appearance"] = np.asarray(bank.appearance_scale)
    return {name: np.ascontiguousarray(value) for name, value in fields.items()}


def is_entry_field(name: str) -> bool:
    """Whether a field of a memory folder is one of those that `entry_fields` writes."""
    stem = name.partition(".")[0]
    return stem in ("pyramid", "pyramid_scale") or name in (
        *_NAMED.values(),
        "descriptor.state",
        "descriptor.record",
        "descriptor.extent",
        "descriptor.beyond",
        "descriptor.inherited",
        "descriptor.appearance",
    )


def entries_from_fields(
    fields: Mapping[str, Shaped[ndarray, "..."]], *, capacity: int
) -> EntryBank | QuantisedEntries:
    """The bank that `entry_fields` wrote, bit by bit, with room for `capacity` entries.

    Args:
        fields: what `load_optional_fields` returned; fields of other things are passed over.
        capacity: at least the number of slots in use.

    Returns:
        A `QuantisedEntries` when the features were stored quantised.

    Raises:
        InputError: when a field is missing, of a wrong shape, or the capacity too small.
    """
    wanted = [*_NAMED.values(), "pyramid.0", "descriptor.state", "descriptor.record"]
    for name in wanted:
        if name not in fields:
            raise InputError(f"the memory holds no entries: its field {name!r} is missing")
    state, record = fields["descriptor.state"], fields["descriptor.record"]
    words = fields["views"].shape[-1]
    if state.shape[1:] != (6 + len(_STATE),) or record.shape[1:] != (len(_RECORD) + words,):
        raise InputError(
            f"fields descriptor.state and descriptor.record must have {6 + len(_STATE)} and "
            f"{len(_RECORD) + words} columns, found {state.shape[-1]} and {record.shape[-1]}"
        )
    counters = {name: int(record[0, _RECORD.index(name)]) for name in COUNTERS}
    count = counters["count"]
    if count > capacity or count > state.shape[0]:
        raise InputError(
            f"the memory holds {count} entries in {state.shape[0]} rows, which do not fit a "
            f"capacity of {capacity}"
        )
    levels = []
    while f"pyramid.{len(levels)}" in fields:
        levels.append(fields[f"pyramid.{len(levels)}"])
    scales = [fields.get(f"pyramid_scale.{i}") for i in range(len(levels))]
    values: _Fields = {field: fields[name] for field, name in _NAMED.items()}
    values["anchor"], values["eye"] = state[:, :3], state[:, 3:6]
    values |= {name: state[:, 6 + i] for i, name in enumerate(_STATE)}
    values |= {name: record[:, i] for i, name in enumerate(_ROWS)}
    values["denied"] = record[:, len(_RECORD) :]
    # Of folders from before: no edges, neighbours a footprint away, no change with the view,
    # nothing that would tell panes from contradictions, and all depth taken for measured.
    extent = fields.get(
        "descriptor.extent", np.tile(np.array([0, 1, 0], np.float32), (state.shape[0], 1))
    )
    values |= {name: extent[:, i] for i, name in enumerate(_EXTENT)}
    nothing = np.zeros((state.shape[0], 4), np.float32)
    values["beyond"] = fields.get("descriptor.beyond", nothing)
    values["inherited"] = fields.get("descriptor.inherited", nothing)[:, 0]
    plain = np.pad(fields["direction"], ((0, 0), (0, 15)))
    appearance = fields.get("descriptor.appearance", plain)

    def fill(like: np.ndarray, value: np.ndarray) -> jnp.ndarray:
        filled = np.zeros((capacity, *value.shape[1:]), like.dtype)
        filled[:count] = value[:count].astype(like.dtype)
        return jnp.asarray(filled)

    empty = init_entries(EntryConfig(1, tuple(x.shape[-1] for x in levels), 32 * words))
    bank = dataclasses.replace(
        empty,
        **{name: jnp.asarray(value, jnp.int32) for name, value in counters.items()},
        **{name: fill(np.asarray(getattr(empty, name)), value) for name, value in values.items()},
    )
    stored = tuple(fill(level, level) for level in levels)
    if all(scale is None for scale in scales):
        told = fill(appearance, appearance)
        return dataclasses.replace(bank, features=stored, appearance=told)
    if any(scale is None for scale in scales):
        raise InputError("some levels of the pyramid have a field pyramid_scale, others have none")
    quantised = QuantisedEntries(
        rest=dataclasses.replace(bank, features=(), appearance=jnp.zeros((0, 18), jnp.float32)),
        codes=stored,
        scales=tuple(jnp.asarray(scale) for scale in scales),
        appearance=fill(appearance, appearance),
        appearance_scale=jnp.asarray(fields.get("pyramid_scale.appearance", np.ones(18, "f4"))),
    )
    if "pyramid_scale.appearance" in fields:
        return quantised
    # A quantised bank from before has directions in full: they are coded now.
    coded = quantise_entries(
        dataclasses.replace(bank, features=(), appearance=fill(plain, plain)), bits=()
    )
    return dataclasses.replace(
        quantised, appearance=coded.appearance, appearance_scale=coded.appearance_scale
    )
