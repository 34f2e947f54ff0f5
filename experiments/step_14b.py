"""One denoising step of the 14B memory model by what its memory attends to, from the compiler.

    python experiments/step_14b.py [--topology v5p:2x2x2]

Needs libtpu, and no TPU; nothing is timed. One layer of the real width (5,120 channels, 40 heads)
is compiled for one chip, with 32,760 target tokens and

- 8 references, dense attention: what the official model computes;
- 8 references under the correspondence pattern;
- 64 references under the correspondence pattern: their tokens pass every layer, too;
- 512 views as de-duplicated entries beside 8 references under the pattern: keys and values of
  their own (`EntryAttention`), as many as many_views.py finds.

FLOPs and bytes outside the attention kernels are XLA's, of the compiled layer with a control block
and of the one without, times the 20 layers that the model has of each; embeddings and head, once a
step, are left out. Of a kernel XLA knows nothing. Its FLOPs are 4 d for every pair of tokens in
active tiles, and its cycles are bundles of the static schedule (tpu_schedule.py) for the steps that
a procedural scene's mask takes. `at least` is the time below which one chip cannot be: outside the
kernels the longer of products at the peak rate and bytes at the peak bandwidth, and a bundle a
cycle in each core in them.

Record (2026-11-26, v5p): over the official model's dense step to 8 references, the correspondence
pattern takes 0.81 with 8, 1.91 with 64 (their tokens pass every layer's products: 2.6 times as
many), and 0.87 with 512 views as entries beside 8.
"""

import argparse
import os
import time
import typing
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
from tpu_schedule import Steps, bundles_of, joint_steps_of, schedules_of, walked

import pallas_kernels as pk
from worldstereo_jax.config import get_preset
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.models.rope import Rotary
from worldstereo_jax.models.transformer import EntryKeys, Layer, LayerInputs, Stream

RESULTS = Path(__file__).with_name("RESULTS.md")
CONFIG = get_preset("wan_14b_memory").replace(remat="none")
PATTERN = "correspondence"
TARGET, VIEW, TEXT, IMAGE = 21 * 1560, 1560, 512, 257
TILE_Q, TILE_K, WIDE = 512, 128, 512
# Of many_views.py: 512 views, a budget of 8,192, tiles of 512 x 128.
ENTRIES, ENTRY_WIDTH, ENTRY_ACTIVE = 4165, 90, 0.201


class Chip(typing.NamedTuple):
    """Peak rates of one chip: bf16 FLOP/s, bytes of HBM per second; cores, and their cycles.

    The grids of the kernels are parallel, so that the cores of a chip share them.
    """

    flops: float
    bandwidth: float
    cores: int
    clock: float


CHIPS = {"v5p:2x2x2": Chip(459e12, 2.765e12, 2, 1.75e9)}


class Case(typing.NamedTuple):
    """What the memory attends to."""

    name: str
    views: int
    pattern: str
    entries: int = 0


CASES = (
    Case("8 references, dense", 8, "dense"),
    Case("8 references", 8, PATTERN),
    Case("64 references", 64, PATTERN),
    Case("512 views as entries, 8 references", 8, PATTERN, ENTRIES),
)


def array(*shape: int, dtype: typing.Any = jnp.bfloat16) -> typing.Any:
    """An abstract array."""
    return jax.ShapeDtypeStruct(shape, dtype)


def rotary(tokens: int, size: int) -> Rotary:
    """Abstract positions of tokens."""
    return Rotary(*(array(1, tokens, size // 2, dtype=jnp.float32),) * 2)


def geometry(tokens: int, views: int) -> pk.TokenGeometry:
    """Abstract geometry of tokens."""
    position = array(1, tokens, 3, dtype=jnp.float32)
    return jax.eval_shape(lambda x: pk.make_token_geometry(x, radius=1.0, views=views), position)


def mask_of(q: pk.TokenGeometry, k: pk.TokenGeometry, *, joint: bool) -> pk.BlockMask:
    """Shapes of a packed mask, an eighth of whose parts of 128 queries has bits."""

    def build(q, k):
        make = pk.joint_correspondence if joint else pk.from_geometry
        mask = make(q, k, tile_q=TILE_Q, tile_k=TILE_K)
        return pk.pack_partial_tiles(mask, capacity=mask.q_tiles * 4 * mask.k_tiles // 8)

    return jax.eval_shape(build, q, k)


def inputs_of(case: Case, sharding: pk.AttentionSharding) -> tuple[Stream, LayerInputs]:
    """What a layer reads."""
    width, heads = CONFIG.width, CONFIG.head_size
    sizes = CONFIG.control
    assert sizes is not None
    seen = case.views * VIEW
    masks = entries = None
    if case.pattern == PATTERN:
        masks = {PATTERN: mask_of(geometry(seen, 21), geometry(TARGET, case.views), joint=True)}
    if case.entries:
        entries = EntryKeys(
            features=array(1, case.entries, ENTRY_WIDTH),
            mask=mask_of(geometry(TARGET, 1), geometry(case.entries, 1), joint=False),
            rotary=rotary(TARGET, heads),
            entry_rotary=rotary(case.entries, heads),
        )
    inputs = LayerInputs(
        temb=array(1, width, dtype=jnp.float32),
        modulation=array(1, 6, width, dtype=jnp.float32),
        text=array(1, TEXT, width),
        image=array(1, IMAGE, width),
        rotary=rotary(seen + TARGET, heads),
        control_rotary=rotary(TARGET, sizes.width // sizes.num_heads),
        references=array(1, seen, width),
        key_valid=None,
        masks=masks,
        warped_features=None,
        warped_log_weight=None,
        control_scale=None,
        sharding=sharding,
        entries=entries,
    )
    return Stream(array(1, seen + TARGET, width), array(1, TARGET, sizes.width)), inputs


class Cost(typing.NamedTuple):
    """FLOPs and bytes of HBM outside the kernels, and gigabytes held beside parameters."""

    flops: float
    moved: float
    temporary: float


def compile_layer(case: Case, device: typing.Any, *, controlled: bool) -> Cost:
    """Compile one layer for one chip."""
    mesh = Mesh(np.array([device]).reshape(1, 1), ("rows", "model"))
    sharding = pk.AttentionSharding(mesh, heads="model")
    layer = Layer(CONFIG, controlled, (case.pattern,))
    stream, inputs = inputs_of(case, sharding)
    if not controlled:
        stream = Stream(stream.tokens, None)
    whole = NamedSharding(mesh, PartitionSpec())

    def placed(tree: typing.Any) -> typing.Any:
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), tree)

    with jax.set_mesh(mesh):
        params = jax.eval_shape(
            lambda stream, inputs: layer.init(jax.random.key(0), stream, None, inputs),
            stream,
            inputs,
        )
    params = jax.tree.map(lambda x: array(*x.shape), params)
    run = jax.jit(lambda params, stream, inputs: layer.apply(params, stream, None, inputs)[0])
    start = time.perf_counter()
    compiled = run.lower(placed(params), placed(stream), placed(inputs)).compile()
    found: typing.Any = compiled.cost_analysis()
    memory: typing.Any = compiled.memory_analysis()
    print(case.name, controlled, f"{time.perf_counter() - start:.0f} s", flush=True)
    return Cost(found["flops"], found["bytes accessed"], memory.temp_size_in_bytes / 1e9)


class Attention(typing.NamedTuple):
    """FLOPs and bundles of all kernels of a step."""

    flops: float
    bundles: float


def attention_of(case: Case, counts: dict[str, float], steps: Steps | None) -> Attention:
    """Count the kernels of a step; steps: of the joint sequence under the pattern."""
    sizes = CONFIG.control
    assert sizes is not None
    tokens = case.views * VIEW + TARGET
    if steps is None:
        plain, masked = tokens**2 / WIDE**2, 0.0
    else:
        plain, masked = steps.plain["forward"], steps.masked["forward"]
    layers, heads = CONFIG.num_layers, CONFIG.num_heads
    # Cross-attention to text and image tokens, dense.
    plain += TARGET * (TEXT + IMAGE) / WIDE**2
    if case.entries:
        rows, columns = -(-TARGET // TILE_Q), -(-case.entries // TILE_K)
        each = np.full(rows, round(columns * ENTRY_ACTIVE))
        masked += walked(each, each, columns=columns).masked["forward"]
    flops = 4 * CONFIG.head_size * WIDE**2 * (plain + masked) * heads * layers
    bundles = (plain * counts["full"] + masked * counts["bits"]) * heads * layers
    # The control branch sees itself; heads of 64 take as many bundles as those of 128.
    control = TARGET**2 / WIDE**2 * sizes.num_heads * sizes.num_layers
    size = sizes.width // sizes.num_heads
    return Attention(flops + 4 * size * WIDE**2 * control, bundles + control * counts["full"])


def main() -> None:
    """Compile, count, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--topology", choices=list(CHIPS), default="v5p:2x2x2")
    options = parser.parse_args()
    chip = CHIPS[options.topology]
    device = topologies.get_topology_desc(platform="tpu", topology_name=options.topology).devices[0]
    counts = bundles_of(schedules_of(options.topology, ["bits"]), "forward")
    joint = {views: joint_steps_of(views, 0) for views in (8, 64)}
    first = CASES[0]
    control = compile_layer(first, device, controlled=True)
    rows: list[tuple[str, ...]] = []
    least: list[float] = []
    plain_first = None
    for case in CASES:
        plain = compile_layer(case, device, controlled=False)
        plain_first = plain_first or plain
        # A control block does the same for every case.
        flops, moved = (
            CONFIG.num_layers * getattr(plain, name)
            + CONFIG.controlled_layers * (getattr(control, name) - getattr(plain_first, name))
            for name in ("flops", "moved")
        )
        steps = None if case.pattern == "dense" else joint[case.views]
        attention = attention_of(case, counts, steps)
        outside = max(flops / chip.flops, moved / chip.bandwidth)
        inside = attention.bundles / (chip.cores * chip.clock)
        least.append(outside + inside)
        rows.append(
            (
                case.name, f"{case.views * VIEW + TARGET:,}", f"{flops / 1e12:.0f}",
                f"{moved / 1e9:.0f}", f"{attention.flops / 1e12:.0f}",
                f"{attention.bundles / 1e9:.1f}", f"{outside:.1f}", f"{inside:.1f}",
                f"{least[-1]:.1f}", f"{least[-1] / least[0]:.2f}", f"{plain.temporary:.1f}",
            )
        )  # fmt: skip
        print(*rows[-1], flush=True)
    header = (
        "attends to", "tokens", "TFLOP outside", "GB moved", "TFLOP in kernels",
        "G bundles in kernels", "outside, s", "kernels, s", "at least, s", "over dense",
        "a layer's temporary GB",
    )  # fmt: skip
    facts = (
        f"From the compiler, for one chip of {options.topology.split(':')[0]}; nothing was timed. "
        f"One step of 40 layers, {TARGET:,} target tokens; references of {VIEW:,} tokens each, "
        f"{ENTRIES:,} entries. Rates: {chip.flops / 1e12:.0f} TFLOP/s, "
        f"{chip.bandwidth / 1e12:.2f} TB/s, {chip.cores} cores of {chip.clock / 1e9:.2f} GHz."
    )
    title = "A whole denoising step of the 14B by its memory, from the compiler"
    command = "python experiments/step_14b.py"
    write_section(RESULTS, title, [facts, Table(header, rows)], command=command)


if __name__ == "__main__":
    main()
