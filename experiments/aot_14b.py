"""The 14B memory model at its working size, compiled ahead of time for TPU slices.

One denoising step: 21 latent frames of 60 x 104 (32,760 target tokens), 8 references (12,480), 512
text and 257 image tokens, bfloat16 parameters. First traced on abstract values (eval_shape), then
compiled by XLA:TPU for slices that are not there, parameters split by heads and hidden channels
(`streaming.tensor_parallel`), and the bytes per chip read from the compiled program.

Dense attention, in turns of queries that bound the logits; the pattern of the official model. The
correspondence pattern's kernels are compiled for the same chips in tests/pallas_kernels; the whole
model with them is not compiled here yet.

Command: python experiments/aot_14b.py
Record (2026-11-22, two Xeon cores shared with other jobs): 8.4 GB per chip on eight chips of v5e or
v6e, 40.5 GB on one v5p.
"""

import argparse
import os
import time
import typing
from pathlib import Path

os.environ["TPU_SKIP_MDS_QUERY"] = "1"
os.environ["JAX_PLATFORMS"] = "cpu"

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from worldstereo_jax.config import get_preset
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.interop.layer_stacks import from_flat
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.interop.streaming import tensor_parallel
from worldstereo_jax.models.worldstereo import ControlInput, References, WorldStereo

CONFIG = get_preset("wan_14b_memory")
# Topology, chips used, gigabytes of memory per chip.
SLICES = (
    ("v5e:2x4", 8, 16),
    ("v6e:2x4", 8, 32),
    ("v5p:2x2x2", 1, 95),
    ("v5p:2x2x2", 8, 95),
)
TITLE = "The 14B memory model at its working size, ahead of time"
HEADER = (
    "topology", "chips used", "GB per chip", "parameters and inputs GB",
    "temporary GB", "together GB", "compile seconds",
)  # fmt: skip
FRAMES, ROWS, COLUMNS, VIEWS = 21, 60, 104, 8


def inputs() -> dict:
    """Abstract inputs of one step."""

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


def step(params, kwargs):
    """One call of the network."""
    return WorldStereo(CONFIG).apply({"params": params}, **kwargs)


def trace() -> tuple[float, float, int]:
    """Seconds to trace on abstract values; parameters in billions; target tokens."""
    start = time.perf_counter()
    shapes = parameter_shapes(CONFIG)
    params = from_flat({k: jax.ShapeDtypeStruct(s, jnp.bfloat16) for k, s in shapes.items()})
    out = jax.eval_shape(step, params, inputs())
    assert out.shape == (1, FRAMES, ROWS, COLUMNS, 16)
    count = sum(int(np.prod(shape)) for shape in shapes.values())
    return time.perf_counter() - start, count / 1e9, FRAMES * ROWS * COLUMNS // 4


def compile_for(topology: str, chips: int) -> dict[str, float]:
    """Compile the step; gigabytes per chip and seconds."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = Mesh(np.array(devices[:chips]), ("model",))
    place = tensor_parallel(mesh, "model")
    whole = NamedSharding(mesh, PartitionSpec())
    params = from_flat(
        {
            path: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=place(path, shape))
            for path, shape in parameter_shapes(CONFIG).items()
        }
    )
    given = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole), inputs())
    start = time.perf_counter()
    compiled = jax.jit(step).lower(params, given).compile()
    memory: typing.Any = compiled.memory_analysis()
    return {
        "seconds": time.perf_counter() - start,
        "arguments": memory.argument_size_in_bytes / 1e9,
        "temporary": memory.temp_size_in_bytes / 1e9,
    }


def main() -> None:
    """Trace, compile for every slice, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    parser.add_argument("--slices", type=int, nargs="*", default=list(range(len(SLICES))))
    options = parser.parse_args()
    seconds, billions, tokens = trace()
    print(f"traced in {seconds:.1f} s: {billions:.2f} B parameters, {tokens} tokens", flush=True)
    rows = []
    for topology, chips, capacity in (SLICES[index] for index in options.slices):
        try:
            found = compile_for(topology, chips)
        except jax.errors.JaxRuntimeError as error:
            # Expected where a slice is too small: the compiler says by how much.
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            print(topology, chips, str(error)[:600], flush=True)
            found = dict.fromkeys(("arguments", "temporary", "seconds"), float("nan"))
        total = found["arguments"] + found["temporary"]
        print(topology, chips, found, flush=True)
        rows.append(
            [
                topology,
                str(chips),
                str(capacity),
                f"{found['arguments']:.2f}",
                f"{found['temporary']:.2f}",
                f"{total:.2f}",
                f"{found['seconds']:.0f}",
            ]
        )
        summary = (
            f"One denoising step with dense attention, {tokens} target tokens and {VIEWS} "
            f"references of {ROWS * COLUMNS // 4} tokens each, {billions:.2f} B parameters in "
            "bfloat16, split over the chips by heads and hidden channels. Traced on abstract "
            f"values in {seconds:.1f} s. Compiled by XLA:TPU for slices that are not there; "
            "gigabytes (10^9) per chip as the compiled program states them. The machine was "
            "shared with other jobs. Not compiled here: the whole model with the correspondence "
            "pattern, and one H200."
        )
        # After every slice: a later one may take the whole machine down.
        write_section(
            options.out, TITLE, [summary, Table(HEADER, rows)],
            command="python experiments/aot_14b.py",
        )  # fmt: skip


if __name__ == "__main__":
    main()
