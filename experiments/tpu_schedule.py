"""What the TPU compiler makes of the attention kernels, beside jax's splash attention.

    python experiments/tpu_schedule.py [--topologies v5e:2x4 v6e:4x4 ...] [--scenes 3]
    python experiments/tpu_schedule.py --variants geometry soft

Needs libtpu, and no TPU: the real compiler writes down its final schedule of VLIW bundles, one of
which starts per cycle. Claim: a full tile takes at most 10 % more bundles than splash attention's
in the same run, a partial one at most 35 % more. Counted for compute tiles of 512 x 512 pairs,
bfloat16, head size 128, per head:

- ours: masks with tiles of 512 x 128, four listed tiles to a compute tile in the forward pass and
  for dq, four heads to a program. For dk and dv a program owns 128 keys, so four tiles of
  512 x 128 are counted. What decides in partial tiles is `bits` or, of a soft constraint, packed
  `numbers`, without the gradient of the constraint's strength or with it (`learned`: dq's kernel
  finds it); or the predicate, without the soft constraint (`geometry`) or with it (`soft`). All
  four tiles of the step are partial.
- splash: blocks of 512 x 512, no mask.

Second claim: attention from 21 target frames to 64 reference views through a correspondence mask
costs at most 0.6 of dense attention to 8 views. Counted: the steps of every row on procedural
scenes (see tile_density.py), rounding up included, times the bundles above, over splash's bundles
for 32,760 x 12,480 pairs. The partial tiles are bits, or numbers of a soft constraint, which lists
what lies within its reach: packed once for all layers.

Scalar bundles of a step (list, copies, loops) are added to both, for ours shared by the four
heads; what happens once per row of tiles (start, end) is in neither. VMEM and SMEM are blocks,
buffers and scratch, without spilled registers; the smallest chip gives a kernel 16 MiB.

Record (2026-11-26, jax 0.10.2, libtpu 0.0.52): on v4, v5e, v5p, v6e and tpu7x full tiles take 24 %
to 2 % fewer bundles than splash, partial ones with bits 21 % fewer to 16 % more, with numbers 10 %
fewer to 34 % more, and where the strength is learned up to 17 % more in dq (v4: 49 %, loads are
what it lacks). 64 views through a hard mask cost 0.34 to 0.48 of 8 dense ones; through a soft
constraint, which reaches twice as far, 0.53 to 0.77. A whole layer costs 0.53 to 0.61 of the dense
one with 8 views and 1.28 to 1.51 of it with 64.

Record (2026-11-22, geometry and soft): the predicate in the kernel adds 58 % to 119 % to splash's
count (200 % to 250 % on v4), the soft constraint 75 % to 152 % (v4: 255 % to 317 %), shared by four
heads. So bits and numbers are what ships.
"""

import argparse
import dataclasses
import functools
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

TOPOLOGIES = ("v4:4x4x4", "v5e:2x4", "v5p:2x2x2", "v6e:4x4", "tpu7x:2x2x1")
RESULTS = Path(__file__).parent / "RESULTS.md"
Q_LEN, K_LEN, HEADS, HEAD_DIM = 32_768, 65_536, 16, 128
TILE_Q, TILE_K, WIDE, GROUP, CHUNK = 512, 128, 512, 4, 64
VARIANTS = ("bits", "numbers", "learned", "geometry", "soft")
SHIPPED = ("bits", "numbers", "learned")
NUMBERS = ("numbers", "learned")
# Kernel -> its name in our dumps and in splash's.
KERNELS = {
    "forward": ("block_sparse_forward", "splash_mha_fwd"),
    "dq": ("block_sparse_backward_queries", "splash_mha_dq"),
    "dk, dv": ("block_sparse_backward_keys", "splash_mha_dkv"),
}


def call(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, of no particular type."""
    return function(*args)


def child(variant: str, topology: str) -> None:
    """Compile forward and backward for one chip; libtpu dumps on the way."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import topologies
    from jax.experimental.pallas.ops.tpu import splash_attention as splash

    import pallas_kernels as pk
    from pallas_kernels.pallas_tpu import tpu_attention

    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    chip = jax.sharding.SingleDeviceSharding(devices[0])

    def shaped(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=chip), tree)

    def operands(*order: int):
        sizes = [(t, HEADS) for t in (Q_LEN, K_LEN, K_LEN)]
        shapes = [(*(size[i] for i in order), HEAD_DIM) for size in sizes]
        return shaped([jax.ShapeDtypeStruct(s, jnp.bfloat16) for s in shapes])

    if variant == "splash":
        sizes = splash.BlockSizes(
            block_q=WIDE,
            block_kv=WIDE,
            block_kv_compute=WIDE,
            block_q_dkv=WIDE,
            block_kv_dkv=WIDE,
            block_kv_dkv_compute=WIDE,
            block_q_dq=WIDE,
            block_kv_dq=WIDE,
        )
        full = splash.MultiHeadMask([splash.FullMask((Q_LEN, K_LEN))] * HEADS)
        kernel = splash.make_splash_mha(full, block_sizes=sizes, head_shards=1, q_seq_shards=1)
        arguments = operands(1, 0)
        attend = functools.partial(call, kernel)
    else:
        geometry = [
            jax.eval_shape(
                lambda x: pk.make_token_geometry(x, radius=0.1, views=64),
                jax.ShapeDtypeStruct((1, t, 3), jnp.float32),
            )
            for t in (Q_LEN, K_LEN)
        ]
        strength = jnp.ones(HEADS) if variant in ("soft", *NUMBERS) else None
        mask = jax.eval_shape(
            lambda q, k: pk.from_geometry(q, k, strength=strength, tile_q=TILE_Q, tile_k=TILE_K),
            *geometry,
        )
        if variant == "bits":
            mask = jax.eval_shape(lambda m: pk.pack_partial_tiles(m, capacity=1000), mask)
        if variant in NUMBERS:
            mask = jax.eval_shape(lambda m: pk.pack_soft_tiles(m, capacity=1000), mask)
        arguments = [x.update(shape=(1, *x.shape)) for x in operands(0, 1)] + [shaped(mask)]

        def ours(q, k, v, mask):
            return tpu_attention(q, k, v, mask, HEAD_DIM**-0.5)[0]

        attend = functools.partial(call, ours)

    def total(q, k, v, mask=None, strength=None):
        if strength is not None and mask is not None:
            mask = mask.replace(strength=strength)
        rest = () if mask is None else (mask,)
        return jnp.sum(attend(q, k, v, *rest).astype(jnp.float32))

    asked = (0, 1, 2)
    if variant == "learned":
        asked, arguments = (*asked, 4), [*arguments, arguments[3].strength]
    jax.jit(jax.grad(total, argnums=asked)).lower(*arguments).compile()


@dataclasses.dataclass
class Segment:
    """Bundles between two targets of a branch: how many, at which depth of loops, what they hold.

    used: counts of the units MATMUL, MATPUSH, XLU, VALU, VPOP, EUP, VLOAD, fills, VSTORE, spills
    and SALU.
    """

    depth: int
    loop: bool
    bundles: int = 0
    used: list[int] = dataclasses.field(default_factory=lambda: [0] * 11)

    @property
    def multiplies(self) -> bool:
        """Whether the matrix unit works."""
        return self.used[0] > 0

    @property
    def scalar(self) -> bool:
        """Whether hardly any vector unit works."""
        return sum(self.used[:10]) < 0.25 * self.bundles


_BUNDLE = re.compile(r"^\s*(0x[0-9a-f]+|0)\s+(LH|LB|LE|PB|PF|CT)?\s*:\s*([> ]*)\{")
_ALLOCATED = re.compile(r"space=(vmem|smem), size = (0x[0-9a-f]+)")


@dataclasses.dataclass
class Schedule:
    """A kernel's segments in order, and its bytes of VMEM and SMEM."""

    segments: list[Segment]
    memory: dict[str, int]


def read_schedule(folder: Path, kernel: str) -> Schedule:
    """Schedule of a kernel from libtpu's dump."""
    (final,) = folder.glob(f"*{kernel}*-final_bundles.txt")
    names = folder.glob(f"*{kernel}*-final_hlo-static-per-bundle-utilization.txt")
    (use,) = (x for x in names if "pre-delay" not in x.name)
    lines = use.read_text().split("== UTILIZATION:\n")[1].splitlines()
    used = [[int(x) for x in line.split()] for line in lines if line.strip()]
    segments: list[Segment] = []
    memory = {"vmem": 0, "smem": 0}
    (original,) = folder.glob(f"*{kernel}*-02-original.txt")
    for space, size in _ALLOCATED.findall(original.read_text()):
        memory[space] += int(size, 16)
    for line in final.read_text().splitlines():
        match = _BUNDLE.match(line)
        if not match:
            continue
        depth = match[3].count(">")
        if not segments or match[2] or depth != segments[-1].depth:
            segments.append(Segment(depth, match[2] == "LB"))
        segments[-1].bundles += 1
        row = used[int(match[1], 16)]
        segments[-1].used = [a + b for a, b in zip(segments[-1].used, row, strict=True)]
    return Schedule(segments, memory)


def splash_bundles(schedule: Schedule) -> float:
    """Bundles of a grid step that computes: its products, and the scalar work around them."""
    products = [x for x in schedule.segments if x.multiplies]
    scalar = [x for x in schedule.segments if x.depth >= 1 and x.scalar]
    return sum(x.bundles for x in products + scalar)


def our_bundles(schedule: Schedule, kernel: str, variant: str) -> tuple[float, float]:
    """Bundles per head of a full and of a partial compute tile of 512 x 512 pairs."""
    own = TILE_K if kernel == "dk, dv" else TILE_Q
    parts = WIDE // own
    products = [x for x in schedule.segments if x.multiplies]
    half = len(products) // 2  # the masked branch comes first
    # Heads that stand side by side in a segment, as `heads_together` has it.
    together = max(1, min(GROUP, 512 * 512 // (own * WIDE)))
    partial, full = (sum(x.bundles for x in y) for y in (products[:half], products[half:]))
    first = schedule.segments.index(products[0])
    before = [x for x in schedule.segments[:first] if not x.multiplies]
    scalar = sum(x.bundles for x in before if x.depth == 2 and x.scalar)
    if variant in NUMBERS:
        # Of every listed tile either the numbers or a constant; the numbers take arithmetic.
        stored = [x for x in before if x.depth == 2 and x.used[8] > 0]
        looks = [x for x in stored if x.used[3] > x.used[8]]
        if len(looks) != (1 if kernel == "dk, dv" else WIDE // TILE_K):
            raise SystemExit(f"{kernel}: {len(looks)} segments seem to read a tile's numbers")
        mask = sum(x.bundles for x in looks)
    elif variant != "bits":
        # A loop over groups of rows, in which each listed tile is looked at; constants beside it.
        mask = sum(x.bundles for x in before if x.depth >= 3) * (own // CHUNK)
    else:
        mask = max((x.bundles for x in before if x.depth == 2 and not x.scalar), default=0)
    shared = [scalar / GROUP, (scalar + mask) / GROUP]
    return (full / together + shared[0]) * parts, (partial / together + shared[1]) * parts


def dump(variant: str, topology: str, folder: Path) -> None:
    """Compile a variant in a process of its own, which dumps into `folder`."""
    settings = {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(RESULTS.parent.parent),
        "LIBTPU_INIT_ARGS": f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true",
    }
    command = [sys.executable, __file__, "--child", variant, topology]
    run = subprocess.run(
        command, env=os.environ | settings, capture_output=True, text=True, check=False
    )
    if run.returncode:
        raise SystemExit(f"{variant} does not compile for {topology}:\n{run.stderr[-2000:]}")


def schedules_of(topology: str, variants: Sequence[str]) -> dict[tuple[str, str], Schedule]:
    """Schedules of every kernel and variant for one kind of chip."""
    schedules: dict[tuple[str, str], Schedule] = {}
    for variant in ("splash", *variants):
        with tempfile.TemporaryDirectory() as folder:
            dump(variant, topology, Path(folder))
            for kernel, names in KERNELS.items():
                name = names[1 if variant == "splash" else 0]
                schedules[kernel, variant] = read_schedule(Path(folder), name)
    return schedules


def variants_in(schedules: dict[tuple[str, str], Schedule]) -> list[str]:
    """Our variants that were compiled, in their order."""
    return [x for x in VARIANTS if ("forward", x) in schedules]


def bundles_of(schedules: dict[tuple[str, str], Schedule], kernel: str) -> dict[str, float]:
    """Bundles of a compute tile: splash's, and ours by what decides in it."""
    found = {"splash": splash_bundles(schedules[kernel, "splash"])}
    for variant in variants_in(schedules):
        full, partial = our_bundles(schedules[kernel, variant], kernel, variant)
        found |= {variant: partial} if "full" in found else {"full": full, variant: partial}
    return found


def tile_rows(chip: str, schedules: dict[tuple[str, str], Schedule]) -> list[tuple[str, ...]]:
    """Rows of the table of compute tiles for one kind of chip."""
    rows = []
    for kernel in KERNELS:
        counts = bundles_of(schedules, kernel)
        splash = counts.pop("splash")
        cells = [chip, kernel, f"{splash:.0f}"]
        cells += [f"{count:.0f} ({100 * (count / splash - 1):+.0f} %)" for count in counts.values()]
        for variant in variants_in(schedules):
            memory = schedules[kernel, variant].memory
            cells.append(f"{memory['vmem'] / 2**20:.1f} MiB, {memory['smem'] / 2**10:.0f} KiB")
        rows.append(tuple(cells))
    return rows


@dataclasses.dataclass
class Steps:
    """Steps of 512 x 512 pairs that a mask takes, with a mask and without, by kernel."""

    masked: dict[str, float]
    plain: dict[str, float]
    density: float


def walked(partial: Any, count: Any, *, columns: int) -> Steps:
    """Steps of rows with so many partial and listed tiles, rounded up as `make_rows` does."""
    import numpy as np

    tiles = WIDE // TILE_K
    head, total = -(-partial // tiles), -(-count // tiles)
    end = np.maximum(head, count // tiles)
    by_row = float((head + total - end).sum()), float((end - head).sum())
    # For dk and dv a listed tile is a step of its own, a quarter of the pairs.
    by_tile = partial.sum() / tiles, (count - partial).sum() / tiles
    masked, plain = (
        {kernel: y if kernel == "dk, dv" else x for kernel in KERNELS}
        for x, y in zip(by_row, by_tile, strict=True)
    )
    return Steps(masked, plain, float(count.sum() / (count.size * columns)))


def steps_of(views: int, seed: int) -> Steps:
    """What the kernels walk for a procedural scene's target and its reference views."""
    from tile_density import allowed_pairs, places, procedural, tile_kinds

    query, key = procedural(seed, views)
    sizes = len(query.position), len(key.position)
    place = places(query, key)["hilbert"]
    partial, full = tile_kinds(allowed_pairs(query, key), place, sizes, TILE_Q, TILE_K)
    return walked(partial.sum(1), (partial | full).sum(1), columns=partial.shape[1])


def soft_steps_of(views: int, seed: int) -> Steps:
    """The same of a soft constraint, as `from_geometry` lists it and the kernels look into it."""
    import numpy as np
    from tile_density import NORMAL_COS, geometry_of, procedural

    import pallas_kernels as pk

    sides = [geometry_of(x) for x in procedural(seed, views)]
    box = pk.bounding_box(*sides)
    ordered = [pk.order_geometry(x, pk.order_tokens(x, box=box)) for x in sides]
    rule = pk.CorrespondenceRule(normal_cos=NORMAL_COS)
    mask = pk.refine(
        pk.from_geometry(*ordered, rule=rule, strength=1.0, tile_q=TILE_Q, tile_k=TILE_K)
    )
    some, count = (np.asarray(x, int).ravel() for x in (mask.keys.partial, mask.keys.count))
    return walked(some, count, columns=mask.k_tiles)


def joint_steps_of(views: int, seed: int) -> Steps:
    """What the kernels walk in a layer's self-attention over [references ; target]."""
    import numpy as np
    from tile_density import joint_mask, procedural

    mask = joint_mask(*procedural(seed, views), TILE_Q, TILE_K)
    some, count = (np.asarray(x, int).ravel() for x in (mask.keys.partial, mask.keys.count))
    return walked(some, count, columns=mask.k_tiles)


def bank_row(
    chip: str,
    schedules: dict[tuple[str, str], Schedule],
    steps: Sequence[Steps],
    dense_pairs: float,
    *,
    decides: str = "bits",
) -> tuple[str, ...]:
    """Cost of what is walked over that of so many dense pairs, by splash, for one chip.

    decides: the variant of the partial tiles.
    """
    dense = dense_pairs / WIDE**2
    cells, ours, theirs = [chip], 0.0, 0.0
    for kernel in KERNELS:
        counts = bundles_of(schedules, kernel)
        each = [
            x.masked[kernel] * counts[decides] + x.plain[kernel] * counts["full"] for x in steps
        ]
        ours += sum(each) / len(each)
        theirs += dense * counts["splash"]
        cells.append(f"{sum(each) / len(each) / (dense * counts['splash']):.2f}")
    return (*cells, f"{ours / theirs:.2f}")


def comparisons(
    found: dict[str, dict[tuple[str, str], Schedule]], views: int, scenes: int
) -> list[Any]:
    """Texts and tables of the second claim: of a bank and of a layer, over dense attention."""
    from tile_density import COLUMNS, DENSE_KEYS, FRAMES, ROWS

    from worldstereo_jax.evaluation.report import Table

    target, few = FRAMES * ROWS * COLUMNS, DENSE_KEYS
    ratios = ("chip", *KERNELS, "all three")

    def counted(count: Callable[[int, int], Steps], views: int) -> tuple[list[Steps], str]:
        steps = [count(views, seed) for seed in range(scenes)]
        return steps, f"{100 * sum(x.density for x in steps) / len(steps):.1f} %"

    parts: list[Any] = []
    banks = [("bits", steps_of, "a correspondence mask")]
    if all("numbers" in variants_in(each) for each in found.values()):
        banks.append(("numbers", soft_steps_of, "a soft constraint as packed numbers"))
    for decides, count, through in banks:
        steps, share = counted(count, views)
        rows = [
            bank_row(chip, each, steps, target * few, decides=decides)
            for chip, each in found.items()
        ]
        parts.append(
            f"Attention to {views} reference views through {through} over dense attention "
            f"(splash) to 8 views, in bundles: {scenes} procedural scenes, {share} of the tiles "
            "active, in Hilbert order."
        )
        parts.append(Table(ratios, rows))
    layers = []
    for each_views in (8, views):
        steps, share = counted(joint_steps_of, each_views)
        for chip, each in found.items():
            row = bank_row(chip, each, steps, (target + few) ** 2)
            layers.append((str(each_views), share, *row))
    parts.append(
        "A layer's whole self-attention over [references ; target], the target to itself densely "
        "and references to their own view included, under the correspondence pattern with 8 and "
        f"with {views} views, over dense attention (splash) with 8: the same scenes, references "
        "by view."
    )
    return [*parts, Table(("views", "active tiles", *ratios), layers)]


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table, and write the section."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--topologies", nargs="+", default=list(TOPOLOGIES))
    parser.add_argument("--scenes", type=int, default=3, help="procedural scenes of the bank")
    parser.add_argument("--views", type=int, default=64, help="reference views of the bank")
    parser.add_argument(
        "--variants", nargs="+", choices=VARIANTS, default=list(SHIPPED),
        help="without bits there is no second claim, and the section is one of its own; the "
        "predicate takes the compiler minutes",
    )  # fmt: skip
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.child:
        child(*options.child)
        return
    os.environ.setdefault("JAX_PLATFORMS", "cpu")  # libtpu is there, and no TPU
    from worldstereo_jax.evaluation.report import Table, write_section

    columns = ("chip", "kernel", "splash", "full", *(f"partial, {x}" for x in options.variants))
    columns += tuple(f"VMEM, SMEM: {x}" for x in options.variants)
    facts = (
        f"Bundles per compute tile of {WIDE} x {WIDE} pairs and head, bfloat16, head size "
        f"{HEAD_DIM}; masks in tiles of {TILE_Q} x {TILE_K}, {GROUP} heads to a program. From the "
        "compiler's final schedule: no TPU was there."
    )
    title = "TPU kernels: static schedule"
    command = f"python experiments/tpu_schedule.py --scenes {options.scenes}"
    command += f" --variants {' '.join(options.variants)}"
    whole = "bits" in options.variants
    if not whole:
        title += f" of {' and '.join(options.variants)}"
        command = f"python experiments/tpu_schedule.py --variants {' '.join(options.variants)}"
        command += f" --topologies {' '.join(options.topologies)}"
    found: dict[str, dict[tuple[str, str], Schedule]] = {}
    for each in options.topologies:
        found[each.split(":")[0]] = schedules_of(each, options.variants)
        table = Table(columns, [row for each in found.items() for row in tile_rows(*each)])
        print(f"{table.markdown()}\n", flush=True)
        if not whole:
            write_section(RESULTS, title, [facts, table], command=command)
    if not whole:
        return
    parts = [facts, table, *comparisons(found, options.views, options.scenes)]
    for part in parts:
        print(part.markdown() if isinstance(part, Table) else part, end="\n\n")
    write_section(RESULTS, title, parts, command=command)


if __name__ == "__main__":
    main()
