"""The point renderer's time and memory, against a plain z-buffer and against numpy.

    python experiments/splat_bench.py

400,000 points of a relief, seen along a path of 21 cameras at 480 x 832, official radius and 20
points per pixel. Three programs:

- renderer: `worldstereo_jax.geometry.splat.render_path`;
- z-buffer: the plain alternative, one jitted scatter-min of depth per frame and the winner's
  colour, one pixel per point, no blending: the floor for any scatter;
- numpy: the renderer's semantics, all pairs of a frame sorted at once by a 64-bit key (last
  frame only).

Memory is what the program needs beside its inputs and outputs: XLA's own count of temporaries, and
tracemalloc's peak for numpy. The largest difference of colour between renderer and numpy is printed
too: rounding decides at a disc's rim, where alpha is next to 0.

The processor's own seconds stand beside the clock's, because a shared machine stretches the latter.

Record (2026-11-22, two Xeon cores shared with other jobs, processor seconds per frame): renderer
0.77 and 43 MB, z-buffer 0.02 and 18 MB, numpy 1.93 and 295 MB; 0.60 s by the clock for the renderer
when the machine was calm. Colours differ by at most 2e-4.
"""

import argparse
import dataclasses
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.geometry.cameras import project
from worldstereo_jax.geometry.splat import (
    OFFICIAL_POINTS_PER_PIXEL,
    OFFICIAL_RADIUS_NDC,
    render_path,
)
from worldstereo_jax.geometry.trajectories import make_path

RESULTS = Path(__file__).parent / "RESULTS.md"


def make_cloud(count: int, height: int, width: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points [n, 3] of a relief 2 to 5 m away that fill the first view, colours, intrinsics."""
    rng = np.random.default_rng(0)
    focal = 0.8 * width
    u, v = rng.uniform(0, width, count), rng.uniform(0, height, count)
    z = 3.0 + 0.6 * np.sin(u / 60) + 0.5 * np.cos(v / 45) + 0.8 * (u > width / 2)
    points = np.stack([(u - width / 2) / focal * z, (v - height / 2) / focal * z, z], -1)
    intrinsics = np.array([[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]])
    colors = rng.uniform(-1, 1, (count, 3))
    return points.astype(np.float32), colors.astype(np.float32), intrinsics.astype(np.float32)


def z_buffer_path(points, colors, w2c, intrinsics, height: int, width: int) -> jax.Array:
    """Nearest point per pixel, frame by frame: [f, h, w, 3]."""

    def one(camera):
        pixels, z = project(points, *camera)
        inside = (z > 0) & jnp.all(
            (pixels >= 0) & (pixels < jnp.array([[width, height]], jnp.float32)), -1
        )
        column, row = jnp.floor(pixels).astype(jnp.int32).T
        place = jnp.where(inside, row * width + column, height * width)
        nearest = jnp.full((height * width,), jnp.inf).at[place].min(z, mode="drop")
        wins = z == nearest.at[place].get(mode="fill", fill_value=-1.0)
        image = jnp.zeros((height * width, 3))
        image = image.at[jnp.where(wins, place, height * width)].set(colors, mode="drop")
        return image.reshape(height, width, 3)

    return jax.lax.map(one, (w2c, intrinsics))


def numpy_frame(points, colors, w2c, intrinsics, height: int, width: int) -> np.ndarray:
    """One frame with the renderer's semantics: [h, w, 3]."""
    radius = OFFICIAL_RADIUS_NDC * min(height, width) / 2
    local = points @ w2c[:3, :3].T + w2c[:3, 3]
    order = np.argsort(local[:, 2], kind="stable")
    local, colors = local[order], colors[order]
    pixels = local @ intrinsics.T
    uv = pixels[:, :2] / pixels[:, 2:]
    reach = int(np.ceil(2 * radius))
    first = np.floor(uv - radius - 0.5).astype(np.int64) + 1
    step = np.arange(reach)
    x = first[:, 0, None, None] + step[None, None, :]
    y = first[:, 1, None, None] + step[None, :, None]
    d2 = (x + 0.5 - uv[:, 0, None, None]) ** 2 + (y + 0.5 - uv[:, 1, None, None]) ** 2
    hit = (d2 < radius**2) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    hit &= local[:, 2, None, None] > 0
    point = np.broadcast_to(np.arange(len(points))[:, None, None], hit.shape)[hit]
    keys = np.sort(((y * width + x)[hit] << 32) | point)
    pixel, point = keys >> 32, keys & 0xFFFFFFFF
    starts = np.flatnonzero(np.diff(pixel, prepend=-1))
    ends = np.append(starts[1:], len(pixel))
    target = pixel[starts]
    image = np.zeros((height * width, 3), np.float32)
    light = np.ones(len(starts), np.float32)
    for rank in range(OFFICIAL_POINTS_PER_PIXEL):
        live = np.flatnonzero(starts + rank < ends)
        at = starts[live] + rank
        place, which = target[live], point[at]
        dx = place % width + np.float32(0.5) - uv[which, 0]
        dy = place // width + np.float32(0.5) - uv[which, 1]
        alpha = 1 - (dx * dx + dy * dy) / np.float32(radius**2)
        image[place] += (light[live] * alpha)[:, None] * colors[which]
        light[live] *= 1 - alpha
    return image.reshape(height, width, 3)


@dataclasses.dataclass(frozen=True)
class Figures:
    """What one program took: seconds per frame by the clock and the processor, and megabytes."""

    name: str
    clock_s: float
    processor_s: float
    compile_s: float | None
    temporary_mb: float

    def row(self) -> tuple[str, ...]:
        """The cells of the table."""
        compile_s = "" if self.compile_s is None else f"{self.compile_s:.1f}"
        times = (f"{self.clock_s:.3f}", f"{self.processor_s:.3f}")
        return (self.name, *times, compile_s, f"{self.temporary_mb:.0f}")


def timed(call: Callable[[], Any], repeats: int) -> tuple[Any, float, float]:
    """Result and the best seconds by clock and by processor."""
    clock = processor = np.inf
    result = None
    for _ in range(repeats):
        start, start_processor = time.perf_counter(), time.process_time()
        result = jax.block_until_ready(call())
        clock = min(clock, time.perf_counter() - start)
        processor = min(processor, time.process_time() - start_processor)
    return result, clock, processor


def measure(name: str, program: Any, arguments: tuple, repeats: int) -> tuple[Any, Figures]:
    """Compile a program over a whole path and time it; figures are per frame."""
    start = time.perf_counter()
    compiled = program.lower(*arguments).compile()
    compile_s = time.perf_counter() - start
    result, clock, processor = timed(lambda: compiled(*arguments), repeats)
    frames = len(arguments[-1])
    megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
    return result, Figures(name, clock / frames, processor / frames, compile_s, megabytes)


def main() -> None:
    """Measure, print, and write the section."""
    parser = argparse.ArgumentParser(description="Time and memory of the point renderer.")
    parser.add_argument("--points", type=int, default=400_000)
    parser.add_argument("--frames", type=int, default=21)
    parser.add_argument("--height", type=int, default=480)
    parser.add_argument("--width", type=int, default=832)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--note", default="", help="what else the machine was doing")
    args = parser.parse_args()
    height, width = args.height, args.width

    points, colors, k = make_cloud(args.points, height, width)
    w2c = make_path("orbit", args.frames, amplitude=0.3, pivot_depth=3.0)
    cloud = (jnp.asarray(points), jnp.asarray(colors))
    cameras = (jnp.asarray(w2c), jnp.tile(jnp.asarray(k)[None], (args.frames, 1, 1)))

    renderer = jax.jit(
        lambda p, c, w, i: render_path(
            p, c, jnp.ones(len(p), bool), w, i, height=height, width=width
        )
    )
    plain = jax.jit(lambda p, c, w, i: z_buffer_path(p, c, w, i, height, width))
    ours, renderer_figures = measure("renderer", renderer, (*cloud, *cameras), args.repeats)
    _, plain_figures = measure("z-buffer", plain, (*cloud, *cameras), args.repeats)

    frame = args.frames - 1
    last = np.asarray(w2c[frame])
    image, clock, processor = timed(
        lambda: numpy_frame(points, colors, last, k, height, width), args.repeats
    )
    worst = float(np.abs(image - np.asarray(ours.image[frame])).max())
    tracemalloc.start()
    numpy_frame(points, colors, last, k, height, width)
    numpy_mb = tracemalloc.get_traced_memory()[1] / 1e6
    numpy_figures = Figures("numpy", clock, processor, None, numpy_mb)

    table = Table(
        ("program", "s per frame", "processor s per frame", "compile s", "temporary MB"),
        [figures.row() for figures in (renderer_figures, plain_figures, numpy_figures)],
    )
    facts = (
        f"{args.points:,} points, {args.frames} frames of {height} x {width}. Largest difference "
        f"of colour between renderer and numpy: {worst:.1e}. {args.note}"
    )
    print(f"{facts}\n\n{table.markdown()}")
    write_section(
        RESULTS,
        "Point renderer",
        [facts, table],
        command="python experiments/splat_bench.py",
    )


if __name__ == "__main__":
    main()
