"""`worldstereo demo`: two clips through one memory, and what the memory gained.

A room the model has never seen is made on the spot, with ground truth. The first clip starts from
one image and its depth; the second takes another path past what the first one showed. It is made
three times by the same parameters: with both memories, with the global one alone, with none.
"""

import argparse
import time
from collections.abc import Mapping
from pathlib import Path

import jax
import numpy as np

from worldstereo_jax.cli.arguments import ArgumentParser, seed
from worldstereo_jax.cli.console import Stages
from worldstereo_jax.cli.outputs import (
    check_output_folder,
    params_hash,
    results_folder,
    write_clip,
    write_memory,
    write_run,
)
from worldstereo_jax.cli.process import aside
from worldstereo_jax.data.images import write_uint8_image
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.evaluation.comparison_sheet import comparison_sheet
from worldstereo_jax.evaluation.memory_gain import (
    BOTH,
    TO_FIRST,
    TO_TRUTH,
    VARIANTS,
    frame_metrics,
    revisit_metrics,
    told_as,
)
from worldstereo_jax.interop.shipped import load_world
from worldstereo_jax.sampling.compiled import compile_rollout
from worldstereo_jax.sampling.rollout import Clip
from worldstereo_jax.sampling.world import Cameras, RolloutConfig, init_memory

TRUTH = "ground truth"


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(
        prog="worldstereo demo", description=(__doc__ or "").split(": ", 1)[1], allow_abbrev=False
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo"),
        metavar="DIR",
        help="results go here (default out/demo)",
    )
    parser.add_argument("--scene", type=seed, default=1, help="number of the room (default 1)")
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of the noise (default 0)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    return parser


def run(options: argparse.Namespace) -> None:
    """Make the room and the clips, write everything, print the gain."""
    started = time.perf_counter()
    check_output_folder(options.out, overwrite=options.overwrite)
    world, params = load_world("tiny")
    loading = round(time.perf_counter() - started, 3)

    with Stages(3 + len(VARIANTS)) as stages:
        stages.seconds["loading the model"] = loading
        with stages.stage("making a room"), aside() as thread:
            compiling = thread.submit(compile_rollout, world, params)
            scene = make_room(options.scene, world.rollout)
            first_key, second_key = jax.random.split(jax.random.key(options.seed))
            memory = init_memory(
                world.rollout,
                scene["image"][0],
                scene["depth"][0],
                scene["w2c"][0],
                scene["intrinsics"][0],
            )
            stages.note(" compiling")
            rollout = compiling.result()
        with stages.stage("first clip"):
            path = Cameras(w2c=scene["w2c"], intrinsics=scene["intrinsics"])
            first, memory = jax.block_until_ready(rollout(params, memory, path, first_key))
        path = Cameras(w2c=scene["revisit_w2c"], intrinsics=scene["revisit_intrinsics"])
        conditions, guidance = rollout.gather(params, memory, path)
        clips, gain = {}, {}
        for variant in VARIANTS:
            with stages.stage(f"second clip, {variant}"):
                gathered = told_as(variant, conditions), guidance
                clip = rollout.clip(params, gathered, path, second_key)
                clips[variant] = clip
                gain[variant] = {
                    **revisit_metrics(scene, clip.video, first.video),
                    **frame_metrics(clip.video, scene["revisit_image"]),
                }
        with (
            stages.stage("writing"),
            results_folder(options.out, overwrite=options.overwrite) as folder,
        ):
            write_clip(folder / "first", first, "The first clip, from one image and its depth")
            write_clip(folder / "revisit", clips[BOTH], "The second clip, with both memories")
            write_memory(folder, rollout.remember(memory, clips[BOTH]), world.name)
            write_uint8_image(folder / "comparison.png", compare(scene, clips))
            write_run(
                folder,
                "demo",
                {
                    "arguments": vars(options),
                    "seed": options.seed,
                    "model": {"preset": world.name, "sha256": params_hash(params)},
                    "seconds": stages.seconds,
                    "gain": gain,
                },
            )
    print(gain_table(gain))
    print(f"\n{options.out / 'comparison.png'} shows it.")


def make_room(number: int, config: RolloutConfig) -> dict[str, jax.Array]:
    """Two clips of a room from photographs that training never saw, as `SceneClips` gives them."""
    # Put on the device as they are: `jnp.asarray` would compile a program for every shape.
    rooms = SceneClips(
        range(number, number + 1),
        split="held_out",
        frames=config.frames,
        height=config.height,
        width=config.width,
    )
    return jax.device_put({name: value for name, value in rooms[0].items() if name != "seed"})


def compare(scene: Mapping[str, jax.Array], clips: Mapping[str, Clip]) -> np.ndarray:
    """The second clip of every variant below the truth, and the errors."""
    videos = {TRUTH: scene["revisit_image"]}
    videos |= {variant: clip.video for variant, clip in clips.items()}
    title = "The second clip passes again over what the first one showed"
    return comparison_sheet(videos, reference=TRUTH, title=title)


def gain_table(gain: Mapping[str, Mapping[str, float]]) -> str:
    """The second clip's figures for each variant, as text."""
    lines = [
        "The second clip passes again over what the first one showed. PSNR in dB: over revisited",
        "pixels to the first clip and to the truth, and over whole frames to the truth; SSIM.",
        "",
        f"{'':<20}{'to first clip':>15}{'to truth':>12}{'whole frame':>14}{'SSIM':>9}",
    ]
    lines += [
        f"{variant:<20}{row[TO_FIRST]:>15.2f}{row[TO_TRUTH]:>12.2f}"
        f"{row['PSNR dB']:>14.2f}{row['SSIM']:>9.3f}"
        for variant, row in gain.items()
    ]
    full, *_, none = (row[TO_FIRST] for row in gain.values())
    lines += ["", f"The memories gained {full - none:.1f} dB of consistency with the first clip."]
    return "\n".join(lines)
