"""Prepare training clips of the small video model: scenes -> memories -> conditions and targets.

    python experiments/build_clip_cache.py --out runs/clips --scenes 800 --seed 0

Two clips per procedural scene: one from a single image, one that revisits through a memory. A run
that is interrupted continues where it stopped when started again. `--first` and `--scenes` choose
the scenes, so that several machines can fill folders of their own.

Record: see the docstring of `train_tiny.py`, which trains on the result.
"""

import argparse
import dataclasses
from pathlib import Path

import jax
from tqdm import tqdm

from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.interop.shipped import load_untrained
from worldstereo_jax.training.clip_cache import ClipCacheWriter
from worldstereo_jax.training.clip_preparation import prepare_pair, to_fields


def main() -> None:
    """Fill the cache."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--scenes", type=int, default=800, help="number of scenes, two clips each")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--seed", type=int, default=0, help="seed of the damage done to the bank")
    options = parser.parse_args()

    world, params = load_untrained("tiny", key=jax.random.key(0))
    rollout = world.rollout
    source = SceneClips(
        range(options.first, options.first + options.scenes),
        split="train",
        frames=rollout.frames,
        height=rollout.height,
        width=rollout.width,
    )
    prepare = jax.jit(lambda scene, key: prepare_pair(world, params.vae, scene, key))
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
    writer = ClipCacheWriter(options.out, 2 * options.scenes, next(clips_of(0)), recipe)
    # A scene whose second clip was lost to an interruption is written again from its first.
    writer.written -= writer.written % 2
    done = writer.written // 2
    for number in tqdm(range(done, options.scenes), initial=done, total=options.scenes):
        for clip in clips_of(number):
            writer.append(clip)


if __name__ == "__main__":
    main()
