"""A run of entries sorted along a space-filling curve, with its level summaries (row S29).

Space is cut into cells; the curve is Morton's on a torus of 1024^3 cells, so that a world of any
extent fits: places 1024 cells apart share a code, and the exact test of every query tells them
apart. A cell of any coarser level is one range of consecutive slots.
"""

import typing

import flax.struct
import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.token_order import morton_code
from worldstereo_jax.array_types import Array, Bool, Float, Int, UInt32

AXIS_BITS = 10
CODE_BITS = 3 * AXIS_BITS
BLOCK = 64
"""Slots that share one bounding box."""
NO_CODE = 1 << CODE_BITS
"""Code of empty slots: behind every cell."""


@typing.no_type_check
@flax.struct.dataclass
class CurveRun:
    """Up to n entries in the order of the curve; empty slots come last.

    code [n]: uint32 place on the curve, `NO_CODE` in empty slots. entry [n]: int32 id, -1 in empty
    slots. position [n, 3]: world units. count: entries held. Summaries: directory [2^k + 1], the
    first slot of each stretch of 2^shift codes; steps, the halvings that find a code within the
    fullest stretch; low, high [n / 64, 3]: bounding box of every 64 slots (low > high
    where all are empty).
    """

    code: UInt32[Array, "n"]
    entry: Int[Array, "n"]
    position: Float[Array, "n 3"]
    count: Int[Array, ""]
    directory: Int[Array, "d"]
    shift: Int[Array, ""]
    steps: Int[Array, ""]
    low: Float[Array, "m 3"]
    high: Float[Array, "m 3"]


class Lattice(typing.NamedTuple):
    """Cells of one side [] in world units, counted from the cell that holds `origin` [3]."""

    origin: Float[Array, "3"]
    cell: Float[Array, ""]


def cell_of(position: Float[Array, "*n 3"], lattice: Lattice) -> Int[Array, "*n 3"]:
    """Integer coordinates of the cell that holds a position; 2^30 cells either way at most."""
    origin = lattice.origin.reshape((1,) * (position.ndim - 1) + (3,))
    cells = jnp.floor((position - origin) / lattice.cell)
    return jnp.clip(cells, -(2.0**30), 2.0**30).astype(jnp.int32)


def code_of(coordinates: Int[Array, "*n 3"]) -> UInt32[Array, "*n"]:
    """Place of a cell on the curve."""
    return morton_code((coordinates & ((1 << AXIS_BITS) - 1)).astype(jnp.uint32))


def take_rows(rows: Float[Array, "n 3"], index: Int[Array, "*q"]) -> list[Float[Array, "*q"]]:
    """The three columns of the rows at `index`, each by a scalar gather: XLA's fastest."""
    flat = rows.reshape(-1)
    return [flat.at[3 * index + axis].get(mode="promise_in_bounds") for axis in range(3)]


def empty_run(size: int) -> CurveRun:
    """A run of `size` empty slots, a multiple of 64."""
    return CurveRun(
        code=jnp.full((size,), NO_CODE, jnp.uint32),
        entry=jnp.full((size,), -1, jnp.int32),
        position=jnp.zeros((size, 3), jnp.float32),
        count=jnp.zeros((), jnp.int32),
        directory=jnp.zeros(((1 << _directory_bits(size)) + 1,), jnp.int32),
        shift=jnp.zeros((), jnp.int32),
        steps=jnp.zeros((), jnp.int32),
        low=jnp.full((size // BLOCK, 3), jnp.inf, jnp.float32),
        high=jnp.full((size // BLOCK, 3), -jnp.inf, jnp.float32),
    )


def sort_run(
    position: Float[Array, "n 3"],
    entry: Int[Array, "n"],
    valid: Bool[Array, "n"],
    lattice: Lattice,
) -> CurveRun:
    """Sort entries along the curve; n must be a multiple of 64."""
    usable = valid & jnp.isfinite(position).all(-1)
    safe = jnp.where(usable[:, None], position, 0.0)
    code = jnp.where(usable, code_of(cell_of(safe, lattice)), jnp.uint32(NO_CODE))
    code, order = _sort_codes(code)
    empty = code == NO_CODE
    ordered = jnp.stack(take_rows(safe, order), axis=-1)
    taken = jnp.where(empty, -1, entry.at[order].get(mode="promise_in_bounds"))
    return _summarise(code, taken, ordered, usable.sum(dtype=jnp.int32))


def merge_runs(a: CurveRun, b: CurveRun, capacity: int) -> CurveRun:
    """One run of both, `a` first among equals: linear, without a sort.

    The first `capacity` slots are kept; the caller sees to it that both fit.
    """
    n, m = a.code.shape[0], b.code.shape[0]
    # Where b's entries go: behind as many of a's as do not come after them. Empty slots of `b`
    # go to the very end, and those of `a` between.
    behind = lax.fori_loop(
        0, n.bit_length(), lambda _, s: _halve(a.code, b.code, s, upper=True),
        (jnp.zeros((m,), jnp.int32), jnp.full((m,), n, jnp.int32)),
    )[0]  # fmt: skip
    place = behind + jnp.arange(m, dtype=jnp.int32)
    from_b = jnp.zeros((n + m,), bool).at[place].set(True)
    rank = jnp.cumsum(from_b, dtype=jnp.int32)
    source = jnp.where(from_b, n + rank - 1, jnp.arange(n + m, dtype=jnp.int32) - rank)
    source = source[:capacity]

    def both(x: Array, y: Array) -> Array:
        return jnp.concatenate([x, y])

    position = jnp.stack(take_rows(both(a.position, b.position), source), axis=-1)
    code = both(a.code, b.code).at[source].get(mode="promise_in_bounds")
    entry = both(a.entry, b.entry).at[source].get(mode="promise_in_bounds")
    short = capacity - code.shape[0]
    if short > 0:
        code = jnp.pad(code, (0, short), constant_values=NO_CODE)
        entry = jnp.pad(entry, (0, short), constant_values=-1)
        position = jnp.pad(position, ((0, short), (0, 0)))
    return _summarise(code, entry, position, a.count + b.count)


def renumber_run(run: CurveRun, new_id: Int[Array, "i"]) -> CurveRun:
    """The run with entry i called `new_id[i]`, without those whose new id is negative."""
    n = run.code.shape[0]
    name = new_id.at[jnp.maximum(run.entry, 0)].get(mode="clip")
    kept = (run.entry >= 0) & (name >= 0)
    place = jnp.where(kept, jnp.cumsum(kept, dtype=jnp.int32) - 1, n)
    return _summarise(
        jnp.full((n,), NO_CODE, jnp.uint32).at[place].set(run.code, mode="drop"),
        jnp.full((n,), -1, jnp.int32).at[place].set(name.astype(jnp.int32), mode="drop"),
        jnp.zeros((n, 3), jnp.float32).at[place].set(run.position, mode="drop"),
        kept.sum(dtype=jnp.int32),
    )


def find_codes(run: CurveRun, code: UInt32[Array, "*q"]) -> Int[Array, "*q"]:
    """First slot whose code is not below `code` (0 .. `NO_CODE`)."""
    end = run.directory.shape[0] - 1
    stretch = jnp.minimum((code >> run.shift.astype(jnp.uint32)).astype(jnp.int32), end)
    low = run.directory.at[stretch].get(mode="promise_in_bounds")
    high = run.directory.at[jnp.minimum(stretch + 1, end)].get(mode="promise_in_bounds")
    return lax.fori_loop(
        0, run.steps, lambda _, s: _halve(run.code, code, s, upper=False), (low, high)
    )[0]


def _halve(
    codes: UInt32[Array, "n"],
    code: UInt32[Array, "*q"],
    bounds: tuple[Int[Array, "*q"], Int[Array, "*q"]],
    *,
    upper: bool,
) -> tuple[Int[Array, "*q"], Int[Array, "*q"]]:
    """One step of a binary search for the first slot not below `code` (`upper`: above it)."""
    low, high = bounds
    middle = (low + high) >> 1
    there = codes.at[jnp.minimum(middle, codes.shape[0] - 1)].get(mode="promise_in_bounds")
    before = (there <= code) if upper else (there < code)
    right = before & (low < high)
    return jnp.where(right, middle + 1, low), jnp.where(right, high, middle)


def _sort_codes(code: UInt32[Array, "n"]) -> tuple[UInt32[Array, "n"], Int[Array, "n"]]:
    """Sorted codes and where they came from.

    Code and place are one 64-bit number: XLA sorts a single array of numbers several times faster
    than pairs. The wide type lives here alone, whatever the program's setting.
    """
    place = lax.iota(jnp.uint32, code.shape[0])
    with jax.enable_x64(True):
        wide = lax.bitcast_convert_type(jnp.stack([place, code], axis=-1), jnp.uint64)
        narrow = lax.bitcast_convert_type(lax.sort(wide, is_stable=False), jnp.uint32)
        place, code = narrow[:, 0], narrow[:, 1]
    return code, place.astype(jnp.int32)


def _directory_bits(size: int) -> int:
    return min(CODE_BITS, max(6, (size - 1).bit_length()))


def _summarise(
    code: UInt32[Array, "n"],
    entry: Int[Array, "n"],
    position: Float[Array, "n 3"],
    count: Int[Array, ""],
) -> CurveRun:
    n = code.shape[0]
    bits = _directory_bits(n)
    # Entries crowd at the curve's beginning when the world is small: only that part is divided.
    highest = jnp.max(jnp.where(code == NO_CODE, 0, code))
    shift = jnp.maximum(32 - lax.clz(highest).astype(jnp.int32) - bits, 0)
    stretch = (code >> shift.astype(jnp.uint32)).astype(jnp.int32)
    before = jnp.concatenate([jnp.full((1,), -1, jnp.int32), stretch[:-1]])
    begins = (stretch != before) & (code != NO_CODE)
    slot = jnp.arange(n, dtype=jnp.int32)
    first = jnp.full(((1 << bits) + 1,), count, jnp.int32)
    first = first.at[jnp.where(begins, stretch, (1 << bits) + 1)].set(slot, mode="drop")
    directory = lax.cummin(first, reverse=True)
    fullest = jnp.max(directory[1:] - directory[:-1])
    held = (slot < count).reshape(n // BLOCK, BLOCK, 1)
    blocks = position.reshape(n // BLOCK, BLOCK, 3)
    return CurveRun(
        code=code,
        entry=entry,
        position=position,
        count=count,
        directory=directory,
        shift=shift,
        steps=jnp.where(shift > 0, 32 - lax.clz(fullest), 0).astype(jnp.int32),
        low=jnp.where(held, blocks, jnp.inf).min(1),
        high=jnp.where(held, blocks, -jnp.inf).max(1),
    )
