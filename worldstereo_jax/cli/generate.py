"""`worldstereo generate`: an image or scene and a camera path in, a clip with its memory out."""

import argparse
import dataclasses
import time
from pathlib import Path

import jax

from worldstereo_jax.cli.arguments import ArgumentParser, count, seed
from worldstereo_jax.cli.camera_paths import (
    CameraChoice,
    Job,
    add_path_options,
    cameras_of,
    plan_jobs,
    units_of,
)
from worldstereo_jax.cli.console import Stages
from worldstereo_jax.cli.generate_official import run_official
from worldstereo_jax.cli.memory_input import begin_memory, read_memory, roomy, with_room
from worldstereo_jax.cli.official_options import add_official_options, refuse_official_options
from worldstereo_jax.cli.outputs import (
    KEYFRAMES_PER_SECOND,
    check_output_folder,
    memory_counts,
    params_hash,
    results_folder,
    write_agreement,
    write_clip,
    write_memory,
    write_run,
)
from worldstereo_jax.cli.process import aside
from worldstereo_jax.cli.recorded_path import begun_by
from worldstereo_jax.cli.scene_input import (
    AnyScene,
    image_size,
    read_scene_depth,
    read_working_scene,
)
from worldstereo_jax.data.video_io import FRAMES_PER_SECOND
from worldstereo_jax.errors import InputError, unknown_name
from worldstereo_jax.geometry.trajectories import path_names
from worldstereo_jax.interop.shipped import SHIPPED, load_world
from worldstereo_jax.sampling.compiled import compile_rollout
from worldstereo_jax.sampling.world import Cameras, RolloutConfig


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="worldstereo generate", description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "scene",
        type=Path,
        metavar="SCENE_OR_IMAGE",
        help="an image; a folder with image.png, prompt.json, and camera.json or renders/traj_*/; "
        "or a panorama's folder with pano_bank/ and <view>/<trajectory>/",
    )
    parser.add_argument(
        "--camera",
        metavar="FILE|PRESET",
        help=f"one of {', '.join(path_names())}; or a camera.json in the scene's world; or a path "
        "recorded elsewhere, which starts at the scene's first view: a COLMAP model's folder, "
        "transforms.json of nerfstudio, RealEstate10K, TUM, KITTI (see worldstereo cameras "
        "--help). Of more cameras than a clip has frames evenly chosen ones are taken, through "
        "fewer a spline is laid. Default: the scene's own path",
    )
    add_path_options(parser)
    parser.add_argument(
        "--trajectory",
        action="append",
        default=[],
        metavar="VIEW/NAME",
        help="of a folder with several paths, make only this one; may be given several times",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results go here")
    parser.add_argument("--preset", default="tiny", help="model preset (default tiny)")
    add_official_options(parser)
    parser.add_argument(
        "--depth",
        type=Path,
        metavar="FILE",
        help="depth of the image: .npy or .npz in metres, or 16-bit PNG in millimetres; "
        "estimated when not given",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="of the noise (default 0)"
    )
    parser.add_argument(
        "--steps", type=count, metavar="N", help="denoising steps (default: the preset's)"
    )
    parser.add_argument(
        "--memory",
        type=Path,
        metavar="DIR",
        help="continue in the world of an earlier run: its memory/ folder",
    )
    parser.add_argument(
        "--fps",
        type=count,
        metavar="N",
        help=f"frames per second of the videos (default: {KEYFRAMES_PER_SECOND} of keyframes, "
        f"{FRAMES_PER_SECOND} of an official model's clips of every frame)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the results in --out")
    return parser


def run(options: argparse.Namespace) -> None:
    """Read, generate and write; nothing appears under --out before everything is done."""
    if options.model is not None:
        run_official(options)
        return
    refuse_official_options(options)
    started = time.perf_counter()
    # What can be wrong is found out in order of cost, all of it before anything is computed.
    check_output_folder(options.out, overwrite=options.overwrite)
    if options.preset not in SHIPPED:
        raise InputError(unknown_name("preset with weights", options.preset, SHIPPED))
    if options.depth is not None and options.memory is not None:
        raise InputError("--depth belongs to a new scene; the memory of --memory has its depth")
    scene, own_size = read_working_scene(options.scene)
    height, width = image_size(scene)
    config = dataclasses.replace(RolloutConfig(), height=height, width=width)
    if options.steps is not None:
        config = dataclasses.replace(config, steps=options.steps)
    choice = CameraChoice.of(options)
    jobs = plan_jobs(scene, own_size, config.frames, choice, options.trajectory)
    scene = begun_by(scene, jobs[0].path)
    depth = None
    if options.depth is not None:
        depth = read_scene_depth(options.depth, scene, own_size)
    memory = None
    if options.memory is not None:
        memory = read_memory(options.memory, options.preset, scene)
    config = roomy(config, scene, memory, len(jobs))
    world, params = load_world(options.preset, rollout=config)
    reading = round(time.perf_counter() - started, 3)

    key = jax.random.key(options.seed)

    def tell(step: int) -> None:
        stages.note(f" step {step + 1} of {config.steps}")

    with (
        Stages(3 * len(jobs) + 2) as stages,
        results_folder(options.out, overwrite=options.overwrite) as folder,
    ):
        stages.seconds["reading and loading"] = reading
        with stages.stage("beginning the memory"), aside() as thread:
            on_step = tell if config.steps > 1 else None
            compiling = thread.submit(compile_rollout, world, params, on_step=on_step)
            if memory is None:
                memory = begin_memory(
                    world,
                    params,
                    scene,
                    depth,
                    [job.path for job in jobs if isinstance(job.path, Cameras)],
                )
            memory = jax.block_until_ready(with_room(memory, config))
            stages.note(" compiling")
            rollout = compiling.result()
        difference: dict[str, float | None] = {}
        for number, job in enumerate(jobs):
            with stages.stage(f"making {job.name or 'the clip'}"):
                told = memory.entries
                clip, memory = jax.block_until_ready(
                    rollout(
                        params,
                        memory,
                        cameras_of(job, memory, config.frames),
                        jax.random.fold_in(key, number),
                    )
                )
            with stages.stage("writing the clip"):
                write_clip(
                    folder / job.name,
                    clip,
                    _title(scene, job),
                    frames_per_second=options.fps or KEYFRAMES_PER_SECOND,
                )
            with stages.stage("comparing it with the memory"):
                difference[job.name] = write_agreement(folder / job.name, clip, told)
        with stages.stage("writing the memory"):
            write_memory(folder, memory, world.name)
        write_run(
            folder,
            "generate",
            {
                "arguments": vars(options),
                "seed": options.seed,
                "model": {"preset": world.name, "sha256": params_hash(params)},
                "rollout": dataclasses.asdict(config),
                "clips": [job.name for job in jobs],
                "units of the recorded path": units_of(jobs, memory),
                "difference from the memory": difference,
                "seconds": stages.seconds,
                "memory": memory_counts(memory),
            },
        )
    for job in jobs:
        print(options.out / job.name / "contact_sheet.png")


def _title(scene: AnyScene, job: Job) -> str:
    return ": ".join(text for text in (scene.name, job.name, job.prompt) if text)
