"""A distillation step of the 14B memory model at its working size, compiled for pods.

    python experiments/aot_distill_14b.py [--pods 1 ...] [--shapes-only]

One step as `distill_official.py` makes it: five updates of the fake score and one of the student,
with rollouts of up to four steps, the teacher under both texts, clipping, AdamW and the student's
average. Student and fake score are float32 where they train, with two moments each; the teacher and
the control branch that all share are bfloat16, as is all computing. Sizes, layout and what is said
of a pod are those of `aot_train_14b.py`; the samples are those of one update.

`--shapes-only` traces the step without compiling it, and records what lies on each chip between two
steps alone; what the step itself takes for a while only the compiler knows. Of the compiled program
there is no record yet: compiling it takes longer than there was time for (that of a training step,
a fraction of this one, took 17 minutes).

Nothing is timed: there is no pod.
"""

import argparse
import dataclasses
import math
import typing
from pathlib import Path

from experiments.aot_train_14b import (
    FRAMES,
    HEADER,
    PODS,
    VIEWS,
    Pod,
    abstract_clip,
    laid,
    row_of,
)

# isort: split
# After the settings that the module above makes before jax is imported.
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.experimental import topologies
from jax.sharding import NamedSharding, PartitionSpec

from worldstereo_jax.config import get_preset
from worldstereo_jax.evaluation.report import Table, kept_rows, write_section
from worldstereo_jax.interop.layer_stacks import from_flat
from worldstereo_jax.interop.official import parameter_shapes
from worldstereo_jax.sampling.official_denoise import reading_pattern
from worldstereo_jax.sampling.schedules import dmd_schedule
from worldstereo_jax.training.distill_state import (
    FAKE_UPDATES,
    Optimizers,
    init_distill_state,
    make_distill_step,
)
from worldstereo_jax.training.official_distill import (
    Told,
    distilled_parameters,
    official_networks,
)
from worldstereo_jax.training.official_objective import TrainingClip
from worldstereo_jax.training.sharding import SAMPLES, TrainLayout, parse_mesh
from worldstereo_jax.training.state import split

RESULTS = Path(__file__).with_name("RESULTS.md")
TITLE = "A distillation step of the 14B memory model, ahead of time"
HELD_TITLE = "What a distillation of the 14B memory model keeps on each chip"
HELD_HEADER = (
    "pod", "mesh", "samples", "pattern", "GB per chip", "student, moments, average",
    "fake score, moments", "teacher and what is shared", "clips of a step", "together GB",
)  # fmt: skip


class Program(typing.NamedTuple):
    """A step and the shapes of its arguments, each with where it lies."""

    step: typing.Any
    state: typing.Any
    teacher: typing.Any
    batch: TrainingClip


def program(layout: TrainLayout, samples: int, pattern: str) -> Program:
    """The step for a layout."""
    config = get_preset("wan_14b_memory").replace(attention_pattern=pattern)
    shapes = parameter_shapes(config)
    params = from_flat({k: jax.ShapeDtypeStruct(s, jnp.float32) for k, s in shapes.items()})
    trained = split(params, distilled_parameters(params))[0]

    def adamw() -> optax.GradientTransformation:
        return optax.chain(
            optax.clip_by_global_norm(1.0), optax.adamw(2e-6, b1=0.0, weight_decay=0.01)
        )

    optimizers = Optimizers(adamw(), adamw())
    key = jax.eval_shape(lambda: jax.random.key(0))
    state = jax.eval_shape(
        lambda trained, key: init_distill_state(trained, optimizers, key), trained, key
    )
    places = layout.kept(state, state.student)

    def read(clip: TrainingClip, key: jax.Array) -> Told:
        pattern = reading_pattern(clip.conditions)
        conditions = dataclasses.replace(
            clip.conditions, target_geometry=None, reference_geometry=None
        )
        return Told(dataclasses.replace(clip, conditions=conditions), pattern)

    negative = jnp.zeros((512, config.text_dim), jnp.bfloat16)
    networks = official_networks(layout.model(config), dmd_schedule(), negative)
    step = make_distill_step(networks, optimizers, read, places=places)
    by_sample = NamedSharding(layout.mesh, PartitionSpec(SAMPLES))
    batch = abstract_clip(samples * (FAKE_UPDATES + 1), pattern)
    held = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, config.compute_dtype), params)
    return Program(
        step=step,
        state=jax.tree.map(laid, state, places),
        teacher=jax.tree.map(laid, held, layout.parameters(params)),
        batch=jax.tree.map(lambda x: laid(x, by_sample), batch),
    )


def lowered_step(layout: TrainLayout, samples: int, pattern: str) -> typing.Any:
    """The step, lowered."""
    step, *given = program(layout, samples, pattern)
    return step.lower(*given)


def bytes_per_chip(tree: typing.Any) -> int:
    """Of arrays' shapes with where they lie."""

    def size(x: typing.Any) -> int:
        if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            return 0
        return math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize

    return sum(size(x) for x in jax.tree.leaves(tree))


def held_row(pod: Pod, pattern: str) -> tuple[str, ...]:
    """Trace the step, and say what lies on a chip between two."""
    devices = topologies.get_topology_desc(platform="tpu", topology_name=pod.topology).devices
    layout = TrainLayout(parse_mesh(pod.mesh, devices))
    samples = int(np.prod([layout.mesh.shape[axis] for axis in SAMPLES]))
    made = program(layout, samples, pattern)
    state, _ = jax.eval_shape(made.step, made.state, made.teacher, made.batch)
    assert jax.tree.structure(state) == jax.tree.structure(made.state)
    parts = [
        (made.state.student, made.state.student_opt, made.state.ema),
        (made.state.fake, made.state.fake_opt),
        made.teacher,
        made.batch,
    ]
    sizes = [bytes_per_chip(part) / 1e9 for part in parts]
    row = (
        pod.topology, pod.mesh, str(samples), pattern, str(pod.capacity),
        *(f"{size:.2f}" for size in (*sizes, sum(sizes))),
    )  # fmt: skip
    print(*row, flush=True)
    return row


def main() -> None:
    """Compile, record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--pods", type=int, nargs="*", default=[1])
    parser.add_argument("--pattern", choices=("dense", "correspondence"), default="dense")
    parser.add_argument("--shapes-only", action="store_true")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    pods = " ".join(map(str, options.pods))
    command = f"python experiments/aot_distill_14b.py --pods {pods} --pattern {options.pattern}"
    sizes = (
        f"{FRAMES} latent frames and {VIEWS} references, one sample of each update for every chip "
        f"along data and fsdp; {FAKE_UPDATES} updates of the fake score and one of the student. "
    )
    for pod in (PODS[index] for index in options.pods):
        if options.shapes_only:
            title, header = HELD_TITLE, HELD_HEADER
            command = f"{command.removesuffix(' --shapes-only')} --shapes-only"
            about = (
                f"{sizes}Gigabytes (10^9) per chip between two steps, from the shapes of the "
                "traced step and the layout; what a step takes besides is not known: it was not "
                "compiled."
            )
            row = held_row(pod, options.pattern)
        else:
            title, header = TITLE, HEADER
            about = (
                f"{sizes}Gigabytes (10^9) per chip as the compiled program states them, the "
                "teacher among them; the state is given back in place. Kernels are counted in the "
                "lowered program, where a scanned layer stands once. Nothing was timed."
            )
            row = row_of(pod, options.pattern, lowered_step)
        kept = {each[:4]: each for each in kept_rows(options.results, title, header)}
        rows = list((kept | {row[:4]: row}).values())
        write_section(options.results, title, [about, Table(header, rows)], command=command)


if __name__ == "__main__":
    main()
