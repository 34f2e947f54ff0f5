"""Prepare training clips of an official model: posed video -> memories -> conditions and latents.

    python experiments/build_official_cache.py --clips videos --model CKPT --base BASE \
        --depth-model DEPTH --out runs/clips

    python experiments/build_official_cache.py --procedural 8 --model CKPT --base BASE \
        --out runs/clips

`videos` holds one sub-folder per clip (see `worldstereo_jax/data/posed_clips.py`), which what
`worldstereo generate` writes is too. A clip is a window of a video at random; views to attend to
are taken from the rest of it and made a little worse (`training/reference_augmentation.py`), since
at sampling time they are generated. A video no longer than the model's clips gives clips without
such views, as the first clip of a scene is. Depth that a folder does not bring is estimated; a
COLMAP model's points, or else the point that the path turns about, bring it to the cameras' unit;
where there is neither, give depth.

`--overlap 0.3 0.9` keeps clips, and views, that overlap as published training pairs do: the share
of the first frame's surface that a frame still shows (`data/clip_overlap.py`), for a clip that of
the frame which shows least. A window that does not fit is drawn again, eight times at most.

`--stereo` also keeps what a model reads of the spatial-stereo memory that has modules for it
(`worldstereo_jax/interop/memory_slots.py`): warped views and surface entries. A checkpoint with
such modules asks for its own without that option. `--reference-positions surface` likewise keeps
where the surfaces are that tokens show, for a model that is to be trained with rotary positions of
references there (`reference_positions` of its config).

A run that is interrupted goes on where it stopped when started again. `--procedural N` renders N
scenes of this project instead of reading video, to try the commands without data.

Record: see the docstring of `train_official.py`, which trains on the result.
"""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from worldstereo_jax.cli.arguments import parse_size
from worldstereo_jax.config import REFERENCE_POSITIONS
from worldstereo_jax.data.clip_windows import (
    Window,
    candidates,
    draw_window,
    overlapping_window,
)
from worldstereo_jax.data.posed_clips import PosedClip, find_posed_clips
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import keyframe_indices
from worldstereo_jax.geometry.scene_unit import depth_for_paths
from worldstereo_jax.geometry.sparse_depth import unit_of_points
from worldstereo_jax.geometry.splat import OFFICIAL_RADIUS_NDC
from worldstereo_jax.interop.memory_slots import read_widths, slot_widths
from worldstereo_jax.interop.official_pipeline import (
    OfficialFiles,
    load_encoders,
    official_world,
    open_official,
    open_text_cache,
)
from worldstereo_jax.sampling.official_world import (
    ENTRY_TOKENS,
    TOKEN_SIDE,
    OfficialChoices,
    OfficialParams,
    OfficialWorld,
)
from worldstereo_jax.sampling.world import Cameras, RolloutConfig
from worldstereo_jax.training.clip_cache import ClipCacheWriter
from worldstereo_jax.training.official_fields import clip_recipe, to_fields, write_texts
from worldstereo_jax.training.official_preparation import (
    PosedFrames,
    Preparation,
    make_preparation,
)

VIEWS = 7
"""Views from elsewhere in the scene; with the first frame as many as the model attends to."""
TRIES = 8
"""Windows drawn for a clip that is to overlap."""
PROCEDURAL_PROMPT = "A room with furniture, seen by a moving camera."

Source = Callable[[int], tuple[PosedFrames, PosedFrames, str]]
"""From a clip's number to the clip, the views to attend to, and the prompt."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Fill the cache."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--clips", type=Path, help="folder of posed video, a sub-folder per clip")
    kind.add_argument("--procedural", type=int, metavar="N", help="render so many scenes instead")
    parser.add_argument("--model", required=True, help="folder or hub id of the checkpoint")
    parser.add_argument("--base", help="of its base model (default: the one it names)")
    parser.add_argument("--depth-model", help="a metric Depth Anything V2, for missing depth")
    parser.add_argument("--retrieval-model", help="DINOv2-base; needed with more than 7 --views")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cache")
    parser.add_argument("--size", metavar="HxW", help="(default: the checkpoint's nearest)")
    parser.add_argument("--windows", type=int, default=1, help="clips from each video")
    parser.add_argument("--views", type=int, default=VIEWS, help="most views from elsewhere")
    parser.add_argument("--attention", choices=("dense", "correspondence"), default="dense")
    parser.add_argument(
        "--stereo", action="store_true", help="keep warped views and surface entries, too"
    )
    parser.add_argument(
        "--reference-positions", choices=REFERENCE_POSITIONS,
        help="of the model that is to be trained (default: the checkpoint's)",
    )  # fmt: skip
    parser.add_argument(
        "--overlap", type=float, nargs=2, metavar=("LOW", "HIGH"), help="see above; as shares of 1"
    )
    parser.add_argument("--camera-format", help="for folders with cameras of several formats")
    parser.add_argument("--first", type=int, default=0, help="number of the first scene")
    parser.add_argument("--seed", type=int, default=0, help="of windows, views and their damage")
    options = parser.parse_args(arguments)
    try:
        build(options)
    except InputError as error:
        parser.error(str(error))


def build(options: argparse.Namespace) -> None:
    """Fill the cache that the options ask for."""
    files = open_official(
        options.model,
        base=options.base,
        depth=options.depth_model,
        dinov2=options.retrieval_model,
    )
    if options.stereo:
        widths = {**read_widths(), **slot_widths(files.denoiser)}
        files = dataclasses.replace(files, denoiser=files.denoiser.replace(**widths))
    if options.reference_positions is not None:
        positions = files.denoiser.replace(reference_positions=options.reference_positions)
        files = dataclasses.replace(files, denoiser=positions)
    assert files.denoiser.control is not None
    stride = files.denoiser.control.mask_downsample
    frames = (files.settings.frames - 1) * stride + 1
    if min(options.windows, options.views, options.procedural or 1) < 1:
        raise InputError("--windows, --views and --procedural must be at least 1")
    if options.overlap is not None and not 0 <= options.overlap[0] <= options.overlap[1] <= 1:
        raise InputError("--overlap must be two shares of 1, the lower first")
    of_video = (options.overlap, options.camera_format)
    if options.clips is None and of_video != (None, None):
        raise InputError("--overlap and --camera-format are for --clips")
    clips = []
    if options.clips is not None:
        clips = find_posed_clips(options.clips, frames, camera_format=options.camera_format)
    size = _size(options, files, clips)
    world = _world(options, files, frames, size)
    params = load_encoders(files, progress=False)
    preparation = make_preparation(world)
    if options.clips is None:
        count, source = options.procedural, _procedural(options, frames, size)
    else:
        count, source = _posed(options, clips, preparation, params)

    encode = open_text_cache(files, options.out / "text", dtype="bfloat16", progress=False)
    write_texts(options.out, encode([""])[0], encode([files.settings.negative_prompt])[0])
    # All prompts first, one at a time: the encoder is let go before the clips are made.
    prompts = sorted({clip.prompt for clip in clips} or {PROCEDURAL_PROMPT})
    for prompt in tqdm(prompts, desc="prompts", unit="prompt"):
        encode([prompt])
    encode = open_text_cache(files, options.out / "text", dtype="bfloat16", progress=False)

    key = jax.random.key(options.seed)

    def fields(number: int) -> dict[str, np.ndarray]:
        video, views, prompt = source(number)
        text = encode([prompt])[0]
        clip = preparation.clip(params, video, views, text, jax.random.fold_in(key, number))
        return to_fields(clip, video.cameras)

    recipe = {
        **clip_recipe(
            world.denoiser,
            height=size[0],
            width=size[1],
            frames=frames,
            ray_x_offset=world.choices.quirks.ray_x_offset,
        ),
        "latent_condition": world.choices.latent_condition,
        "attention": options.attention,
        "views": options.views,
        "seed": options.seed,
        "clips": [clip.name for clip in clips] or f"procedural from {options.first}",
        "windows": options.windows,
        **({} if options.overlap is None else {"overlap": options.overlap}),
    }
    first = fields(0)
    writer = ClipCacheWriter(options.out, count, first, recipe)
    for number in tqdm(range(writer.written, count), initial=writer.written, total=count):
        writer.append(first if number == 0 else fields(number))


def _size(
    options: argparse.Namespace, files: OfficialFiles, clips: list[PosedClip]
) -> tuple[int, int]:
    if options.size is not None:
        return parse_size(options.size)
    if clips and clips[0].size is not None:
        return files.settings.size_for(*clips[0].size)
    return files.settings.sizes[0]


def _world(
    options: argparse.Namespace, files: OfficialFiles, frames: int, size: tuple[int, int]
) -> OfficialWorld:
    schedule, solver = files.schedule()
    choices = OfficialChoices(
        schedule=schedule,
        solver=solver,
        latent_condition=files.settings.latent_condition,
        attention=options.attention,
    )
    height, width = size
    tokens = files.settings.frames * height * width // TOKEN_SIDE**2
    # Half of the pixels show what no other view does.
    entries = min(1 << 20, (1 + options.views) * height * width // 2)
    config = RolloutConfig(
        frames=frames,
        height=height,
        width=width,
        references=min(8, 1 + options.views),
        keyframes=options.views,
        bank_capacity=1 + options.views,
        point_capacity=(1 + options.views) * height * width,
        # A model without modules for entries reads none.
        entry_capacity=max(1024, entries) if slot_widths(files.denoiser) else 1024,
        entry_tokens=min(ENTRY_TOKENS, tokens),
        point_radius=max(1.0, OFFICIAL_RADIUS_NDC * min(height, width) / 2),
        point_edges=choices.quirks.point_edges,
    )
    if 1 + options.views > 8 and files.dinov2 is None:
        raise InputError("--views: the choice among more than 8 views needs --retrieval-model")
    return official_world(files, config, choices)


def _procedural(options: argparse.Namespace, frames: int, size: tuple[int, int]) -> Source:
    """The revisiting clip of each scene, with views from its first clip."""
    seeds = range(options.first, options.first + options.procedural)
    scenes = SceneClips(seeds, frames=frames, height=size[0], width=size[1])
    chosen = keyframe_indices(frames, options.views)

    def source(number: int) -> tuple[PosedFrames, PosedFrames, str]:
        item = scenes[number]

        def posed(prefix: str) -> PosedFrames:
            image, depth, w2c, intrinsics = (
                jnp.asarray(item[prefix + name]) for name in ("image", "depth", "w2c", "intrinsics")
            )
            return PosedFrames(image, depth, Cameras(w2c=w2c, intrinsics=intrinsics))

        views = jax.tree.map(lambda a: a[chosen], posed(""))
        return posed("revisit_"), views, PROCEDURAL_PROMPT

    return source


def _posed(
    options: argparse.Namespace,
    clips: list[PosedClip],
    preparation: Preparation,
    params: OfficialParams,
) -> tuple[int, Source]:
    """Windows of videos, with views from the rest of each: how many, and each of them."""
    world = preparation.rollout.world
    size = (world.rollout.height, world.rollout.width)

    def frames_of(clip: PosedClip, chosen: np.ndarray, with_depth: int) -> PosedFrames:
        """Frames of a clip, the first so many with the depth that the folder has."""
        images, intrinsics = clip.frames(chosen.tolist(), size)
        depth = np.zeros(images.shape[:3], np.float32)
        known = clip.depth(chosen[:with_depth].tolist(), size)
        if known is not None:
            depth[:with_depth] = known
        elif world.depth is None:
            raise InputError(f"{clip.folder}: has no depth; add it, or give --depth-model")
        cameras = Cameras(w2c=jnp.asarray(clip.w2c[chosen]), intrinsics=jnp.asarray(intrinsics))
        return PosedFrames(jnp.asarray(images), jnp.asarray(depth), cameras)

    def first_depth(clip: PosedClip, video: PosedFrames, path: Cameras) -> jax.Array:
        """Of the video's first frame, as the folder has it, or estimated in its unit."""
        if bool((video.depth[0] > 0).any()):
            return video.depth[0]
        if world.depth is None:
            raise InputError(
                f"{clip.folder}: the first frame of a clip has no depth; give --depth-model"
            )
        depth = preparation.rollout.estimate_depth(params.depth, video.images[:1])
        w2c, lens = np.asarray(path.w2c[:1]), np.asarray(video.cameras.intrinsics[:1])
        if clip.points is not None:
            unit = unit_of_points(np.asarray(depth[0]), clip.points, w2c[0], lens[0])
            if unit is not None:
                return depth[0] * unit
        return depth_for_paths(depth, w2c, lens, [path.w2c])[0]

    def depth_of_window(window: Window) -> np.ndarray:
        clip, chosen = window.video, window.frames
        path = Cameras(
            w2c=jnp.asarray(clip.w2c[chosen]),
            intrinsics=jnp.asarray(clip.lenses(chosen.tolist(), size)),
        )
        return np.asarray(first_depth(clip, frames_of(clip, chosen[:1], 1), path))

    windows = _windows(options, clips, world, depth_of_window)

    def source(number: int) -> tuple[PosedFrames, PosedFrames, str]:
        window = windows[number]
        clip, views = window.video, window.views
        video = frames_of(clip, window.frames, 1)
        depth = first_depth(clip, video, video.cameras)
        video = dataclasses.replace(video, depth=video.depth.at[0].set(depth))
        if len(views) == 0:
            return video, jax.tree.map(lambda a: a[:0], video), clip.prompt
        return video, frames_of(clip, views, len(views)), clip.prompt

    return len(windows), source


def _windows(
    options: argparse.Namespace,
    clips: list[PosedClip],
    world: OfficialWorld,
    depth: Callable[[Window], np.ndarray],
) -> list[Window]:
    """The clips to prepare, all drawn beforehand, so that it is known how many overlap."""
    frames, spread = world.rollout.frames, world.frame_stride == 1
    numbers = range(len(clips) * options.windows)

    def draw(number: int, views: int, *attempt: int) -> Window:
        rng = np.random.default_rng((options.seed, number, *attempt))
        video = clips[number // options.windows]
        return draw_window(video, frames, views, rng, spread=spread)

    if options.overlap is None:
        return [draw(number, options.views) for number in numbers]
    found = []
    for number in tqdm(numbers, desc="overlap", unit="clip"):
        drawn = (draw(number, candidates(options.views), attempt) for attempt in range(TRIES))
        window = overlapping_window(drawn, depth, tuple(options.overlap))
        if window is not None:
            views = window.views[: options.views]
            found.append(dataclasses.replace(window, views=views))
    print(f"{len(numbers) - len(found)} of {len(numbers)} clips left out for their overlap")
    if not found:
        raise InputError("--overlap: no clip overlaps so; give another range, or longer video")
    return found


if __name__ == "__main__":
    main()
