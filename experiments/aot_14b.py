"""The 14B memory model at its working size, compiled ahead of time for chips that are not here.

    python experiments/aot_14b.py [--slices 0 1 ...] [--patterns dense correspondence]
    python experiments/aot_14b.py --slices 0 --patterns dense+slots
    python experiments/aot_14b.py --h200

One denoising step: 21 latent frames of 60 x 104 (32,760 target tokens), 8 references (12,480), 512
text and 257 image tokens, bfloat16 parameters. First traced on abstract values (eval_shape), then
compiled for TPU slices by XLA:TPU and Mosaic (jax 0.10.2 with libtpu), or for one H200 by XLA,
Mosaic GPU and ptxas (jax 0.12; the packages that gpu_compile.py names, and nvidia-cudnn-cu13).
Parameters are split by heads and hidden channels (`placement.tensor_parallel`), attention by heads
(`AttentionSharding`), and by query tiles where there are more chips than that divides. The bytes
per chip are the compiled program's.

Two patterns in every layer: dense, which the official model has, and correspondence, whose mask is
an argument of the program: its lists and the bits of its partial tiles, once for all layers. How
much it leaves of dense attention's work is counted on a procedural scene: the token pairs of the
active tiles, over all pairs. "+slots" behind a pattern is a model with modules for warped views
(two candidates for each latent pixel) and surface entries (2048, under a mask of their own).

Record (2026-11-26): on eight chips dense attention takes 8.4 GB per chip of v5e and 8.6 of v6e and
v5p, the correspondence pattern 8.4, 8.6 and 9.0; on one H200 38.2 and 39.0 GB.
"""

import argparse
import collections
import functools
import os
import re
import time
import typing
from collections.abc import Sequence
from pathlib import Path

os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
# Another process may hold libtpu's lock; nothing here touches a chip.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import pallas_kernels as pk
from worldstereo_jax.config import get_preset
from worldstereo_jax.evaluation.report import Table, kept_rows, write_section
from worldstereo_jax.interop.layer_stacks import from_flat
from worldstereo_jax.interop.memory_slots import read_widths
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.models.placement import tensor_parallel
from worldstereo_jax.models.worldstereo import (
    ControlInput,
    MemoryEntries,
    References,
    WarpedMemory,
    WorldStereo,
)
from worldstereo_jax.sampling.official_world import ENTRY_TOKENS
from worldstereo_jax.sampling.token_reading import token_pattern

RESULTS = Path(__file__).with_name("RESULTS.md")
CONFIG = get_preset("wan_14b_memory")
PATTERNS = ("dense", "correspondence", "dense+slots", "correspondence+slots")
CANDIDATES = 2
FRAMES, ROWS, COLUMNS, VIEWS = 21, 60, 104, 8
TARGET, REFERENCE = FRAMES * ROWS * COLUMNS // 4, VIEWS * ROWS * COLUMNS // 4


class Slice(typing.NamedTuple):
    """Chips: topology, how many split heads and how many split queries, gigabytes of each."""

    topology: str
    heads: int
    queries: int
    capacity: int


SLICES = (
    Slice("v5e:2x4", 8, 1, 16),
    Slice("v6e:2x4", 8, 1, 32),
    Slice("v5p:2x2x2", 1, 1, 95),
    Slice("v5p:2x2x2", 8, 1, 95),
    Slice("v5e:4x4", 8, 2, 16),
)
H200_GB = 150.75
HEADER = (
    "topology", "chips: heads x queries", "pattern", "attention", "GB per chip",
    "parameters and inputs GB", "temporary GB", "together GB", "compile seconds",
)  # fmt: skip


def inputs() -> dict:
    """Abstract inputs of one step, but for the mask."""

    def array(*shape: int, dtype=jnp.bfloat16) -> typing.Any:
        return jax.ShapeDtypeStruct(shape, dtype)

    latent = (1, FRAMES, ROWS, COLUMNS)
    pixels = (1, FRAMES, 8 * ROWS, 8 * COLUMNS)
    return {
        "latent": array(*latent, 36, dtype=jnp.float32),
        "timestep": array(1, dtype=jnp.float32),
        "text": array(1, 512, 4096),
        "image_tokens": array(1, 257, 1280),
        "control": ControlInput(array(*latent, 16), array(*pixels, 1), array(*pixels, 6)),
        "references": References(
            latent=array(1, VIEWS, ROWS, COLUMNS, 36),
            index=array(1, VIEWS, dtype=jnp.int32),
            camera=array(1, VIEWS, 7, dtype=jnp.float32),
        ),
        "camera": array(1, FRAMES, 7, dtype=jnp.float32),
    }


def mask_shapes(tiles: pk.TileSizes) -> pk.BlockMask:
    """Shapes of the packed mask over [references ; target], with bits for an eighth of it."""

    def tokens(length: int, views: int) -> typing.Any:
        position = jax.ShapeDtypeStruct((1, length, 3), jnp.float32)
        return jax.eval_shape(
            lambda x: pk.make_token_geometry(x, radius=1.0, views=views), position
        )

    def build(reference, target):
        mask = pk.joint_correspondence(reference, target, tile_q=tiles.tile_q, tile_k=tiles.tile_k)
        # Parts of 128 queries; a procedural scene fills 6.7 % of all.
        parts = -(-mask.q_len // 128) * mask.k_tiles
        return pk.pack_partial_tiles(mask, capacity=parts // 8)

    return jax.eval_shape(build, tokens(REFERENCE, FRAMES), tokens(TARGET, VIEWS))


def slot_inputs() -> dict:
    """Abstract inputs of the modules for warped views and entries."""
    widths = read_widths()

    def array(*shape: int, dtype=jnp.float32) -> typing.Any:
        return jax.ShapeDtypeStruct((1, *shape), dtype)

    def tokens(length: int, views: int) -> typing.Any:
        return jax.eval_shape(
            lambda x: pk.make_token_geometry(x, radius=1.0, views=views), array(length, 3)
        )

    pattern = jax.eval_shape(
        lambda wanted, entries: token_pattern(wanted, None, entries),
        tokens(TARGET, VIEWS),
        tokens(ENTRY_TOKENS, FRAMES),
    )
    latent = (FRAMES, ROWS, COLUMNS, CANDIDATES)
    return {
        "warped": WarpedMemory(array(*latent, widths["warped_width"]), array(*latent)),
        "entries": MemoryEntries(
            features=array(ENTRY_TOKENS, widths["entry_width"]),
            place=array(ENTRY_TOKENS, 3),
            target_place=array(TARGET, 3),
            valid=array(ENTRY_TOKENS, dtype=jnp.bool_),
        ),
        "entry_mask": pattern.entry_mask,
    }


class Work(typing.NamedTuple):
    """The joint pattern of a scene in tiles: shares of all tile pairs."""

    active: float
    partial: float


@functools.cache
def work_of(tiles: tuple[int, int], seed: int = 0) -> Work:
    """Count the tiles of a procedural scene's mask."""
    from tile_density import joint_mask, procedural

    mask = joint_mask(*procedural(seed, VIEWS), *tiles)
    total = mask.q_tiles * mask.k_tiles
    return Work(float(mask.keys.count.sum()) / total, float(mask.keys.partial.sum()) / total)


def trace() -> tuple[float, float]:
    """Seconds to trace on abstract values; parameters in billions."""
    start = time.perf_counter()
    shapes = parameter_shapes(CONFIG)
    params = from_flat({k: jax.ShapeDtypeStruct(s, jnp.bfloat16) for k, s in shapes.items()})
    out = jax.eval_shape(
        lambda params, given: WorldStereo(CONFIG).apply({"params": params}, **given),
        params,
        inputs(),
    )
    assert out.shape == (1, FRAMES, ROWS, COLUMNS, 16)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    return time.perf_counter() - start, count / 1e9


def kernels_in(program: str) -> str:
    """Attention kernels that a lowered program calls, and how often it says so."""
    names = {"tpu_custom_call": "pallas_tpu", "mosaic_gpu": "pallas_mosaic_gpu", "fmha": "cuDNN"}
    targets = re.findall(r"custom_call @([\w$]+)", program)
    found = [name for target in targets for key, name in names.items() if key in target]
    counted = sorted(collections.Counter(found).items())
    return ", ".join(f"{count} {name}" for name, count in counted) or "products"


def compile_for(mesh: Mesh, pattern: str, **options: typing.Any) -> dict[str, typing.Any]:
    """Compile the step for a mesh with axes "model" and "rows"; gigabytes per chip and seconds."""
    rows = "rows" if mesh.shape["rows"] > 1 else None
    sharding = pk.AttentionSharding(mesh, heads="model", queries=rows)
    base, _, slots = pattern.partition("+")
    config = CONFIG.replace(attention_pattern=base, **(read_widths() if slots else {}))
    model = WorldStereo(config, sharding)
    place = tensor_parallel(mesh, "model")
    whole = NamedSharding(mesh, PartitionSpec())
    params = from_flat(
        {
            path: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place(path, shape))
            for path, shape in parameter_shapes(config).items()
        }
    )
    given = inputs() | (slot_inputs() if slots else {})
    if base != "dense":
        given["block_mask"] = mask_shapes(pk.best_tiles(pk.target_of(mesh).kind))
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), given)
    start = time.perf_counter()
    step = jax.jit(lambda params, given: model.apply({"params": params}, **given))
    lowered = step.lower(params, given)
    compiled = lowered.compile(**options)
    memory: typing.Any = compiled.memory_analysis()
    return {
        "seconds": time.perf_counter() - start,
        "arguments": memory.argument_size_in_bytes / 1e9,
        "temporary": memory.temp_size_in_bytes / 1e9,
        "kernels": kernels_in(lowered.as_text()),
    }


def row_of(
    name: str, split: str, pattern: str, capacity: float, mesh: Mesh, **options: typing.Any
) -> tuple[str, ...]:
    """A row of the table; what does not fit has no figures."""
    found: dict[str, typing.Any]
    try:
        found = compile_for(mesh, pattern, **options)
    except jax.errors.JaxRuntimeError as error:
        # Expected where a slice is too small: the compiler says by how much.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(name, pattern, str(error)[:600], flush=True)
        unknown = dict.fromkeys(("arguments", "temporary", "seconds"), float("nan"))
        found = {**unknown, "kernels": "does not fit"}
    total = found["arguments"] + found["temporary"]
    cells = (found["arguments"], found["temporary"], total)
    row = (
        name, split, pattern, found["kernels"], f"{capacity:.0f}",
        *(f"{x:.2f}" for x in cells), f"{found['seconds']:.0f}",
    )  # fmt: skip
    print(*row, flush=True)
    return row


def rows_with(kept: list[tuple[str, ...]], row: tuple[str, ...]) -> list[tuple[str, ...]]:
    """An earlier run's rows with a new one, in the place of the one of the same program."""
    return list(({each[:3]: each for each in kept} | {row[:3]: row}).values())


def facts(seconds: float, billions: float, tiles: Sequence[tuple[int, int]]) -> str:
    """What the figures are of."""
    text = (
        f"One denoising step, {TARGET} target tokens and {VIEWS} references of "
        f"{REFERENCE // VIEWS} tokens each, {billions:.2f} B parameters in bfloat16. Traced on "
        f"abstract values in {seconds:.1f} s. Gigabytes (10^9) per chip as the compiled program "
        "states them; `attention` is what the lowered program calls, once for all scanned layers. "
        "With slots: modules for warped views and surface entries, of some 2.5 B parameters more. "
        "The machine was shared with other jobs."
    )
    for each in tiles:
        work = work_of(each)
        text += (
            f" On a procedural scene the correspondence pattern computes {100 * work.active:.1f} % "
            f"of the tile pairs of dense attention in tiles of {each[0]}x{each[1]}, "
            f"{100 * work.partial:.1f} % under a mask: the target sees itself densely, which is "
            f"{100 * (TARGET / (TARGET + REFERENCE)) ** 2:.1f} %."
        )
    return text


def main() -> None:
    """Trace, compile, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--slices", type=int, nargs="*", default=list(range(len(SLICES))))
    parser.add_argument("--patterns", nargs="*", choices=PATTERNS, default=list(PATTERNS[:2]))
    parser.add_argument("--h200", action="store_true", help="one H200 instead of TPU slices")
    options = parser.parse_args()
    seconds, billions = trace()
    print(f"traced in {seconds:.1f} s: {billions:.2f} B parameters", flush=True)
    command = "python experiments/aot_14b.py"
    if options.h200:
        from gpu_compile import OPTIMISED, device

        about, rows = facts(seconds, billions, [pk.best_tiles("NVIDIA H200")[:2]]), []
        mesh = Mesh(np.array([device()]).reshape(1, 1), ("rows", "model"))
        for pattern in options.patterns:
            rows.append(row_of("H200", "1 x 1", pattern, H200_GB, mesh, compiler_options=OPTIMISED))
        parts = [about, Table(HEADER, rows)]
        title = "The 14B memory model on one H200, ahead of time"
        write_section(RESULTS, title, parts, command=f"{command} --h200")
        return
    title = "The 14B memory model at its working size, ahead of time"
    about = facts(seconds, billions, [pk.best_tiles("TPU")[:2]])
    for each in (SLICES[index] for index in options.slices):
        chips = each.heads * each.queries
        found = topologies.get_topology_desc(platform="tpu", topology_name=each.topology).devices
        mesh = Mesh(np.array(found[:chips]).reshape(each.queries, each.heads), ("rows", "model"))
        split = f"{each.heads} x {each.queries}"
        for pattern in options.patterns:
            row = row_of(each.topology, split, pattern, each.capacity, mesh)
            # After every program: a later one may take the whole machine down.
            table = Table(HEADER, rows_with(kept_rows(RESULTS, title, HEADER), row))
            write_section(RESULTS, title, [about, table], command=command)


if __name__ == "__main__":
    main()
