"""`worldstereo memory preview`: what a memory already shows along a path, before a clip is made."""

import argparse
from pathlib import Path

from worldstereo_jax.cli.arguments import check_new, count
from worldstereo_jax.cli.camera_paths import CameraChoice, add_path_options, path_through_memory
from worldstereo_jax.cli.console import Stages
from worldstereo_jax.cli.memory_input import A_MEMORY, open_memory
from worldstereo_jax.cli.run_record import rollout_of_run
from worldstereo_jax.data.images import write_uint8_image
from worldstereo_jax.errors import InputError
from worldstereo_jax.evaluation.path_preview import frame_figures, preview_path
from worldstereo_jax.evaluation.preview_sheet import preview_sheet, preview_summary, preview_table
from worldstereo_jax.geometry.trajectories import path_names


def add_preview(actions) -> None:
    """Add the command to the subparsers of `worldstereo memory`."""
    what = "show how much of a camera path the memory already knows, before a clip is made of it"
    parser = actions.add_parser("preview", help=what, description=what)
    parser.add_argument("folder", **A_MEMORY)
    parser.add_argument(
        "--camera",
        required=True,
        metavar="FILE|PRESET",
        help=f"one of {', '.join(path_names())}; a camera.json in the world of the memory; or a "
        "path recorded elsewhere, as `worldstereo generate` takes them",
    )
    add_path_options(parser)
    parser.add_argument(
        "--frames",
        type=count,
        metavar="N",
        help="of the path (default: as many as the clips of the run had)",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="a new .png file")
    parser.set_defaults(act=_preview)


def _preview(options: argparse.Namespace) -> None:
    """Print the figures, draw the sheet."""
    check_new(options.out, "--out", suffix=".png")
    folder, _, memory = open_memory(options.folder)
    if int(memory.stereo.count) == 0:
        raise InputError(f"{folder} holds no views, so nothing can be told of a path")
    frames = options.frames or rollout_of_run(folder).frames
    cameras = path_through_memory(memory, CameraChoice.of(options), frames)
    with Stages(1) as stages, stages.stage("looking along the path"):
        preview = preview_path(
            memory, cameras, on_frame=lambda i: stages.note(f" frame {i + 1} of {frames}")
        )
    figures = frame_figures(preview)
    summary = preview_summary(figures)
    amplitude = "" if options.amplitude is None else f", amplitude {options.amplitude:g}"
    title = f"{options.folder}, {options.camera}{amplitude}. {summary}"
    write_uint8_image(options.out, preview_sheet(preview, figures, title=title))
    print(preview_table(figures))
    print(f"\n{summary}")
    print(options.out)
