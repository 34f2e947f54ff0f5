"""What a rollout's clip pays for entries that lie elsewhere.

    python -m experiments.large_banks

The part of a clip that works on entries, as rollouts call it: four keyframes are written, nine
cameras see the entries warped, tokens are selected; once with every entry looked at and once with
those in view alone (`entry_scope`). Banks hold 10^4, 10^5 and 10^6 entries to both sides of what
the clip shows, and one view of it: each pixel an entry. Both ways must give the same. With --size
480x832 a view is 399,360 entries, and half a million are looked at alone.

Processor seconds, since a shared machine stretches the clock; compiled beforehand, the better of
two runs.

Record (2026-11-27, one core of a busy AMD EPYC): with 131,072 of 1,310,720 slots looked at, frames
are written and warped into 5 times as fast, tokens selected 8 times as fast, whatever is held.
"""

import argparse
import functools
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.entry_clips import MANY, clip_frames, full_bank
from worldstereo_jax.evaluation.report import Table, kept_rows, write_section
from worldstereo_jax.memory.entries import EntryBank
from worldstereo_jax.memory.entry_completion import add_entries
from worldstereo_jax.memory.entry_frame import EntryFrame
from worldstereo_jax.memory.entry_scope import read_in_view, slots_in_view, update_in_view
from worldstereo_jax.memory.entry_tokens import EntryTokens, select_entry_tokens
from worldstereo_jax.memory.masks import ViewSet
from worldstereo_jax.memory.warping import Warped
from worldstereo_jax.sampling.world import RolloutConfig

RESULTS = Path(__file__).parent / "RESULTS.md"
TITLE = "Clips over large banks"
FRAMES, KEYFRAMES = 9, (2, 4, 6, 8)
CANDIDATES = {"96x160": RolloutConfig().entry_candidates, "480x832": 1 << 19}
HEADER = (
    "pictures",
    "entries held",
    "in view",
    "looked at",
    "write s",
    "warp s",
    "select s",
)


def write(bank: EntryBank, frames: EntryFrame, *, most: int) -> EntryBank:
    """The bank after the frames."""
    return jax.lax.scan(lambda b, f: (update_in_view(b, f, most=most), None), bank, frames)[0]


def warp(bank: EntryBank, frames: EntryFrame, *, most: int) -> Warped:
    """The entries as the cameras see them, where no view was warped."""
    f, height, width = frames.depth.shape
    zeros = jnp.zeros((f, height, width))
    nothing = Warped(
        features=jnp.zeros((f, height, width, 3)),
        mask=zeros + 1,
        depth=zeros,
        weight=zeros,
        confidence=zeros,
    )
    cameras = frames.w2c, frames.intrinsics
    return read_in_view(
        lambda part: add_entries(nothing, part, *cameras),
        bank,
        *cameras,
        height=height,
        width=width,
        most=most,
    )


def select(bank: EntryBank, frames: EntryFrame, *, most: int) -> EntryTokens:
    """The entries' tokens of the path, none of its views attended."""
    f, height, width = frames.depth.shape
    cameras = frames.w2c, frames.intrinsics
    targets = ViewSet(frames.depth, *cameras, jnp.ones((f,), bool))
    attended = jnp.zeros((4,), jnp.int32), jnp.zeros((4,), bool)
    return read_in_view(
        lambda part: select_entry_tokens(part, targets, *attended, count=256),
        bank,
        *cameras,
        height=height,
        width=width,
        most=most,
    )


def seconds(call: functools.partial) -> tuple[object, float]:
    """What a compiled call returns, and the least of two runs' processor seconds."""
    best = np.inf
    result = None
    for _ in range(2):
        start = time.process_time()
        result = jax.block_until_ready(call())
        best = min(best, time.process_time() - start)
    return result, best


def rows(size: str, held: list[int]) -> list[tuple[str, ...]]:
    """Rows of one picture size."""
    height, width = (int(side) for side in size.split("x"))
    frames = clip_frames(FRAMES, height=height, width=width)
    first, chosen = (
        jax.tree.map(lambda x, at=at: x[at], frames) for at in (0, np.array(KEYFRAMES))
    )
    look = jax.jit(functools.partial(slots_in_view, height=height, width=width, most=1))
    found, compiled = [], {}
    for count in held:
        bank = update_in_view(full_bank(count), first, most=MANY)
        seen = look(bank.position, bank.valid, frames.w2c, frames.intrinsics).count
        results = []
        for name, most in (("all", MANY), ("in view", CANDIDATES[size])):
            spent = []
            for stage, shown in ((write, chosen), (warp, frames), (select, frames)):
                key = name, stage
                if key not in compiled:
                    run = jax.jit(functools.partial(stage, most=most))
                    compiled[key] = run.lower(bank, shown).compile()
                result, best = seconds(functools.partial(compiled[key], bank, shown))
                results.append(result)
                spent.append(f"{best:.2f}")
            found.append((size, f"{count:,}", f"{int(seen):,}", name, *spent))
            print(found[-1], flush=True)
        for one, other in zip(results[:3], results[3:], strict=True):
            for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
                np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)
    return found


def _place(row: tuple[str, ...]) -> tuple[int, int]:
    """Where a row stands in the table: by picture, then by entries held."""
    return int(row[0].split("x")[0]), int(row[1].replace(",", ""))


def main() -> None:
    """Measure one picture size, and write the section with what it holds of other rows."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=list(CANDIDATES), default="96x160")
    parser.add_argument("--held", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    options = parser.parse_args()
    new = rows(options.size, options.held)
    again = {row[:2] for row in new}
    kept = [row for row in kept_rows(RESULTS, TITLE, HEADER) if row[:2] not in again]
    table = Table(
        HEADER,
        sorted(kept + new, key=_place),
        f"Processor seconds. Banks with room for {MANY:,} entries; four frames written, nine "
        "cameras warped into, 256 tokens selected.",
    )
    write_section(RESULTS, TITLE, [table], command="python -m experiments.large_banks")


if __name__ == "__main__":
    main()
