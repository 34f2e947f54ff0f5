"""Render single frames of procedural scenes with depth, for the VAE and the depth network.

Writes an .npz with `train` and `held_out` (uint8 [n, 96, 160, 3]) and `train_depth` and
`held_out_depth` (float32 [n, 96, 160], metres). Held-out scenes show held-out photographs only.
Scene seeds: training 0 onwards, held out 900,000 onwards.

    python experiments/cache_frames.py --out runs/frames.npz --scenes 700
"""

import argparse
from pathlib import Path

import numpy as np
from tqdm import tqdm

from worldstereo_jax.data.images import to_uint8
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.files import atomic_write

HELD_OUT_SEED = 900_000


def render(seeds: range, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Two views from each of a scene's two paths: uint8 images and depth in metres."""
    images, depths = [], []
    for clip in tqdm(SceneClips(seeds, split=split, frames=2), desc=split):
        for name in ("", "revisit_"):
            images.append(to_uint8(clip[f"{name}image"]))
            depths.append(clip[f"{name}depth"].astype(np.float32))
    return np.concatenate(images), np.concatenate(depths)


def main() -> None:
    """Render and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scenes", type=int, default=700)
    parser.add_argument("--held-out-scenes", type=int, default=16)
    args = parser.parse_args()
    held_out, held_out_depth = render(
        range(HELD_OUT_SEED, HELD_OUT_SEED + args.held_out_scenes), "held_out"
    )
    train, train_depth = render(range(args.scenes), "train")
    with atomic_write(args.out) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            train=train,
            held_out=held_out,
            train_depth=train_depth,
            held_out_depth=held_out_depth,
        )


if __name__ == "__main__":
    main()
