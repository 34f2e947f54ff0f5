"""Hundreds of views as entries: how many keys, how dense a mask, at what cost.

    python -m experiments.many_views --views 64 512 --scenes 2

Per procedural scene a bank is fused from many views (120 x 208 pixels, eight to a path), of which
eight stay references to attend to. The target is a clip of the working size: 21 frames of 480 by
832, 32,760 tokens. `select_entry_tokens` chooses what the other views add, for several budgets,
and the correspondence mask of target by entries is built as `denoise` builds it, both sides along
one Hilbert curve. `listed` is the share of tile pairs that the tile bounds keep, `active` that
which really holds an allowed pair. `cost` is active times keys over dense attention to 8
references (12,480 keys); `served` the share of target tokens that see at least one entry.
"""

import argparse
import dataclasses
import functools
import time
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

import pallas_kernels as pk
from worldstereo_jax.data.scene_layouts import make_scene
from worldstereo_jax.data.scene_render import render_scene
from worldstereo_jax.data.scene_trajectories import sample_trajectory, scene_intrinsics
from worldstereo_jax.data.scene_types import Scene
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.memory.entries import EntryBank, EntryConfig, init_entries
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_tokens import EntryTokens, entry_block_mask, select_entry_tokens
from worldstereo_jax.memory.entry_update import update_entries
from worldstereo_jax.memory.masks import ViewSet, token_geometry

RESULTS = Path(__file__).parent / "RESULTS.md"
HEIGHT, WIDTH, FRAMES = 480, 832, 21
BANK_HEIGHT, BANK_WIDTH, PER_PATH, ATTENDED = 120, 208, 8, 8
CAPACITY = 1 << 18
BUDGETS = (4096, 8192, 16384)
TILES = ((128, 128), (512, 128))
DENSE_KEYS = 8 * (HEIGHT // 16) * (WIDTH // 16)

NOTE = """\
As keys themselves, the tokens of 512 views would be 798,720. The bank is fused from pictures of
a quarter of the target's resolution, so the surface is held more coarsely than it would be from
full ones; the number of tokens follows the target's and not the bank's resolution. The machine was
shared with other jobs while this ran."""


class Bank(NamedTuple):
    """A bank with what it was made of: views, pixels with depth, processor seconds of updates."""

    entries: EntryBank
    views: int
    pixels: int
    seconds: float


def target_views(scene: Scene, seed: int) -> ViewSet:
    """The target path with its true depth."""
    w2c, k = sample_trajectory(1000 * seed, scene, FRAMES, height=HEIGHT, width=WIDTH)
    depth = [
        render_scene(
            scene, w2c[i : i + 1], k[i : i + 1], height=HEIGHT, width=WIDTH, supersample=1
        ).depth
        for i in range(FRAMES)
    ]
    return ViewSet(jnp.concatenate(depth), w2c, k, jnp.ones((FRAMES,), bool))


@functools.partial(jax.jit, donate_argnums=0)
def add_view(bank: EntryBank, image, depth, w2c, k, view) -> EntryBank:
    """The bank with one more view."""
    return update_entries(bank, make_entry_frame(image, depth, w2c, k, view=view))


def fuse_views(bank: Bank, scene: Scene, seed: int, views: int) -> Bank:
    """The bank grown to `views` views, eight of each of several paths through the scene."""
    pick = np.linspace(0, FRAMES - 1, PER_PATH).round().astype(int)
    intrinsics = scene_intrinsics(scene, PER_PATH, height=BANK_HEIGHT, width=BANK_WIDTH)
    entries, held, pixels, seconds = bank
    for path in tqdm(range(held // PER_PATH, views // PER_PATH), f"{views} views", leave=False):
        w2c, _ = sample_trajectory(
            1000 * seed + 1 + path, scene, FRAMES, height=BANK_HEIGHT, width=BANK_WIDTH
        )
        seen = render_scene(
            scene, w2c[pick], intrinsics, height=BANK_HEIGHT, width=BANK_WIDTH, supersample=1
        )
        pixels += int((seen.depth > 0).sum())
        start = time.process_time()
        for i in range(PER_PATH):
            view = jnp.asarray(path * PER_PATH + i, jnp.int32)
            frame = (seen.image[i], seen.depth[i], w2c[pick[i]], intrinsics[i])
            entries = add_view(entries, *frame, view)
        jax.block_until_ready(entries)
        seconds += time.process_time() - start
    return Bank(entries, views, pixels, seconds)


def measure(tokens: EntryTokens, target: pk.TokenGeometry) -> dict[str, float]:
    """Densities and costs of the mask for chosen entries; `target` has a batch axis of 1."""
    entries = jax.tree.map(lambda leaf: leaf[None], tokens.geometry)
    box = pk.bounding_box(target, entries)
    sides = [pk.order_geometry(g, pk.order_tokens(g, box=box)) for g in (entries, target)]
    kept, found = int(tokens.valid.sum()), {}
    everywhere = jnp.full_like(target.visibility, jnp.uint32(0xFFFFFFFF))
    for tile_q, tile_k in TILES:
        mask = pk.from_geometry(
            dataclasses.replace(sides[1], visibility=everywhere),
            sides[0],
            tile_q=tile_q,
            tile_k=tile_k,
        )
        packed = pk.pack_partial_tiles(mask)
        # Of the tiles that hold entries: empty slots stand at the end.
        room = mask.k_tiles / max(1, -(-kept // tile_k))
        name = f"{tile_q}x{tile_k}"
        found[f"listed {name}"] = 100 * room * float(mask.density()[0, 0])
        active = room * float(packed.density()[0, 0])
        found[f"active {name}"] = 100 * active
        found[f"cost {name}"] = active * kept / DENSE_KEYS
    mask = entry_block_mask(*sides)
    keys = entries.length
    ones = jnp.ones((1, keys, 1, 8))
    queries = jnp.zeros((1, target.length, 1, 8))
    out = pk.block_sparse_attention(queries, jnp.zeros_like(ones), ones, mask)
    found["served"] = 100 * float((jnp.asarray(out) > 0).any(-1).mean())
    return found


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--views", type=int, nargs="+", default=[64, 512])
    parser.add_argument("--budgets", type=int, nargs="+", default=BUDGETS)
    parser.add_argument("--scenes", type=int, default=2)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows: dict[tuple[int, int], list[dict[str, float]]] = {}
    for seed in tqdm(range(options.scenes), unit="scene"):
        scene = make_scene(seed, "held_out")
        views = target_views(scene, seed)
        target = token_geometry(views, views._replace(valid=jnp.zeros((FRAMES,), bool)))
        empty = init_entries(EntryConfig(CAPACITY, pyramid_widths(), max(options.views)))
        bank = Bank(empty, 0, 0, 0.0)
        for count in sorted(options.views):
            bank = fuse_views(bank, scene, seed, count)
            step = max(1, count // ATTENDED)
            attended = jnp.arange(ATTENDED, dtype=jnp.int32) * step
            for budget in options.budgets:
                start = time.process_time()
                tokens = jax.block_until_ready(
                    select_entry_tokens(
                        bank.entries, views, attended, jnp.ones((ATTENDED,), bool), count=budget
                    )
                )
                figures = {
                    "pixels with depth": bank.pixels,
                    "entries held": int(bank.entries.count),
                    "no room": int(bank.entries.overflow),
                    "kept": int(tokens.valid.sum()),
                    "left out": int(tokens.left_out),
                    "selection, processor s": time.process_time() - start,
                    "update, processor s a view": bank.seconds / count,
                }
                figures |= measure(tokens, target)
                rows.setdefault((count, budget), []).append(figures)
                print(count, budget, figures, flush=True)
    names = list(next(iter(rows.values()))[0])
    cells = []
    for (count, budget), found in rows.items():
        mean = {name: float(np.mean([f[name] for f in found])) for name in names}
        texts = [_text(name, value) for name, value in mean.items()]
        cells.append([f"{count}", f"{budget:,}", *texts])
    table = Table(
        ["views", "budget", *names],
        cells,
        f"{FRAMES * HEIGHT * WIDTH // 256:,} target tokens; mean of {options.scenes} scenes. "
        "Shares in %, of the tiles that hold entries.",
    )
    print(table.markdown())
    write_section(
        options.results,
        "Hundreds of views as entries",
        [table, NOTE],
        command="python -m experiments.many_views --views "
        + " ".join(str(x) for x in options.views)
        + " --budgets "
        + " ".join(str(x) for x in options.budgets)
        + f" --scenes {options.scenes}",
    )


def _text(name: str, value: float) -> str:
    if name.startswith(("listed", "active", "served")):
        return f"{value:.1f} %"
    if name.startswith("cost") or " s" in name:
        return f"{value:.2f}"
    return f"{value:,.0f}"


if __name__ == "__main__":
    main()
