"""Banks of hundreds of views: what looking at all of them takes, in bytes and in seconds.

    python -m experiments.bank_growth --views 30 100 300

Views of 480x832 pixels from a walk through one room, turning all the time, so that every place is
seen by many of them: the worst that a bank can hold, since nothing can be left out. Per number of
views and per function the bytes that the compiled program takes beside its arguments (of its memory
analysis: temporaries and results), and the seconds of processor time of one run, compilation apart.

`view_coverage`: what the views show to the cameras of a clip, here of 21 frames, which is how they
are retrieved. `refuted_pixels`: which pixels of the six that are read the others refute.
`useful_keyframes`: pruning to half. `shared_surface`: what views show of each other, for a report.

Expected: bytes that grow with the views and stay below what the views themselves take; seconds that
grow with them, and for the last two, which ask about all pairs, with their square.
"""

import argparse
import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.evaluation import memory_report
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.memory import coverage
from worldstereo_jax.memory.keyframe_edit import useful_keyframes
from worldstereo_jax.memory.spatial_stereo import SpatialStereoMemory, depth_confidence

RESULTS = Path(__file__).parent / "RESULTS.md"
HEIGHT, WIDTH, FRAMES, READ = 480, 832, 21, 6
LOW, HIGH = np.array([-3.0, -1.5, -3.0]), np.array([3.0, 1.5, 3.0])
NOTE = """\
Before views were judged one after the other, all of them were prepared at full size at once:
`view_coverage` took 1.29 GB for 30 views, 4.30 GB for 100 and 12.9 GB for 300, `useful_keyframes`
as much and more (4.50 GB for 100), `shared_surface` 0.48 GB and 1.60 GB (of the compiler's memory
analysis, the same function at the commit before)."""


def walk(views: int) -> SpatialStereoMemory:
    """A bank of exact views of a box; without pictures, which nothing here reads."""
    t = np.linspace(0.0, 1.0, views)
    yaw = 2 * np.pi * 7 * t
    centre = np.stack([2 * np.sin(5 * t), 0.4 * np.cos(9 * t), 2 * np.cos(7 * t)], -1)
    rotation = np.zeros((views, 3, 3))
    rotation[:, 0, 0] = rotation[:, 2, 2] = np.cos(yaw)
    rotation[:, 0, 2], rotation[:, 2, 0] = -np.sin(yaw), np.sin(yaw)
    rotation[:, 1, 1] = 1.0
    w2c = np.tile(np.eye(4), (views, 1, 1))
    w2c[:, :3, :3] = rotation
    w2c[:, :3, 3] = -np.einsum("vij,vj->vi", rotation, centre)
    k = np.array([[600.0, 0, WIDTH / 2], [0, 600.0, HEIGHT / 2], [0, 0, 1]])
    y, x = np.mgrid[:HEIGHT, :WIDTH] + 0.5
    rays = np.stack([x, y, np.ones_like(x)], -1) @ np.linalg.inv(k).T
    depth = np.empty((views, HEIGHT, WIDTH), np.float32)
    for i in range(views):
        towards = rays @ rotation[i]
        wall = np.where(towards > 0, HIGH, LOW) - centre[i]
        depth[i] = (wall / np.where(np.abs(towards) > 1e-9, towards, 1e-9)).min(-1)
    cameras = jnp.asarray(w2c, jnp.float32), jnp.tile(jnp.asarray(k, jnp.float32), (views, 1, 1))
    frames = (jnp.asarray(depth), *cameras)
    return SpatialStereoMemory(
        images=jnp.zeros((views, 1, 1, 3)),
        depth=frames[0],
        confidence=jax.jit(lambda f: jax.lax.map(lambda x: depth_confidence(*x), f))(frames),
        measured=jnp.ones((views, HEIGHT, WIDTH), bool),
        w2c=cameras[0],
        intrinsics=cameras[1],
        valid=jnp.ones((views,), bool),
        source=jnp.zeros((views,), jnp.int32),
        count=jnp.asarray(views, jnp.int32),
        overflow=jnp.zeros((), jnp.int32),
    )


def functions(bank: SpatialStereoMemory) -> dict[str, tuple[Callable, Sequence[Any]]]:
    """What is measured, by name: a function and what it is given."""
    views = bank.capacity
    path = np.linspace(0, views - 1, FRAMES).astype(int)
    read = jnp.asarray(np.linspace(0, views - 1, READ).astype(int), jnp.int32)
    stride = memory_report.report_stride(*bank.depth.shape)
    shared = functools.partial(memory_report.shared_surface, stride=stride)
    return {
        "view_coverage": (coverage.view_coverage, (bank, bank.w2c[path], bank.intrinsics[path])),
        "refuted_pixels": (coverage.refuted_pixels, (bank, read)),
        "useful_keyframes": (useful_keyframes, (bank, jnp.int32(views // 2))),
        "shared_surface": (shared, (bank.depth, bank.w2c, bank.intrinsics, bank.valid)),
    }


def measure(function: Callable, given: Sequence) -> tuple[int, float]:
    """Bytes beside the arguments, and processor seconds of a run."""
    compiled = jax.jit(function).lower(*given).compile()
    analysis = compiled.memory_analysis()
    assert analysis is not None
    size = analysis.temp_size_in_bytes + analysis.output_size_in_bytes
    start = time.process_time()
    jax.block_until_ready(compiled(*given))
    return size, time.process_time() - start


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--views", type=int, nargs="+", default=[30, 100, 300])
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rows = []
    for views in options.views:
        bank = walk(views)
        stored = views * HEIGHT * WIDTH * (3 * 4 + 4 + 4 + 1)
        cells = [f"{views}", f"{stored / 1e9:.2f} GB"]
        for name, (function, given) in functions(bank).items():
            size, seconds = measure(function, given)
            print(views, name, f"{size / 1e9:.3f} GB {seconds:.1f} s", flush=True)
            cells += [f"{size / 1e9:.2f} GB", f"{seconds:.1f}"]
        rows.append(cells)
    columns = ["views", "the bank itself"]
    for name in functions(walk(READ)):
        columns += [f"{name}: bytes", "processor s"]
    write_section(
        options.results,
        "Banks of hundreds of views",
        [Table(columns, rows), NOTE],
        command="python -m experiments.bank_growth --views "
        + " ".join(str(views) for views in options.views),
    )


if __name__ == "__main__":
    main()
