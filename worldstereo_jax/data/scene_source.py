"""Procedural clips as a random-access source for grain."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Array, Float, ndarray
from worldstereo_jax.data.scene_layouts import make_scene
from worldstereo_jax.data.scene_render import render_scene
from worldstereo_jax.data.scene_trajectories import sample_revisit, sample_trajectory
from worldstereo_jax.data.scene_types import Scene
from worldstereo_jax.errors import InputError

Clip = dict[str, np.ndarray]


def render_clip(
    scene: Scene,
    w2c: Float[Array | ndarray, "f 4 4"],
    intrinsics: Float[Array | ndarray, "f 3 3"],
    *,
    height: int,
    width: int,
) -> Clip:
    """One clip as numpy arrays: image [f, h, w, 3] in [-1, 1], depth [f, h, w] m,
    normal [f, h, w, 3] world, w2c [f, 4, 4], intrinsics [f, 3, 3] px."""
    frames = render_scene(scene, w2c, intrinsics, height=height, width=width)
    return {
        "image": np.asarray(frames.image),
        "depth": np.asarray(frames.depth),
        "normal": np.asarray(frames.normal),
        "w2c": np.asarray(w2c),
        "intrinsics": np.asarray(intrinsics),
    }


class SceneClips(Sequence):
    """Item i: two clips of scene `seeds[i]` from the same first camera, the second a revisit.

    An item is a dict of numpy arrays: those of `render_clip` for the first clip, the same under
    `revisit_` names for the second, and `seed`, an int64 scalar array. Item i depends on nothing
    but the arguments, so workers and restarts agree.

    Args:
        seeds: scene seeds, for instance range(0, 2000).
        split: which photographs; see `make_scene`.
        frames, height, width: size of every clip.
        kind: shape of the paths, or None to draw one per scene.
    """

    def __init__(
        self,
        seeds: range,
        *,
        split: str = "train",
        frames: int = 9,
        height: int = 96,
        width: int = 160,
        kind: str | None = None,
    ):
        if len(seeds) == 0:
            raise InputError("seeds is empty; a source needs at least one scene")
        self._seeds = seeds
        self._split = split
        self._frames, self._height, self._width = frames, height, width
        self._kind = kind

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, index: Any) -> Clip:
        seed = int(self._seeds[int(index)])
        scene = make_scene(seed, self._split)
        first, second, k = sample_revisit(
            seed, scene, self._frames, self._kind, height=self._height, width=self._width
        )
        # Both clips in one call: one program, compiled once.
        both = render_clip(
            scene,
            jnp.concatenate([first, second]),
            jnp.concatenate([k, k]),
            height=self._height,
            width=self._width,
        )
        item = {name: value[: self._frames] for name, value in both.items()}
        item |= {f"revisit_{name}": value[self._frames :] for name, value in both.items()}
        item["seed"] = np.asarray(seed, np.int64)
        return item

    def __repr__(self) -> str:
        size = f"{self._frames}x{self._height}x{self._width}"
        return f"SceneClips({self._seeds}, split={self._split!r}, {size}, kind={self._kind!r})"


class LongWorlds(Sequence):
    """Item i: several paths through scene `seeds[i]`, all from the same first camera.

    An item is a dict of numpy arrays, those of `render_clip` with a leading axis over the paths.
    Item i depends on nothing but the arguments.

    Args:
        seeds: scene seeds.
        paths: paths in every world.
        split: which photographs; see `make_scene`.
        frames, height, width: size of every clip.
    """

    def __init__(
        self,
        seeds: range,
        *,
        paths: int,
        split: str = "train",
        frames: int = 9,
        height: int = 96,
        width: int = 160,
    ):
        if len(seeds) == 0 or paths < 1:
            raise InputError(
                f"a source of long worlds needs a scene and a path, got {len(seeds)} and {paths}"
            )
        self._seeds, self._paths, self._split = seeds, paths, split
        self._frames, self._height, self._width = frames, height, width

    def __len__(self) -> int:
        return len(self._seeds)

    def __getitem__(self, index: Any) -> Clip:
        seed = int(self._seeds[int(index)])
        scene = make_scene(seed, self._split)
        # Each path has a seed of its own, which no other world's paths have.
        cameras = [
            sample_trajectory(
                seed * self._paths + path,
                scene,
                self._frames,
                height=self._height,
                width=self._width,
            )
            for path in range(self._paths)
        ]
        w2c, k = (jnp.concatenate(part) for part in zip(*cameras, strict=True))
        clip = render_clip(scene, w2c, k, height=self._height, width=self._width)
        return {
            name: value.reshape(self._paths, self._frames, *value.shape[1:])
            for name, value in clip.items()
        }

    def __repr__(self) -> str:
        size = f"{self._frames}x{self._height}x{self._width}"
        return f"LongWorlds({self._seeds}, paths={self._paths}, split={self._split!r}, {size})"
