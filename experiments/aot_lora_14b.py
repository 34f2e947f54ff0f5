"""Training adapters of the 14B memory model, compiled for machines that are not here.

    python experiments/aot_lora_14b.py [--machines 0 1 ...]
    python experiments/aot_lora_14b.py --h200

One step as `train_official.py --lora 16` makes it, of one sample of `aot_train_14b.py`'s size under
the dense pattern: adapters of every attention layer's linear maps in float32 with two moments and
an average, the model beside them in bfloat16 or with its matrices in 8 bits, every layer computed
again on the way back. For TPUs by XLA:TPU and Mosaic (jax 0.10.2 with libtpu), for one H200 as
`aot_14b.py` does it. The bytes are the compiled program's.

Nothing is timed: there is no such machine here.

Record (2026-11-27): eight chips of v5e, 12.0 GB of each in bfloat16; one H200, 66.2 GB in bfloat16
and 49.7 GB with 8-bit matrices.
"""

import argparse
import functools
import math
import typing
from pathlib import Path

# First: it says which devices jax may ask for.
from aot_train_14b import Parts, figures, lower_parts  # isort: skip

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from worldstereo_jax.config import ModelConfig, get_preset
from worldstereo_jax.evaluation.report import Table, kept_rows, write_section
from worldstereo_jax.interop.layer_stacks import flat_paths, from_flat
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.interop.weights import count_parameters
from worldstereo_jax.models.placement import shared_axes
from worldstereo_jax.models.quantised import quantise_params, quantised_model
from worldstereo_jax.training.lora import LoraConfig, init_adapters, scaled
from worldstereo_jax.training.sharding import TrainLayout, parse_mesh

RESULTS = Path(__file__).with_name("RESULTS.md")
TITLE = "Training adapters of the 14B memory model, ahead of time"
LORA = LoraConfig(rank=16, alpha=16.0)


class Machine(typing.NamedTuple):
    """Chips: topology, mesh, gigabytes of each; and in what the model's matrices are held."""

    topology: str
    mesh: str
    capacity: float
    weights: str


MACHINES = (
    Machine("v5e:2x4", "model=8", 16, "bfloat16"),
    Machine("v5e:2x4", "model=8", 16, "int8"),
    Machine("v5e:2x2", "model=4", 16, "int8"),
    Machine("v6e:2x2", "model=4", 32, "bfloat16"),
    Machine("v5p:2x2x1", "model=4", 95, "bfloat16"),
)
H200 = tuple(Machine("H200", "data=1", 150.75, weights) for weights in ("bfloat16", "int8"))
HEADER = (
    "machine", "mesh", "weights in", "GB per chip", "weights GB", "state and batch GB",
    "temporary GB", "together GB", "attention kernels", "compile seconds",
)  # fmt: skip


def adapter_parts(layout: TrainLayout, weights: str) -> Parts:
    """Adapters, and all of the model beside them; abstract."""
    config = get_preset("wan_14b_memory")
    shapes = parameter_shapes(config)
    adapters = jax.eval_shape(lambda: init_adapters(shapes, LORA, jax.random.key(0)))
    params = from_flat({k: jax.ShapeDtypeStruct(s, jnp.bfloat16) for k, s in shapes.items()})
    model = layout.model(config)
    if weights != "bfloat16":
        model = quantised_model(config, weights, model.sharding, model.stream_sharding)
        params = jax.eval_shape(functools.partial(quantised, config, weights), params)
    flat, places = flat_paths(params), {}
    for path, shape in shapes.items():
        place = layout.place_parameter(path, shape)
        places[path] = jax.tree.map(
            lambda leaf, place=place, shape=shape: shared_axes(place, shape, leaf.shape),
            flat[path],
        )
    return Parts(model, adapters, params, from_flat(places), functools.partial(scaled, config=LORA))


def quantised(config: ModelConfig, weights: str, params: typing.Any) -> typing.Any:
    """The parameters with their matrices in 8 bits; the given ones stay."""
    return quantise_params(jax.tree.map(lambda x: x, params), config, weights)


def row_of(machine: Machine, devices: typing.Any, **options: typing.Any) -> tuple[str, ...]:
    """Compile for one machine."""
    layout = TrainLayout(parse_mesh(machine.mesh, devices))
    parts = adapter_parts(layout, machine.weights)
    held = sum(
        math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, place in zip(
            jax.tree.leaves(parts.frozen), jax.tree.leaves(parts.places), strict=True
        )
    )
    name = (machine.topology, machine.mesh, machine.weights, f"{machine.capacity:g}")
    print(*name, f"{count_parameters(parts.trained):,} train, {held / 1e9:.2f} GB held", flush=True)
    found = figures(lambda: lower_parts(parts, layout, 1, "dense"), *name, **options)
    given = found[0] if found[0] == "does not fit" else f"{float(found[0]) - held / 1e9:.2f}"
    return (*name, f"{held / 1e9:.2f}", given, *found[1:])


def main() -> None:
    """Compile, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--machines", type=int, nargs="*", default=list(range(len(MACHINES))))
    parser.add_argument("--h200", action="store_true", help="one H200 instead of TPUs")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    command, title, machines = "python experiments/aot_lora_14b.py", TITLE, MACHINES
    if options.h200:
        command, title, machines = f"{command} --h200", f"{TITLE}, on one H200", H200
    for index in options.machines if not options.h200 else range(len(H200)):
        machine = machines[index]
        if options.h200:
            from gpu_compile import OPTIMISED, device

            row = row_of(machine, [device()], compiler_options=OPTIMISED)
        else:
            found = topologies.get_topology_desc(platform="tpu", topology_name=machine.topology)
            row = row_of(machine, found.devices)
        kept = {each[:3]: each for each in kept_rows(options.results, title, HEADER)}
        about = (
            f"Adapters of rank {LORA.rank} of every attention's query, key, value and out, one "
            "sample of 21 latent frames and 8 references under the dense pattern. Gigabytes "
            "(10^9) per chip as the compiled program states them; the state is given back in "
            "place. Kernels are counted in the lowered program, where a scanned layer stands "
            "once. Nothing was timed."
        )
        table = Table(HEADER, list((kept | {row[:3]: row}).values()))
        write_section(options.results, title, [about, table], command=command)


if __name__ == "__main__":
    main()
