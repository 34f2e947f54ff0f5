"""Depth that is wrong in one view: what the memory draws of it, and what of the truth is left.

    python -m experiments.wrong_view

Rooms of the held-out split, seen along a path of eleven frames with 0.5 % of noise in their depth;
the depth of one view is multiplied by a factor. The frame in the middle is drawn from the others:
by the keyframes (six of them, warped and fused) and by the entries (fused from all ten). Per factor
the share of drawn pixels whose depth is off by more than 2 %, the share of the picture that is
drawn, PSNR of drawn pixels against the true picture, and how sure the memory is of the entries that
the wrong view alone has seen (median of their confidences, and how many there are).

Expected (row S12): at every factor keyframes and entries are within some 1.5 dB of factor 1, draw
as much, and 3 to 8 % is off (of the keyframes at 0.96, next to what counts as the same depth, a
tenth): where only one other view looks, the surer of the two wins. Whether views came before the
wrong one or after it, they vote on what it adds, so next to nothing of it is believed.
"""

import argparse
import functools
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from worldstereo_jax.array_types import Array
from worldstereo_jax.data.scene_layouts import make_scene
from worldstereo_jax.data.scene_source import render_clip
from worldstereo_jax.data.scene_trajectories import sample_revisit
from worldstereo_jax.evaluation.report import Table, write_section
from worldstereo_jax.memory.entries import EntryBank, EntryConfig, init_entries
from worldstereo_jax.memory.entry_features import pyramid_widths
from worldstereo_jax.memory.entry_frame import make_entry_frame
from worldstereo_jax.memory.entry_update import update_entries
from worldstereo_jax.memory.entry_warp import warp_entries
from worldstereo_jax.memory.spatial_stereo import depth_confidence
from worldstereo_jax.memory.warping import Warped, warp_views

RESULTS = Path(__file__).parent / "RESULTS.md"
HEIGHT, WIDTH, FRAMES = 96, 160, 11
TARGET, WRONG = 5, 4
FACTORS = (1.0, 0.98, 0.96, 0.95, 0.93, 0.9, 0.85, 0.8, 1.04, 1.1, 1.2)
NOISE, OFF = 0.005, 0.02


class Views(NamedTuple):
    """Pictures in [-1, 1], depth, cameras, intrinsics in pixels; each with a leading axis."""

    image: Array
    depth: Array
    w2c: Array
    intrinsics: Array

    def take(self, chosen: Array) -> "Views":
        """Some of the views."""
        return Views(*(field[chosen] for field in self))


def room(seed: int) -> Views:
    """All frames of a path through a room, with exact depth."""
    scene = make_scene(seed, "held_out")
    w2c, _, k = sample_revisit(seed, scene, FRAMES, None, height=HEIGHT, width=WIDTH)
    clip = render_clip(scene, w2c, k, height=HEIGHT, width=WIDTH)
    return Views(*(jnp.asarray(clip[name]) for name in ("image", "depth", "w2c", "intrinsics")))


@jax.jit
def by_keyframes(views: Views, w2c: Array, intrinsics: Array) -> Warped:
    """The keyframes' warp in a camera."""
    confidence = jax.vmap(depth_confidence)(views.depth, views.w2c, views.intrinsics)
    valid = jnp.ones(len(views.image), bool)
    bank = (views.image, views.depth, confidence, views.w2c, views.intrinsics, valid)
    return warp_views(*bank, w2c, intrinsics)


@jax.jit
def fuse(views: Views) -> EntryBank:
    """The entries of all views."""
    empty = init_entries(EntryConfig(6 * HEIGHT * WIDTH, pyramid_widths()))

    def add(bank: EntryBank, frame: tuple[Array, Views]) -> tuple[EntryBank, None]:
        number, view = frame
        return update_entries(bank, make_entry_frame(*view, view=number)), None

    return jax.lax.scan(add, empty, (jnp.arange(len(views.image)), views))[0]


_draw = jax.jit(functools.partial(warp_entries, height=HEIGHT, width=WIDTH))


def figures(drawn: Warped, image: Array, depth: Array) -> list[float]:
    """Share off, share drawn, PSNR dB."""
    there = np.asarray(drawn.mask) < 0.5
    error = np.abs(np.asarray(drawn.depth) / np.asarray(depth) - 1)
    square = (np.asarray(drawn.features)[..., :3] - np.asarray(image)) ** 2
    return [
        float((error[there] > OFF).mean()),
        float(there.mean()),
        float(10 * np.log10(4 / square[there].mean())),
    ]


def measure(path: Views, factor: float, key: Array) -> list[float]:
    """The row of one room and factor."""
    noisy = path.depth * (1 + NOISE * jax.random.normal(key, path.depth.shape))
    views = path._replace(depth=noisy.at[WRONG].multiply(factor))
    stored = jnp.asarray([i for i in range(FRAMES) if i != TARGET])
    truth = path.image[TARGET], path.depth[TARGET]
    camera = path.w2c[TARGET], path.intrinsics[TARGET]
    # Every second one, the wrong one among them.
    keyframes = by_keyframes(views.take(jnp.asarray([0, 2, 4, 6, 8, 10])), *camera)
    bank = fuse(views.take(stored))
    drawn = _draw(bank, *camera)
    lone = np.asarray(bank.valid) & (np.asarray(bank.views)[:, 0] == 1 << WRONG)
    sure = float(np.median(np.asarray(bank.confidence)[lone])) if lone.any() else np.nan
    return [*figures(keyframes, *truth), *figures(drawn, *truth), sure, float(lone.sum())]


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--rooms", type=int, default=3)
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args()
    rooms = [room(seed) for seed in range(options.rooms)]
    rows = []
    for factor in tqdm(FACTORS, unit="factor"):
        found = [measure(path, factor, jax.random.key(i)) for i, path in enumerate(rooms)]
        mean = np.nanmean(found, axis=0)
        rows.append(
            [
                f"{factor:g}",
                *(f"{100 * mean[0]:.1f} %", f"{100 * mean[1]:.1f} %", f"{mean[2]:.2f}"),
                *(f"{100 * mean[3]:.1f} %", f"{100 * mean[4]:.1f} %", f"{mean[5]:.2f}"),
                *(f"{mean[6]:.2f}", f"{mean[7]:.0f}"),
            ]
        )
    columns = ["factor"]
    columns += [f"{kind}: {what}" for kind in ("keyframes", "entries") for what in _COLUMNS]
    columns += ["confidence of the wrong view's own entries", "their number"]
    text = (
        f"Means over {options.rooms} rooms. Off: share of drawn pixels whose depth is off by more "
        "than 2 %. Drawn: share of the picture. PSNR: of drawn pixels."
    )
    write_section(
        options.results,
        "Depth that is wrong in one view",
        [text, Table(columns, rows)],
        command=f"python -m experiments.wrong_view --rooms {options.rooms}",
    )


_COLUMNS = ("off", "drawn", "PSNR dB")


if __name__ == "__main__":
    main()
