"""How near distilled models' few steps come to their teacher's many, as distributions.

    python experiments/distill_gain.py --cache runs/clips --teacher TEACHER --base BASE \
        --students runs/few/worldstereo

Under the conditions of prepared clips all models make `--seeds` clips each, and the latents of
each way are compared with those of the teacher's own sampler (UniPC, `--teacher-steps`, with
guidance): root mean square difference of the means and of the standard deviations of each latent
number, and the energy coefficient of each token's numbers (0 for one distribution, at most 1). The
first row is the teacher again, from other seeds: what is left of these measures at so many samples.
Writes its table into RESULTS.md.

Record: see the docstring of `distill_toy.py`, which makes a teacher and distils it.
"""

import argparse
import functools
import typing
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from worldstereo_jax.array_types import Array, PyTree
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.evaluation.sample_distance import SampleDistance, sample_distance
from worldstereo_jax.interop.pretrained import from_pretrained, load_scheduler
from worldstereo_jax.models.layers import patchify
from worldstereo_jax.models.worldstereo import WorldStereo
from worldstereo_jax.sampling.loop import sample
from worldstereo_jax.sampling.noise import unit_noise
from worldstereo_jax.sampling.schedules import Schedule
from worldstereo_jax.sampling.solvers import SolverFactory, dmd, unipc
from worldstereo_jax.training.clip_cache import ClipCache, read_index
from worldstereo_jax.training.distill import Velocity
from worldstereo_jax.training.official_distill import GUIDANCE, official_networks, read_told
from worldstereo_jax.training.official_fields import check_recipe, read_negative_text

RESULTS = Path(__file__).with_name("RESULTS.md")
TITLE = "Few steps of distilled models against their teacher's many"
HEADER = ("sampled by", "evaluations a clip", "error of mean", "error of deviation", "energy")


class Way(typing.NamedTuple):
    """One way to make clips: its name, parameters, network and sampler, and the first seed."""

    name: str
    params: PyTree
    velocity: Velocity
    schedule: Schedule
    solver: SolverFactory
    evaluations: int
    seed: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--cache", type=Path, required=True, help="prepared clips")
    add("--teacher", required=True, help="folder or hub id")
    add("--base", required=True, help="of its base model")
    add("--students", nargs="+", required=True, help="folders or hub ids of distilled models")
    add("--guidance", type=float, default=GUIDANCE, help="the teacher's")
    add("--teacher-steps", type=int, default=40)
    add("--clips", type=int, default=8, help="conditions, the first of the cache")
    add("--seeds", type=int, default=64, help="samples under each")
    add("--at-once", type=int, default=16, help="samples of a batch")
    add("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    add("--about", default="", help="a sentence for the record: what was trained, and how")
    add("--command", help="that makes all of it, for the record (default: this one)")
    add("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    try:
        measured = measure(options)
    except InputError as error:
        parser.error(str(error))
    rows = [
        (name, str(evaluations), *(f"{x:.3f}" for x in found))
        for name, evaluations, found in measured
    ]
    about = (
        f"Against the teacher's UniPC in {options.teacher_steps} steps with guidance "
        f"{options.guidance:g}; {options.seeds} samples under the conditions of each of "
        f"{options.clips} clips, means over the clips. Errors are root mean squares over the "
        "numbers of a normalised latent; energy is the energy coefficient of a token's numbers, "
        "0 for one distribution. " + options.about
    )
    command = options.command or (
        f"python experiments/distill_gain.py --cache {options.cache} --teacher {options.teacher} "
        f"--students {' '.join(options.students)} --guidance {options.guidance:g} ..."
    )
    write_section(options.results, TITLE, [about, Table(HEADER, rows)], command=command)


def measure(options: argparse.Namespace) -> list[tuple[str, int, SampleDistance]]:
    """For each way of sampling its name, evaluations of a network, and its mean distance.

    Raises:
        InputError: for files that do not fit, and for a student that is not.
    """
    load = functools.partial(
        from_pretrained, base=options.base, dtype=options.dtype, progress=False
    )
    recipe = read_index(options.cache)["recipe"]
    teacher = load(options.teacher)
    check_recipe(recipe, teacher.config, str(options.cache))
    scheduler = load_scheduler(options.base)
    negative = read_negative_text(options.cache)
    # Two texts in each evaluation with guidance.
    passes = 1 if options.guidance == 1 else 2
    networks = official_networks(
        WorldStereo(teacher.config), scheduler.schedule(1), negative, guidance=options.guidance
    )
    alone, guided = networks.student, networks.teacher

    def unipc_way(steps: int, seed: int, more: str = "") -> Way:
        name = f"teacher, UniPC, {steps} steps{more}"
        schedule = scheduler.schedule(steps)
        return Way(name, teacher.params, guided, schedule, unipc, passes * steps, seed)

    many = options.teacher_steps
    reference, ways = unipc_way(many, 1), [unipc_way(many, 2, ", other seeds")]
    for source in options.students:
        student = load(source)
        if student.settings is None or student.settings.dmd is None:
            raise InputError(f"{source}: has no steps of a distilled model in its config.json")
        check_recipe(recipe, student.config, str(options.cache))
        few = student.settings.dmd.schedule()
        n = few.steps
        name = f"teacher, the student's {n} steps"
        ways += [
            unipc_way(n, 2),
            Way(name, teacher.params, guided, few, dmd, passes * n, 2),
            Way(f"student, {n} steps", student.params, alone, few, dmd, n, 2),
        ]
        if passes > 1:
            name = f"{name}, without guidance"
            ways.insert(-1, Way(name, teacher.params, alone, few, dmd, n, 2))
    sizes = {name: recipe[name] for name in ("height", "width", "ray_x_offset")}
    cache = ClipCache(options.cache)
    found: list[list[SampleDistance]] = [[] for _ in ways]
    # Ways that differ in parameters or seeds alone share a program.
    programs = {w[2:5]: _sampler(w, sizes) for w in (reference, *ways)}
    for number in tqdm(range(min(options.clips, len(cache))), unit="clip"):
        made = [
            _samples(programs[way[2:5]], way, cache[number], number, options)
            for way in (reference, *ways)
        ]
        for distances, samples in zip(found, made[1:], strict=True):
            distances.append(sample_distance(samples, made[0]))
    means = [SampleDistance(*np.mean(distances, axis=0)) for distances in found]
    return [(w.name, w.evaluations, m) for w, m in zip(ways, means, strict=True)]


def _sampler(way: Way, sizes: dict[str, typing.Any]) -> Callable[..., Array]:
    """Jitted (params, fields of a batch, key) -> latents."""

    @jax.jit
    def run(params: PyTree, fields: dict[str, Array], key: Array) -> Array:
        told = read_told(fields, key, drop_references=0.0, **sizes)

        def velocity(x: Array, timestep: Array, sigma: Array) -> Array:
            del sigma
            return way.velocity(params, told, x, jnp.broadcast_to(timestep, x.shape[:1]))

        noise = unit_noise(key, told.clip.target.shape)
        return sample(velocity, noise, way.schedule, way.solver)

    return run


def _samples(
    sampler: Callable[..., Array],
    way: Way,
    clip: dict[str, np.ndarray],
    number: int,
    options: argparse.Namespace,
) -> np.ndarray:
    """`--seeds` clips under the conditions of one, as tokens [seeds, tokens, numbers]."""
    fields = {k: np.repeat(x[None], options.at_once, axis=0) for k, x in clip.items()}
    key = jax.random.fold_in(jax.random.key(way.seed), number)
    parts = [
        np.asarray(sampler(way.params, fields, jax.random.fold_in(key, part)))
        for part in range(-(-options.seeds // options.at_once))
    ]
    samples = np.concatenate(parts)[: options.seeds]
    tokens = np.asarray(patchify(jnp.asarray(samples), (1, 2, 2)))
    return tokens.reshape(len(samples), -1, tokens.shape[-1])


if __name__ == "__main__":
    main()
