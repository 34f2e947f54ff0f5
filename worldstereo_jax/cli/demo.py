"""`worldstereo demo`: two clips through one memory, and what the memory gained.

A room the model has never seen is made on the spot, with ground truth. The first clip starts from
one image and its depth; the second takes another path past what the first one showed. It is made
three times by the same parameters: with both memories, with the global one alone, with none.
"""

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.cli.console import Stages
from worldstereo_jax.cli.outputs import (
    params_hash,
    require_empty,
    write_clip,
    write_memory,
    write_run,
)
from worldstereo_jax.data.images import write_uint8_image
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.comparison_sheet import comparison_sheet
from worldstereo_jax.evaluation.memory_gain import (
    BOTH,
    VARIANTS,
    clip_with,
    frame_metrics,
    revisit_metrics,
)
from worldstereo_jax.files import atomic_folder
from worldstereo_jax.interop.shipped import load_world
from worldstereo_jax.sampling.world import Cameras, init_memory


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="worldstereo demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("out/demo"), metavar="DIR")
    parser.add_argument("--scene", type=int, default=1, help="number of the held-out room")
    parser.add_argument("--seed", type=int, default=0, help="seed of the noise")
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    return parser


def run(options: argparse.Namespace) -> None:
    """Make the room and the clips, write everything, print the gain."""
    require_empty(options.out, options.overwrite)
    if options.scene < 0:
        raise InputError(f"--scene must be 0 or more, not {options.scene}")
    stages = Stages(4 + len(VARIANTS))
    with stages.stage("loading the model"):
        world, params = load_world("tiny")
    rollout = world.rollout
    with stages.stage("making a room"):
        source = SceneClips(
            range(options.scene, options.scene + 1),
            split="held_out",
            frames=rollout.frames,
            height=rollout.height,
            width=rollout.width,
        )
        scene = {k: jnp.asarray(v) for k, v in source[0].items()}
    first = Cameras(w2c=scene["w2c"], intrinsics=scene["intrinsics"])
    second = Cameras(w2c=scene["revisit_w2c"], intrinsics=scene["revisit_intrinsics"])
    memory = init_memory(
        rollout, scene["image"][0], scene["depth"][0], scene["w2c"][0], scene["intrinsics"][0]
    )
    first_key, second_key = jax.random.split(jax.random.key(options.seed))
    with stages.stage("first clip (compiling)"):
        first_clip, memory = clip_with(BOTH, world, params, memory, first, first_key)
        jax.block_until_ready(first_clip)
    clips, after, rows = {}, {}, []
    for variant in VARIANTS:
        with stages.stage(f"second clip, {variant}"):
            clips[variant], after[variant] = clip_with(
                variant, world, params, memory, second, second_key
            )
            video = clips[variant].video
            gain = revisit_metrics(scene, video, first_clip.video)
            rows.append((variant, gain, frame_metrics(video, scene["revisit_image"])))
    with stages.stage("writing"), atomic_folder(options.out) as folder:
        for name, clip in (("first", first_clip), ("revisit", clips[BOTH])):
            (folder / name).mkdir()
            write_clip(folder / name, clip, f"{name} clip")
        write_memory(folder, after[BOTH], world.name)
        videos = {"ground truth": scene["revisit_image"]}
        videos |= {variant: clip.video for variant, clip in clips.items()}
        sheet = comparison_sheet({k: np.asarray(v) for k, v in videos.items()})
        write_uint8_image(folder / "comparison.png", sheet)
        write_run(
            folder,
            {
                "scene": options.scene,
                "seed": options.seed,
                "model": {"preset": world.name, "sha256": params_hash(params)},
                "seconds": stages.seconds,
                "gain": {name: {**gain, **frame} for name, gain, frame in rows},
            },
        )
    stages.close()
    print_gain(rows)
    print(f"\n{options.out}/comparison.png shows it; clips, memory/ and points.ply lie beside.")


def print_gain(rows: list[tuple[str, dict[str, float], dict[str, float]]]) -> None:
    """A table of the second clip's figures per variant."""
    print("\nThe second clip passes again over what the first one showed. PSNR in dB,")
    print("over revisited pixels to the first clip and to the truth, and over whole frames:\n")
    print(f"{'':<20}{'to first clip':>15}{'to truth':>12}{'whole frame':>14}{'SSIM':>9}")
    for variant, gain, frame in rows:
        print(
            f"{variant:<20}{gain['PSNR dB to first clip']:>15.2f}{gain['PSNR dB to truth']:>12.2f}"
            f"{frame['PSNR dB']:>14.2f}{frame['SSIM']:>9.3f}"
        )
    (_, full, _), (_, none, _) = rows[0], rows[-1]
    gained = full["PSNR dB to first clip"] - none["PSNR dB to first clip"]
    print(f"\nThe memories gained {gained:.1f} dB of consistency with the first clip.")
