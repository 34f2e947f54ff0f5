"""A training step of the 14B memory model at its working size, compiled for pods that are not here.

    python experiments/aot_train_14b.py [--pods 0 1 ...] [--patterns dense correspondence]
    python experiments/aot_train_14b.py --pods 1 --patterns dense+slots

One step of the "memory" stage (all but cross-attention trains), as `train_official.py` makes it:
flow-matching loss, gradients, clipping, AdamW, a running average; float32 for what trains and its
moments, bfloat16 for what does not and for computing, every layer computed again on the way back.
Per sample 21 latent frames of 60 x 104 (32,760 target tokens), 8 references (12,480), 512 text and
257 image tokens. The layout is `training.sharding.TrainLayout`'s; XLA:TPU and Mosaic compile the
step whole (jax 0.10.2 with libtpu), and the bytes per chip are the compiled program's. The
correspondence pattern builds its masks in the step, from the geometry of the samples' tokens.
Unlike there the batch holds the rays of its cameras, in bfloat16: the step does not draw them.
"+slots" behind a pattern is a model with modules for warped views and surface entries, which train
with the rest, as with `--attach warped entries`: two candidates for each latent pixel, and at most
2048 entries.

Nothing is timed: there is no pod.
"""

import argparse
import os
import re
import time
import typing
from collections.abc import Callable
from pathlib import Path

os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"
# Another process may hold libtpu's lock; nothing here touches a chip.
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

import pallas_kernels as pk
from worldstereo_jax.config import get_preset
from worldstereo_jax.evaluation.report import Table, kept_rows, write_section
from worldstereo_jax.interop.layer_stacks import from_flat
from worldstereo_jax.interop.memory_slots import read_widths
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.models.worldstereo import MemoryEntries, WarpedMemory, WorldStereo
from worldstereo_jax.sampling.official_conditions import OfficialConditions
from worldstereo_jax.sampling.official_world import ENTRY_TOKENS
from worldstereo_jax.training.official_objective import (
    TrainingClip,
    in_compute_type,
    official_loss,
    stage_parameters,
)
from worldstereo_jax.training.sharding import SAMPLES, TrainLayout, parse_mesh
from worldstereo_jax.training.state import (
    TrainState,
    init_train_state,
    join,
    make_train_step,
    split,
)

RESULTS = Path(__file__).with_name("RESULTS.md")
TITLE = "A training step of the 14B memory model, ahead of time"
FRAMES, ROWS, COLUMNS, VIEWS = 21, 60, 104, 8
STAGE = "memory"
PATTERNS = ("dense", "correspondence", "dense+slots", "correspondence+slots")
CANDIDATES = 2


class Pod(typing.NamedTuple):
    """Chips: topology, mesh, gigabytes of each."""

    topology: str
    mesh: str
    capacity: int


PODS = (
    Pod("v5p:2x2x2", "fsdp=1,model=8", 95),
    Pod("v5p:4x4x4", "fsdp=8,model=8", 95),
    Pod("v6e:8x8", "fsdp=8,model=8", 32),
    Pod("v5e:16x16", "fsdp=32,model=8", 16),
    Pod("v5p:4x4x4", "data=2,fsdp=8,model=4", 95),
)
HEADER = (
    "pod", "mesh", "samples", "pattern", "GB per chip", "state and batch GB", "temporary GB",
    "together GB", "attention kernels", "compile seconds",
)  # fmt: skip


def with_slots(pattern: str) -> tuple[str, bool]:
    """The attention pattern, and whether the model has modules for warped views and entries."""
    base, _, slots = pattern.partition("+")
    return base, slots == "slots"


def abstract_clip(batch: int, pattern: str) -> TrainingClip:
    """Shapes of a batch."""

    def array(*shape: int, dtype: typing.Any = jnp.float32) -> typing.Any:
        return jax.ShapeDtypeStruct((batch, *shape), dtype)

    latent, pixels = (FRAMES, ROWS, COLUMNS), (FRAMES, 8 * ROWS, 8 * COLUMNS)
    page = ROWS * COLUMNS // 4

    def geometry(count: int, views: int) -> typing.Any:
        tokens = jax.ShapeDtypeStruct((1, count, 3), jnp.float32)
        one = jax.eval_shape(lambda x: pk.make_token_geometry(x, radius=1.0, views=views), tokens)
        return jax.tree.map(lambda x: array(*x.shape, dtype=x.dtype), one)

    base, slots = with_slots(pattern)
    masked = base == "correspondence"
    warped = entries = None
    if slots:
        widths = read_widths()
        warped = WarpedMemory(
            features=array(*latent, CANDIDATES, widths["warped_width"]),
            log_weight=array(*latent, CANDIDATES),
        )
        entries = MemoryEntries(
            features=array(ENTRY_TOKENS, widths["entry_width"]),
            place=array(ENTRY_TOKENS, 3),
            target_place=array(FRAMES * page, 3),
            valid=array(ENTRY_TOKENS, dtype=jnp.bool_),
        )
    conditions = OfficialConditions(
        condition=array(*latent, 20),
        render_latent=array(*latent, 16),
        render_mask=array(*pixels, dtype=jnp.bfloat16),
        plucker=array(*pixels, 6, dtype=jnp.bfloat16),
        camera=array(FRAMES, 7),
        reference=array(VIEWS, ROWS, COLUMNS, 36),
        reference_index=array(VIEWS, dtype=jnp.int32),
        reference_camera=array(VIEWS, 7),
        reference_valid=array(VIEWS, dtype=jnp.bool_),
        target_geometry=geometry(FRAMES * page, VIEWS) if masked or slots else None,
        reference_geometry=geometry(VIEWS * page, FRAMES) if masked else None,
        entry_geometry=geometry(ENTRY_TOKENS, FRAMES) if slots else None,
        warped=warped,
        entries=entries,
    )
    return TrainingClip(
        conditions=conditions,
        text=array(512, 4096, dtype=jnp.bfloat16),
        image=array(257, 1280, dtype=jnp.bfloat16),
        target=array(*latent, 16),
    )


class Parts(typing.NamedTuple):
    """A model taken apart for training, abstract.

    Attributes:
        model: the transformer.
        trained: what the state holds.
        frozen: the rest of its parameters.
        places: where the rest lies.
        applied: what trains, as it is put beside the rest.
    """

    model: WorldStereo
    trained: typing.Any
    frozen: typing.Any
    places: typing.Any
    applied: Callable[[typing.Any], typing.Any]


def stage_parts(layout: TrainLayout, pattern: str) -> Parts:
    """What trains in the stage, and the rest."""
    base, slots = with_slots(pattern)
    config = get_preset("wan_14b_memory").replace(attention_pattern=base)
    if slots:
        config = config.replace(**read_widths())
    shapes = parameter_shapes(config)
    params = from_flat({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})
    chosen = stage_parameters(params, STAGE)
    trained, rest = split(params, chosen)
    frozen = jax.eval_shape(lambda x: in_compute_type(x, config.dtype), rest)
    return Parts(layout.model(config), trained, frozen, layout.parameters(frozen), lambda x: x)


def laid(x: typing.Any, sharding: NamedSharding) -> typing.Any:
    """The shape of an array that lies so."""
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)


def lowered_step(layout: TrainLayout, batch: int, pattern: str) -> typing.Any:
    """The training step for a layout, lowered with abstract state and batch."""
    return lower_parts(stage_parts(layout, pattern), layout, batch, pattern)


def lower_parts(parts: Parts, layout: TrainLayout, batch: int, pattern: str) -> typing.Any:
    """The step that trains a part of a model, lowered."""
    model, trained, frozen, frozen_places, applied = parts
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-5, weight_decay=0.01))

    def loss(trained: typing.Any, given: typing.Any, key: jax.Array) -> typing.Any:
        frozen, clip, null_text = given
        params = join(in_compute_type(applied(trained), model.config.compute_dtype), frozen)
        return official_loss(model, params, clip, null_text, key)

    key = jax.eval_shape(lambda: jax.random.key(0))
    state: TrainState = jax.eval_shape(
        lambda trained, key: init_train_state(trained, optimizer, key), trained, key
    )
    places = layout.state(state)
    samples = NamedSharding(layout.mesh, PartitionSpec(SAMPLES))
    clip = jax.tree.map(lambda x: laid(x, samples), abstract_clip(batch, pattern))
    null_text = jax.ShapeDtypeStruct((512, 4096), jnp.bfloat16, sharding=layout.whole)
    step: typing.Any = make_train_step(loss, optimizer, places=places)
    held = jax.tree.map(laid, frozen, frozen_places)
    return step.lower(jax.tree.map(laid, state, places), (held, clip, null_text))


def figures(lower: Callable[[], typing.Any], *name: str, **options: typing.Any) -> tuple[str, ...]:
    """Gigabytes of the compiled step, kernels and seconds; printed behind `name`."""
    start = time.perf_counter()
    lowered = lower()
    try:
        compiled = lowered.compile(**options)
    except jax.errors.JaxRuntimeError as error:
        # Expected where a pod is too small: the compiler says by how much.
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(*name, str(error)[:600], flush=True)
        return (*["does not fit"] * 3, "", "")
    seconds = time.perf_counter() - start
    memory = compiled.memory_analysis()
    sizes = (memory.argument_size_in_bytes, memory.temp_size_in_bytes)
    kernels = len(
        re.findall(r"custom_call @\S*(?:tpu_custom_call|fmha|mosaic_gpu)", lowered.as_text())
    )
    row = (*(f"{x / 1e9:.2f}" for x in (*sizes, sum(sizes))), str(kernels), f"{seconds:.0f}")
    print(*name, *row, flush=True)
    return row


Lower = typing.Callable[[TrainLayout, int, str], typing.Any]
"""(layout, samples, pattern) -> lowered program."""


def row_of(pod: Pod, pattern: str, lower: Lower = lowered_step) -> tuple[str, ...]:
    """Compile for one pod."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=pod.topology).devices
    layout = TrainLayout(parse_mesh(pod.mesh, devices))
    # One sample for every chip along data and fsdp.
    batch = int(np.prod([layout.mesh.shape[axis] for axis in SAMPLES]))
    name = (pod.topology, pod.mesh, str(batch), pattern, str(pod.capacity))
    return (*name, *figures(lambda: lower(layout, batch, pattern), *name))


def main() -> None:
    """Compile, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pods", type=int, nargs="*", default=list(range(len(PODS))))
    parser.add_argument("--patterns", nargs="*", choices=PATTERNS, default=list(PATTERNS[:2]))
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    pods = " ".join(map(str, options.pods))
    command = f"python experiments/aot_train_14b.py --pods {pods}"
    for pod in (PODS[index] for index in options.pods):
        for pattern in options.patterns:
            row = row_of(pod, pattern)
            # In the place of the row of the same program, or behind those of earlier runs.
            kept = {each[:4]: each for each in kept_rows(options.results, TITLE, HEADER)}
            rows = list((kept | {row[:4]: row}).values())
            about = (
                f"The stage {STAGE!r} of {FRAMES} latent frames and {VIEWS} references, one sample "
                "for every chip along data and fsdp. Gigabytes (10^9) per chip as the compiled "
                "program states them; the state is given back in place. Kernels are counted in the "
                "lowered program, where a scanned layer stands once. With slots: modules for "
                "warped views and entries, which train with the rest. Nothing was timed."
            )
            # After every program: a later one may take the whole machine down.
            table = Table(HEADER, rows)
            write_section(options.results, TITLE, [about, table], command=command)


if __name__ == "__main__":
    main()
