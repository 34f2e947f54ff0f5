"""Block-sparse attention against dense attention and PyTorch's FlexAttention, by density.

    python experiments/attention_bench.py [--sizes 4096x4096] [--dtype float32] [--no-torch]
    python experiments/attention_bench.py --ahead   # compile all of it for an H200, run nothing

Claim: on a CPU `xla_chunked` is at least 5 times faster than dense attention when 10 % of the
tiles are active, forward and backward. On a GPU the same script times the GPU kernels, with cuDNN
as the dense peer, at the working sizes (`WORKING`):

    python experiments/attention_bench.py --dtype bfloat16 --heads 40 --head-dim 128 \\
        --sizes 32760x12480 32760x99840 45240x45240

Random tile lists, every listed tile whole; each implementation that can run here, dense attention
(`jax.nn.dot_product_attention`) and compiled FlexAttention (where it refuses a backward pass, as
on CPUs, the table quotes it)
have the same operands in one run, and take turns: of every program the fastest turn counts, since
other jobs only ever add time. TFLOP/s count the active tiles only, 4 d per pair forward and 14 d
with the backward pass. `peak` is operands, results and what the compiler plans beyond them; of
FlexAttention on a GPU what PyTorch allocated. `error` is the largest difference of the first rows
of the output from the float32 reference under the same mask.

The second table is what the tuned tile sizes come from (pallas_kernels/tile_sizes.json): tokens on
a wavy surface in Hilbert order, a key allowed within 1.5 token footprints, the same pairs in tiles
of every size, so that smaller tiles list fewer pairs and larger ones work faster. `building` is the
time to make the mask from the geometry, `packing` that to look into its partial tiles and keep
their bits, once for all layers; `mask` its bytes over those of a dense mask of booleans. The third,
where there are as many queries as keys: the joint pattern over [references ; target] by one kernel,
or with the target's attention to itself apart (on a GPU by cuDNN) and merged by LSE.

`--ahead` lowers and compiles the same programs, dense and ours, forward and backward, at the
working sizes for an H200 that is not there (see gpu_compile.py for what it needs; cuDNN besides):
what compiles there is what a first run on a GPU would time.

Record (2026-11-26, two idle EPYC cores): at 9 % of the tiles xla_chunked takes 12 times less than
dense attention forward and 11 times less with the backward pass, and FlexAttention (PyTorch 2.14)
18 times less forward; at 25 % they take 6 and 8 times less forward, when all tiles are active 1.5
and 2.1 times less. Tiles of 64 are the fastest for the correspondence mask. FlexAttention has no
backward pass on CPUs. Nothing was measured on a GPU.
"""

import argparse
import dataclasses
import importlib.util
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib as mpl
import numpy as np
from tqdm import tqdm

import pallas_kernels as pk
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.files import atomic_write

RESULTS = Path(__file__).parent / "RESULTS.md"
PLOT = Path(__file__).parent / "plots" / "attention_by_density.png"
TABLE = Path(pk.__file__).parent / "tile_sizes.json"
DENSITIES = (0.01, 0.05, 0.1, 0.25, 0.5, 1.0)
TILES = ((64, 64), (128, 64), (128, 128), (256, 128), (256, 256))
WORKING = {"sizes": ((32_760, 12_480), (32_760, 99_840), (45_240, 45_240)), "heads": 40, "d": 128}
# Of a joint sequence: 8 views of 1,560 tokens in 45,240.
VIEWS, REFERENCE_SHARE = 8, (12_480, 45_240)
CHECKED_TILES = 2  # rows of tiles whose output is compared: all logits of the others would not fit
Program = Callable[[], Any]


def fastest(programs: dict[Any, Program], repeats: int) -> dict[Any, float]:
    """Least wall time of each program, in seconds; they take turns, after one call each."""
    for program in programs.values():
        jax.block_until_ready(program())
    best = dict.fromkeys(programs, float("inf"))
    for _ in range(repeats):
        for name, program in programs.items():
            start = time.perf_counter()
            jax.block_until_ready(program())
            best[name] = min(best[name], time.perf_counter() - start)
    return best


def random_lists(rng: np.random.Generator, rows: int, columns: int, density: float):
    """Per row of tiles the same number of random columns: index [rows, columns], count [rows]."""
    index = np.stack([rng.permutation(columns) for _ in range(rows)]).astype(np.int32)
    return index, np.full(rows, max(1, round(density * columns)), np.int32)


def dense_attention(q: Any, k: Any, v: Any, mask: pk.BlockMask) -> jax.Array:
    """The dense peer; the mask is not looked at."""
    vendor = "cudnn" if pk.target_of(q).platform == "gpu" and q.dtype != jnp.float32 else None
    return jax.nn.dot_product_attention(q, k, v, implementation=vendor)


def ours(name: str) -> Callable[..., Any]:
    """An implementation of ours as a function of q, k, v and the mask."""
    return lambda q, k, v, mask: pk.block_sparse_attention(q, k, v, mask, implementation=name)


def with_gradient(attend: Callable[..., Any]) -> Any:
    """Gradients of the attention's sum, as a function of q, k, v and the mask."""

    def total(q, k, v, mask):
        return jnp.sum(attend(q, k, v, mask).astype(jnp.float32))

    return jax.grad(total, argnums=(0, 1, 2))


class Flex(NamedTuple):
    """FlexAttention on given operands.

    make     (index, count) of a mask -> programs by pass; each returns the MB that PyTorch
             allocated at most, on a GPU.
    refuses  why it has no backward pass here; empty where it has.
    """

    make: Callable[[np.ndarray, np.ndarray], dict[str, Program]]
    refuses: str


def flex_programs(operands: Sequence[jax.Array], tile: int) -> Flex:
    """FlexAttention on the same operands."""
    import torch  # pyright: ignore[reportMissingImports]
    from torch.nn.attention.flex_attention import (  # pyright: ignore[reportMissingImports]
        BlockMask,
        flex_attention,
    )

    device = "cuda" if torch.cuda.is_available() else "cpu"
    kind = getattr(torch, str(operands[0].dtype))
    q, k, v = (
        torch.from_numpy(np.array(x.astype(jnp.float32))).to(device, kind).transpose(1, 2)
        for x in operands
    )
    compiled = torch.compile(flex_attention)

    def finish() -> float | None:
        if device == "cpu":
            return None
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() / 2**20

    def gradients(*operands: Any, **options: Any) -> None:
        leaves = [x.detach().requires_grad_() for x in operands]
        out = compiled(*leaves, **options)
        torch.autograd.grad(out.float().sum(), leaves)

    def refusal() -> str:
        try:
            gradients(*(x[:, :, : 2 * tile] for x in (q, k, v)))
        except RuntimeError as error:  # what PyTorch's compilers raise
            return str(error).strip().splitlines()[0]
        finally:
            # Or what was refused once would run uncompiled from then on, and other lengths as if
            # any were to come.
            torch._dynamo.reset()
        return ""

    refuses = refusal()

    def make(index: np.ndarray, count: np.ndarray) -> dict[str, Program]:
        listed = torch.from_numpy(index)[None, None].to(device)
        number = torch.from_numpy(count)[None, None].to(device)
        mask = BlockMask.from_kv_blocks(
            torch.zeros_like(number), listed.clone(), number, listed,
            BLOCK_SIZE=tile, seq_lengths=(q.shape[2], k.shape[2]),
        )  # fmt: skip

        def forward() -> float | None:
            with torch.no_grad():
                compiled(q, k, v, block_mask=mask)
            return finish()

        def both() -> float | None:
            gradients(q, k, v, block_mask=mask)
            return finish()

        return {"forward": forward} if refuses else {"forward": forward, "both": both}

    return Flex(make, refuses)


def planned_mb(compiled: Any) -> float:
    """MB of a compiled program's operands, results and temporaries."""
    planned = compiled.memory_analysis()
    total = planned.argument_size_in_bytes + planned.output_size_in_bytes
    return (total + planned.temp_size_in_bytes - planned.alias_size_in_bytes) / 2**20


def compile_program(function: Callable[..., Any], *operands: Any) -> tuple[Program, float]:
    """The compiled call, and the MB that it takes."""
    compiled = jax.jit(function).lower(*operands).compile()
    return lambda: compiled(*operands), planned_mb(compiled)


def attentions(q: Any) -> dict[str, Callable[..., Any]]:
    """Dense attention, and ours by name, as far as they run where q is."""
    names = [n for n, reason in pk.available_implementations(q).items() if not reason]
    return {"dense": dense_attention, **{n: ours(n) for n in names if n != "reference"}}


def by_density(options: argparse.Namespace, size: tuple[int, int]) -> tuple[Table, dict, str]:
    """The table for one size, its points, and why FlexAttention has no backward pass, if so.

    Points: (implementation, pass) -> [(density, TFLOP/s, x dense)].
    """
    rng = np.random.default_rng(options.seed)
    shapes = [(1, t, options.heads, options.head_dim) for t in (size[0], size[1], size[1])]
    q, k, v = (jnp.asarray(rng.normal(size=s), options.dtype) for s in shapes)
    flex = None if options.no_torch else flex_programs((q, k, v), options.tile)
    rows, points = [], {}
    for density in tqdm(DENSITIES, leave=False):
        tiles = [-(-t // options.tile) for t in size]
        index, count = random_lists(rng, tiles[0], tiles[1], density)
        checked = min(CHECKED_TILES, tiles[0])

        def listed(rows: int, length: int, index=index, count=count) -> pk.BlockMask:
            return pk.from_tile_lists(
                jnp.asarray(index[:rows])[None, None], jnp.asarray(count[:rows])[None, None],
                q_len=length, k_len=size[1], tile_q=options.tile, tile_k=options.tile,
            )  # fmt: skip

        mask = listed(tiles[0], size[0])
        share = float(mask.density()[0, 0])
        made = {}
        for name, attend in attentions(q).items():
            made[name, "forward"] = compile_program(attend, q, k, v, mask)
            made[name, "both"] = compile_program(with_gradient(attend), q, k, v, mask)
        programs: dict[Any, Program] = {key: program for key, (program, _) in made.items()}
        if flex is not None:
            programs |= {("FlexAttention", part): x for part, x in flex.make(index, count).items()}
        found = fastest(programs, options.repeats)
        first = min(checked * options.tile, size[0])
        rows_of = (q[:, :first], k, v)
        exact = ours("reference")(*(x.astype(jnp.float32) for x in rows_of), listed(checked, first))
        for name, part in programs:
            seconds, dense = found[name, part], found["dense", part]
            flops = (4 if part == "forward" else 14) * options.head_dim * options.heads
            pairs = size[0] * size[1] * (1.0 if name == "dense" else share)
            known = (name, part) in made
            peak = made[name, part][1] if known else programs[name, part]()
            error = ""
            if known and name != "dense" and part == "forward":
                out = programs[name, part]()[:, :first].astype(jnp.float32)
                error = f"{float(jnp.max(jnp.abs(out - exact))):.1e}"
            speed = flops * pairs / seconds / 1e12
            times = dense / seconds
            points.setdefault((name, part), []).append((share, speed, times))
            rows.append(
                (f"{100 * share:.0f} %", name, part, f"{1e3 * seconds:.1f}", f"{times:.1f}",
                 f"{speed:.3g}", "" if peak is None else f"{peak:.0f}", error)
            )  # fmt: skip
    columns = ("active tiles", "program", "pass", "ms", "x dense", "TFLOP/s", "peak MB")
    caption = f"{size[0]} queries, {size[1]} keys, {options.heads} heads of {options.head_dim}, "
    caption += f"{options.dtype}, tiles of {options.tile}."
    return Table((*columns, "error"), rows, caption), points, "" if flex is None else flex.refuses


def surface(rng: np.random.Generator, tokens: int) -> pk.TokenGeometry:
    """Tokens on a wavy surface of 1 m, in Hilbert order."""
    place = rng.random((tokens, 2))
    height = 0.1 * np.sin(9 * place[:, 0]) * np.cos(7 * place[:, 1])
    position = jnp.asarray(np.concatenate([place, height[:, None]], axis=1), jnp.float32)[None]
    geometry = pk.make_token_geometry(position, radius=1.5 * tokens**-0.5)
    return pk.order_geometry(geometry, pk.order_tokens(geometry))


def by_tile(options: argparse.Namespace, size: tuple[int, int]) -> tuple[Table, dict[str, Any]]:
    """The table of tile sizes for one correspondence mask, and the best of them."""
    rng = np.random.default_rng(options.seed)
    shapes = [(1, t, options.heads, options.head_dim) for t in (size[0], size[1], size[1])]
    q, k, v = (jnp.asarray(rng.normal(size=s), options.dtype) for s in shapes)
    query, key = surface(rng, size[0]), surface(rng, size[1])
    rows, best = [], (float("inf"), {})
    for tile_q, tile_k in tqdm(TILES, leave=False):

        def build(query, key, tile_q=tile_q, tile_k=tile_k):
            return pk.from_geometry(query, key, tile_q=tile_q, tile_k=tile_k)

        loose = build(query, key)
        # Room for all parts of what is partial, rounded up.
        parts = -(-tile_q // 128)
        room = -(-int(pk.refine(loose).keys.partial.sum()) * parts // 64) * 64

        def pack(mask, room=room):
            return pk.pack_partial_tiles(mask, capacity=room)

        mask = pack(loose)
        name = pk.explain_choice(q, k, mask).implementation
        building, _ = compile_program(build, query, key)
        packing, _ = compile_program(pack, loose)
        step, _ = compile_program(with_gradient(ours(name)), q, k, v, mask)
        found = fastest({"building": building, "packing": packing, "step": step}, options.repeats)
        density = pk.tile_density(mask)
        held = sum(x.nbytes for x in jax.tree.leaves(mask)) / (size[0] * size[1])
        rows.append(
            (f"{tile_q}x{tile_k}", f"{100 * float(density.active):.1f} %", name,
             f"{1e3 * found['step']:.1f}", f"{1e3 * found['building']:.1f}",
             f"{1e3 * found['packing']:.1f}", f"{100 * held:.2f} %")
        )  # fmt: skip
        best = min(best, (found["step"], {"tile_q": tile_q, "tile_k": tile_k}), key=lambda x: x[0])
    columns = ("tile", "active tiles", "program", "forward and backward ms", "building ms")
    columns += ("packing ms", "mask")
    return Table(columns, rows, f"A correspondence mask, {size[0]} x {size[1]} tokens."), best[1]


def joint_programs(start: int) -> dict[str, Callable[..., Any]]:
    """Forward attention under the joint pattern, as functions of q, k, v, the mask and its rest."""

    def one(q, k, v, mask, rest):
        return pk.block_sparse_attention(q, k, v, mask)

    def two(q, k, v, mask, rest):
        return pk.attend_with_dense_tail(q, k, v, rest, start=start)

    return {"one kernel": one, "dense target apart, merged by LSE": two}


def by_joint(options: argparse.Namespace, tokens: int) -> Table:
    """The joint pattern over [references ; target], in one kernel or with the target's own apart.

    On an NVIDIA GPU the part apart is cuDNN's.
    """
    rng = np.random.default_rng(options.seed)
    start = tokens * REFERENCE_SHARE[0] // REFERENCE_SHARE[1]
    shape = (1, tokens, options.heads, options.head_dim)
    q, k, v = (jnp.asarray(rng.normal(size=shape), options.dtype) for _ in range(3))
    reference, target = surface(rng, start), surface(rng, tokens - start)
    frame = jnp.arange(start, dtype=jnp.int32)[None] * VIEWS // start
    loose = pk.joint_correspondence(dataclasses.replace(reference, frame=frame), target)
    parts = -(-loose.tile_q // 128)
    room = int(pk.refine(loose).keys.partial.sum()) * parts
    mask = pk.pack_partial_tiles(loose, capacity=room)
    # The end of the references cuts through a row and a column of tiles.
    room += 2 * (mask.q_tiles + mask.k_tiles) * parts
    rest = pk.without_dense_tail(mask, start=start, capacity=room)
    made = {
        name: compile_program(attend, q, k, v, mask, rest)
        for name, attend in joint_programs(start).items()
    }
    found = fastest({name: program for name, (program, _) in made.items()}, options.repeats)
    rows = [
        (name, f"{100 * float((rest if i else mask).density()[0, 0]):.1f} %",
         f"{1e3 * found[name]:.1f}", f"{made[name][1]:.0f}")
        for i, name in enumerate(made)
    ]  # fmt: skip
    caption = f"The joint pattern, {start} reference and {tokens - start} target tokens, forward."
    return Table(("program", "active tiles under the mask", "ms", "peak MB"), rows, caption)


def store(best: dict[str, Any]) -> None:
    """Put the tile sizes of this device into the package's table."""
    table = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    device = jax.devices()[0].device_kind
    table[device] = best | {"source": "experiments/attention_bench.py, measured"}
    with atomic_write(TABLE) as temporary:
        temporary.write_text(json.dumps(table, indent=2, sort_keys=True) + "\n")


def plot(points: dict, caption: str) -> None:
    """Times faster than dense, by density."""
    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5, 3.6), layout="constrained")
    for (name, part), values in points.items():
        if name != "dense":
            share, _, times = zip(*values, strict=True)
            label = f"{name}, {'forward' if part == 'forward' else 'with backward'}"
            axes.plot(share, times, marker="o", label=label)
    axes.plot([0.01, 1], [100, 1], ":", color="grey", label="work in proportion")
    axes.set(xscale="log", yscale="log", xlabel="active tiles", ylabel="times faster than dense")
    axes.set_title(caption, fontsize=8)
    axes.legend(fontsize=7)
    PLOT.parent.mkdir(exist_ok=True)
    figure.savefig(PLOT, dpi=110)


def ahead() -> None:
    """Compile the programs of the working sizes for an H200, and write the section."""
    from gpu_compile import (
        OPTIMISED,
        abstract_device,
        attention_arguments,
        cannot_compile,
        device,
    )
    from jax.sharding import SingleDeviceSharding

    # The GPU's plug-in is asked to compile only, and not for the devices that it has.
    jax.config.update("jax_platforms", "cpu")
    reason = cannot_compile()
    if reason:
        raise SystemExit(reason)
    place = SingleDeviceSharding(device())
    rows = []
    for queries, keys in WORKING["sizes"]:
        operands = attention_arguments(
            queries, keys, WORKING["heads"], WORKING["d"], jnp.bfloat16, kind="bits"
        )
        operands = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), operands
        )
        programs = [
            (name, part, function, operands)
            for name, attend in attentions(operands[0]).items()
            for part, function in (("forward", attend), ("both", with_gradient(attend)))
        ]
        if queries == keys:
            joint = joint_programs(queries * REFERENCE_SHARE[0] // REFERENCE_SHARE[1])
            programs += [(x, "forward", y, (*operands, operands[3])) for x, y in joint.items()]
        for name, part, function, given in programs:
            start = time.perf_counter()
            with abstract_device():
                lowered = jax.jit(function).lower(*given)
                compiled = lowered.compile(compiler_options=OPTIMISED)
            seconds = time.perf_counter() - start
            row = (f"{queries} x {keys}", name, part, f"{planned_mb(compiled):.0f}")
            rows.append((*row, f"{seconds:.0f}"))
            print(*rows[-1], flush=True)
    text = (
        f"{WORKING['heads']} heads of {WORKING['d']}, bfloat16, a mask of full and partial tiles; "
        "dense is cuDNN's. Compiled for an H200 that is not there; nothing is timed but the "
        "compiler. The machine was shared with other jobs."
    )
    columns = ("queries x keys", "program", "pass", "peak MB", "compile seconds")
    write_section(
        RESULTS, "Attention programs, compiled for an H200", [text, Table(columns, rows)],
        command="python experiments/attention_bench.py --ahead",
    )  # fmt: skip


def main() -> None:
    """Print the tables, draw the plot, write the section and the tuned tile sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["4096x4096"], help="queries x keys")
    parser.add_argument("--head-dim", type=int, default=64)
    parser.add_argument("--heads", type=int, default=1)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--tile", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-torch", action="store_true", help="leave FlexAttention out")
    parser.add_argument("--note", default="", help="what else the machine was doing")
    parser.add_argument("--ahead", action="store_true", help="compile for an H200, run nothing")
    options = parser.parse_args()
    if options.ahead:
        ahead()
        return
    parts: list[Any] = []
    if importlib.util.find_spec("torch") is None:
        options.no_torch = True
    if options.no_torch:
        parts.append("FlexAttention is missing: PyTorch was not there, or left out.")
    for text in options.sizes:
        queries, keys = (int(x) for x in text.split("x"))
        table, points, refused = by_density(options, (queries, keys))
        tiles, best = by_tile(options, (queries, keys))
        parts += [table, tiles]
        if refused:
            parts.append(f"Compiled FlexAttention refuses a backward pass here: {refused}")
        if queries == keys:
            parts.append(by_joint(options, queries))
        plot(points, table.caption)
    store(best)
    parts.append(f"![times faster than dense attention](plots/{PLOT.name})")
    kind = jax.devices()[0].device_kind
    parts.append(f"Device: {kind}; no figures of another kind are in this run. {options.note}")
    for part in parts:
        print(part.markdown() if isinstance(part, Table) else part, end="\n\n")
    command = f"python experiments/attention_bench.py --sizes {' '.join(options.sizes)}"
    command += f" --heads {options.heads} --head-dim {options.head_dim} --dtype {options.dtype}"
    write_section(RESULTS, "Attention by density", parts, command=command)


if __name__ == "__main__":
    main()
