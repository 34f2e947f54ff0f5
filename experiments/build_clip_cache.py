"""Prepare training clips of the small video model: scenes -> memories -> conditions and targets.

    python experiments/build_clip_cache.py --out runs/clips --scenes 800 --seed 0

    python experiments/build_clip_cache.py --out runs/long --scenes 60 --paths 5

Two clips per procedural scene: one from a single image, one that revisits through a memory; with
`--paths` the third and later clips of long worlds, through a memory that holds more views than a
clip reads. A run that is interrupted continues where it stopped when started again. `--first` and
`--scenes` choose the scenes, so that several machines can fill folders of their own.

Record: see the docstring of `train_tiny.py`, which trains on the result.
"""

import argparse
import dataclasses
import functools
from pathlib import Path

import jax
from tqdm import tqdm

from worldstereo_jax.data.scene_source import LongWorlds, SceneClips
from worldstereo_jax.interop.shipped import load_untrained
from worldstereo_jax.training.clip_cache import ClipCacheWriter
from worldstereo_jax.training.clip_preparation import (
    long_world_clips,
    prepare_pair,
    to_fields,
)

LONG_FROM = 2
"""Paths of a long world that only fill the memory: with them it holds nine views."""


def main() -> None:
    """Fill the cache."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--scenes", type=int, default=800, help="number of scenes")
    parser.add_argument("--paths", type=int, help="paths of a long world, instead of two clips")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage done to the bank")
    options = parser.parse_args()

    world, params = load_untrained("tiny", key=jax.random.key(0))
    rollout = world.rollout
    seeds = range(options.first, options.first + options.scenes)
    if options.paths is None:
        per_scene = 2
        source = SceneClips(
            seeds, frames=rollout.frames, height=rollout.height, width=rollout.width
        )
        prepare = functools.partial(prepare_pair, world, params.vae)
    else:
        source = LongWorlds(
            seeds,
            paths=options.paths,
            frames=rollout.frames,
            height=rollout.height,
            width=rollout.width,
        )
        per_scene = options.paths - LONG_FROM
        prepare = long_world_clips(world, params.vae, first=LONG_FROM)
    key = jax.random.key(options.seed)

    def clips_of(number: int):
        item = {k: v for k, v in source[number].items() if k != "seed"}
        for conditions, target in prepare(item, jax.random.fold_in(key, options.first + number)):
            yield to_fields(conditions, target)

    recipe = {
        "first": options.first,
        "scenes": options.scenes,
        "seed": options.seed,
        "rollout": dataclasses.asdict(rollout),
    }
    if options.paths is not None:
        recipe["paths"] = options.paths
    writer = ClipCacheWriter(options.out, per_scene * options.scenes, next(clips_of(0)), recipe)
    # A scene whose last clips were lost to an interruption is written again from its first.
    writer.written -= writer.written % per_scene
    done = writer.written // per_scene
    for number in tqdm(range(done, options.scenes), initial=done, total=options.scenes):
        for clip in clips_of(number):
            writer.append(clip)


if __name__ == "__main__":
    main()
