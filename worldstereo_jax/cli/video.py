"""`worldstereo video`: a prompt, and for some models an image, in; a video by plain Wan 2.1 out.

Without memory and camera path: for those see `worldstereo generate`. Steps, guidance, solver and
schedule are those of diffusers' WanPipeline and WanImageToVideoPipeline.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.array_types import Float
from worldstereo_jax.cli.arguments import ArgumentParser, count, parse_size, seed
from worldstereo_jax.cli.console import Stages
from worldstereo_jax.cli.content import content_hash
from worldstereo_jax.cli.device_room import check_model_room, model_mesh
from worldstereo_jax.cli.official_options import (
    add_guidance_options,
    add_machine_options,
    load_chosen,
)
from worldstereo_jax.cli.outputs import check_output_folder, results_folder, write_run
from worldstereo_jax.data.images import read_image, resize_image
from worldstereo_jax.data.video_io import FRAMES_PER_SECOND, write_video
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.identity import model_identity
from worldstereo_jax.interop.official_pipeline import text_states
from worldstereo_jax.interop.video_pipeline import (
    VIDEO_FRAMES,
    VIDEO_SCALE,
    VIDEO_SIZE,
    VIDEO_STEPS,
    VideoFiles,
    open_video,
    video_world,
)
from worldstereo_jax.sampling.guided_loop import LoopChoices
from worldstereo_jax.sampling.official_world import TOKEN_SIDE, Prompt
from worldstereo_jax.sampling.plain_video import VideoWorld, make_video_sampler


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="worldstereo video", description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add(
        "--model",
        required=True,
        metavar="FOLDER_OR_ID",
        help="a Wan 2.1 model in the layout of diffusers, such as Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
    )
    add(
        "--base",
        metavar="FOLDER_OR_ID",
        help="where VAE, encoders, tokenizer and scheduler lie (default: in --model)",
    )
    add("--prompt", required=True, metavar="TEXT", help="what is to be seen")
    add(
        "--image",
        type=Path,
        metavar="FILE",
        help="the first frame, for an image-to-video model; resized without a cut",
    )
    add("--out", type=Path, required=True, metavar="DIR", help="video.mp4 and run.json go here")
    add("--negative-prompt", metavar="TEXT", default="", help="for guidance (default: none)")
    add_guidance_options(add)
    add("--steps", type=count, default=VIDEO_STEPS, metavar="N", help="default %(default)s")
    add("--shift", type=float, metavar="X", help="flow shift (default: of the model's scheduler)")
    add("--seed", type=seed, default=0, metavar="N", help="of the noise (default 0)")
    add(
        "--size",
        metavar="HxW",
        help=f"multiples of {TOKEN_SIDE} (default {VIDEO_SIZE[0]}x{VIDEO_SIZE[1]}; with --image "
        "of that area, in its proportions)",
    )
    add(
        "--frames",
        type=count,
        default=VIDEO_FRAMES,
        metavar="N",
        help="1 + a multiple of 4 (default %(default)s)",
    )
    add("--fps", type=count, default=FRAMES_PER_SECOND, metavar="N", help="default %(default)s")
    add_machine_options(add)
    add("--overwrite", action="store_true", help="replace the results in --out")
    return parser


def run(options: argparse.Namespace) -> None:
    """Read, generate and write; nothing appears under --out before everything is done."""
    started = time.perf_counter()
    check_output_folder(options.out, overwrite=options.overwrite)
    if options.lora_scale is not None and options.lora is None:
        raise InputError("--lora-scale is for --lora")
    if not options.prompt.strip():
        raise InputError("--prompt is empty; say what is to be seen")
    picture = None if options.image is None else read_image(options.image)
    files = open_video(options.model, base=options.base)
    mesh = model_mesh(options.devices)
    dtype = options.dtype or "bfloat16"
    world = video_world(
        files,
        _choices(files, options),
        frames=options.frames,
        size=_size(options.size, picture),
        dtype=dtype,
        vae_tile=options.vae_tile,
        weights=options.weights,
        mesh=mesh,
    )
    if world.weights is not None:
        # Says so at once when qwix is not there.
        _ = world.transformer
    image = _first_frame(world, picture)
    texts = [options.prompt, options.negative_prompt]
    check_model_room(
        files, texts, dtype=dtype, weights=options.weights, mesh=mesh,
        text_cache=options.text_cache, beside={},
    )  # fmt: skip
    with (
        Stages(4) as stages,
        results_folder(options.out, overwrite=options.overwrite) as folder,
    ):
        stages.seconds["reading"] = round(time.perf_counter() - started, 3)
        with stages.stage("encoding the prompts"):
            states = text_states(files, texts, dtype=dtype, cache=options.text_cache, mesh=mesh)
        with stages.stage("loading the model"):
            params = load_chosen(files, options, dtype, mesh)

        def tell(step: int) -> None:
            stages.note(f" step {step + 1} of {options.steps}")

        sampler = make_video_sampler(world, on_step=tell)
        with stages.stage("making the video"):
            prompt, key = Prompt(text=states[0], negative=states[1]), jax.random.key(options.seed)
            video = np.asarray(sampler(params, prompt, key, image))
        with stages.stage("writing the video"):
            write_video(folder / "video.mp4", video, frames_per_second=options.fps)
        write_run(folder, "video", _record(files, world, options, stages.seconds))
    print(options.out / "video.mp4")


def _choices(files: VideoFiles, options: argparse.Namespace) -> LoopChoices:
    scheduler = files.scheduler
    if options.shift is not None:
        scheduler = scheduler._replace(shift=options.shift)
    scale = VIDEO_SCALE if options.guidance_scale is None else options.guidance_scale
    guidance = options.cfg or "batched"
    # As in diffusers: at a scale of 1 or less there is nothing to guide by.
    if scale <= 1:
        if options.cfg is not None:
            raise InputError(f"--cfg has no use with --guidance-scale {scale:g}, which guides not")
        guidance = "none"
    return LoopChoices(
        schedule=scheduler.schedule(options.steps),
        solver=scheduler.solver,
        guidance=guidance,
        guidance_scale=scale,
    )


def _size(asked: str | None, picture: Float[np.ndarray, "h w 3"] | None) -> tuple[int, int]:
    """Height and width of the video."""
    if asked is not None:
        return parse_size(asked)
    if picture is None:
        return VIDEO_SIZE
    # As Wan's own examples choose it: the usual area, in the picture's proportions.
    area, ratio = VIDEO_SIZE[0] * VIDEO_SIZE[1], picture.shape[0] / picture.shape[1]
    sides = (round((area * ratio) ** 0.5), round((area / ratio) ** 0.5))
    height, width = (max(1, side // TOKEN_SIDE) * TOKEN_SIDE for side in sides)
    return height, width


def _first_frame(
    world: VideoWorld, picture: Float[np.ndarray, "h w 3"] | None
) -> Float[jax.Array, "rows columns 3"] | None:
    """The picture at the video's size."""
    if picture is None:
        if world.takes_image:
            raise InputError(f"{world.name} is an image-to-video model: give the first --image")
        return None
    if not world.takes_image:
        raise InputError(f"{world.name} is a text-to-video model, which takes no --image")
    return jnp.asarray(resize_image(picture, (world.height, world.width)))


def _record(
    files: VideoFiles, world: VideoWorld, options: argparse.Namespace, seconds: dict[str, float]
) -> dict[str, object]:
    choices = world.choices
    return {
        "arguments": vars(options),
        "seed": options.seed,
        "model": {
            "checkpoint": str(files.model),
            "base": str(files.base),
            "lora": str(options.lora),
            "lora_scale": options.lora_scale,
            "weights": options.weights,
            "config": world.denoiser.to_dict(),
        },
        "size": [world.height, world.width],
        "frames": world.frames,
        "choices": {
            **{
                field.name: getattr(choices, field.name)
                for field in dataclasses.fields(choices)
                if field.name != "schedule"
            },
            "timesteps": choices.schedule.timesteps.tolist(),
        },
        "prompt": options.prompt,
        "negative prompt": options.negative_prompt,
        "image content": content_hash(options.image),
        "checkpoint content": _identity(files),
        "adapter content": content_hash(options.lora),
        "clips": [""],
        "seconds": seconds,
    }


def _identity(files: VideoFiles) -> str:
    """Names the content of the transformer."""
    inside = Path(files.model) / "transformer"
    return model_identity(inside if inside.is_dir() else files.model)
