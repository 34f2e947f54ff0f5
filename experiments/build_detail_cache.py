"""Make clips of procedural scenes with the shipped model, for training its detail mixer.

    python experiments/build_detail_cache.py --out runs/detail_clips --scenes 240 --first 4000

Three clips per scene, with the frames that the mixer will see: one from a single image, one that
revisits through the memory of the first, and the first again without the stereo memory. Beside
them the truth. A run that is interrupted continues where it stopped when started again.

Record: see the docstring of `train_detail.py`, which trains on the result.
"""

import argparse
import dataclasses
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from worldstereo_jax.array_types import Array, PyTree
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.interop.shipped import init_mixer, load_world
from worldstereo_jax.sampling.conditions import Conditions, Guidance, gather_conditions
from worldstereo_jax.sampling.detail import restore_detail
from worldstereo_jax.sampling.rollout import Clip, complete_depth, denoise_clip, keyframes_of
from worldstereo_jax.sampling.world import (
    Cameras,
    World,
    WorldMemory,
    WorldParams,
    init_memory,
    remember_frames,
)
from worldstereo_jax.training.clip_cache import ClipCacheWriter


def to_uint8(image: Array) -> np.ndarray:
    """Numbers in [-1, 1] as 0 .. 255."""
    return np.asarray(jnp.round((image.clip(-1, 1) + 1) * 127.5).astype(jnp.uint8))


def main() -> None:
    """Fill the cache."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--scenes", type=int, default=240, help="number of scenes, 3 clips each")
    parser.add_argument("--first", type=int, default=4000, help="number of the first scene")
    parser.add_argument("--seed", type=int, default=0, help="seed of the clips' noise")
    options = parser.parse_args()

    world, params = load_world("tiny")
    config = world.rollout
    # The untrained mixer, so that what is trained does not depend on what was trained before.
    params = params.replace(
        detail=init_mixer(world.detail, jax.random.key(0), config.height, config.width)
    )
    source = SceneClips(
        range(options.first, options.first + options.scenes),
        split="train",
        frames=config.frames,
        height=config.height,
        width=config.width,
    )
    gather = jax.jit(lambda vae, *inputs: gather_conditions(world, vae, *inputs))

    @jax.jit
    def make(
        params: WorldParams, conditions: Conditions, guidance: Guidance, key: Array
    ) -> tuple[PyTree, Array, Array]:
        video, coded_warp = denoise_clip(world, params, conditions, key)
        enabled = conditions.stereo_enabled
        layers = {
            "video": video,
            "warp": jnp.where(enabled, guidance.warped_image, video),
            "coded_warp": jnp.where(enabled, coded_warp, video),
            "hole": jnp.where(enabled, guidance.warped_mask, 1.0) * 2 - 1,
        }
        shown = restore_detail(
            world.detail,
            params.detail,
            video,
            guidance.warped_image,
            coded_warp,
            guidance.warped_mask,
            enabled,
        )
        return layers, shown, complete_depth(world, params, shown, guidance.depth)

    def clips_of(number: int) -> Iterator[dict[str, np.ndarray]]:
        scene = source[number]
        key = jax.random.fold_in(jax.random.key(options.seed), options.first + number)
        yield from clips_of_scene(world, params, gather, make, scene, key)

    recipe = {
        "first": options.first,
        "scenes": options.scenes,
        "seed": options.seed,
        "rollout": dataclasses.asdict(config),
    }
    writer = ClipCacheWriter(options.out, 3 * options.scenes, next(clips_of(0)), recipe)
    # A scene of which a clip was lost to an interruption is written again from its first.
    writer.written -= writer.written % 3
    done = writer.written // 3
    for number in tqdm(range(done, options.scenes), initial=done, total=options.scenes):
        for clip in clips_of(number):
            writer.append(clip)


def clips_of_scene(
    world: World, params: WorldParams, gather, make, scene: dict[str, np.ndarray], key: Array
) -> Iterator[dict[str, np.ndarray]]:
    """The three clips of one scene, without their first frames, as bytes."""
    first = Cameras(w2c=jnp.asarray(scene["w2c"]), intrinsics=jnp.asarray(scene["intrinsics"]))
    second = Cameras(
        w2c=jnp.asarray(scene["revisit_w2c"]), intrinsics=jnp.asarray(scene["revisit_intrinsics"])
    )
    start = (scene[name][0] for name in ("image", "depth", "w2c", "intrinsics"))
    memory: WorldMemory = init_memory(world.rollout, *(jnp.asarray(x) for x in start))
    keys = jax.random.split(key, 3)

    def fields(layers: dict[str, Array], truth: np.ndarray) -> dict[str, np.ndarray]:
        return {name: to_uint8(value[1:]) for name, value in layers.items()} | {
            "truth": to_uint8(jnp.asarray(truth[1:]))
        }

    conditions, guidance = gather(params.vae, memory, first)
    layers, shown, depth = make(params, conditions, guidance, keys[0])
    yield fields(layers, scene["image"])
    without = dataclasses.replace(conditions, stereo_enabled=jnp.zeros((), bool))
    yield fields(make(params, without, guidance, keys[1])[0], scene["image"])
    clip = Clip(video=shown, depth=depth, cameras=first, guidance=guidance)
    memory = remember_frames(world.rollout, memory, *keyframes_of(world.rollout, clip), source=1)
    conditions, guidance = gather(params.vae, memory, second)
    yield fields(make(params, conditions, guidance, keys[2])[0], scene["revisit_image"])


if __name__ == "__main__":
    main()
