"""The options that an official model adds to a command, and the parameters that they choose."""

import argparse
from collections.abc import Callable
from pathlib import Path

from jax.sharding import Mesh

from worldstereo_jax.cli.arguments import count
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.official_pipeline import ModelFiles, load_official
from worldstereo_jax.sampling.official_world import OfficialParams

_TEXTS = ("--prompt", "--negative-prompt", "--text-cache")


def add_official_options(parser: argparse.ArgumentParser) -> None:
    """Add them as a group of their own; all are None when they are not given."""
    group = parser.add_argument_group("official models")
    add = group.add_argument
    add("--model", metavar="FOLDER_OR_ID", help="a WorldStereo checkpoint, instead of a preset")
    add("--base", metavar="FOLDER_OR_ID", help="its base model (default: the one it names)")
    add(
        "--depth-model",
        metavar="FOLDER_OR_ID",
        help="a metric Depth Anything V2; without it depth is what --depth and the memory know",
    )
    add(
        "--retrieval-model",
        metavar="FOLDER_OR_ID",
        help="DINOv2-base, for the official retrieval among more views than are attended to",
    )
    add(
        "--retrieval",
        choices=("official", "coverage"),
        help="views attended to: by overlapping frusta (default), or by the surface they show",
    )
    add(
        "--attention",
        choices=("dense", "correspondence"),
        help="to all of those views (default), or masked by geometry",
    )
    add_guidance_options(add)
    add("--prompt", metavar="TEXT", help="instead of the scene's own, which a bare image lacks")
    add("--negative-prompt", metavar="TEXT", help="instead of the checkpoint's own")
    add(
        "--renders",
        choices=("files", "memory"),
        help="point renders of a scene's own paths: their render.mp4 (default), or drawn anew",
    )
    add(
        "--quirks",
        choices=("official", "mended"),
        help="slips of the official code that the weights were trained with, or their corrections "
        "(default official)",
    )
    add("--size", metavar="HxW", help="instead of the checkpoint's nearest, for instance 480x832")
    add("--clips", type=Path, metavar="DIR", help="keep clips here as they finish, and go on here")
    add_machine_options(add)


def add_guidance_options(add: Callable[..., object]) -> None:
    """Add what guidance takes; all are None when they are not given."""
    add(
        "--cfg",
        choices=("batched", "two-pass"),
        help="guidance in one evaluation of twice the batch (default) or in two; distilled models "
        "take none",
    )
    add("--guidance-scale", type=float, metavar="X", help="of the guidance (default 5)")


def add_machine_options(add: Callable[..., object]) -> None:
    """Add how a large model is fitted to the machine; all are None when they are not given."""
    add("--dtype", choices=("bfloat16", "float32"), help="of the model (default bfloat16)")
    add(
        "--weights",
        choices=("int8", "float8"),
        help="keep the model's matrices in 8 bits (needs the quantise extra)",
    )
    add(
        "--text-cache", type=Path, metavar="DIR",
        help="keep text states here, and look here first; prompts found need no text encoder",
    )  # fmt: skip
    add("--lora", type=Path, metavar="FILE", help="a low-rank adapter to merge")
    add("--lora-scale", type=float, metavar="X", help="its strength (default 1)")
    add("--vae-tile", type=count, metavar="N", help="VAE in tiles of N latent pixels (official 32)")
    add("--devices", type=count, metavar="N", help="split the model over N devices (default 1)")


def load_chosen(
    files: ModelFiles, options: argparse.Namespace, dtype: str, mesh: Mesh | None
) -> OfficialParams:
    """`load_official` as the options of `add_machine_options` ask."""
    return load_official(
        files,
        dtype=dtype,
        weights=options.weights,
        mesh=mesh,
        lora=options.lora,
        lora_scale=1.0 if options.lora_scale is None else options.lora_scale,
    )


def refuse_official_options(options: argparse.Namespace) -> None:
    """Refuse these options where no official model is chosen.

    Raises:
        InputError: naming the first one that was given.
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_official_options(parser)
    for name in vars(parser.parse_args([])):
        if getattr(options, name) is not None:
            option = f"--{name.replace('_', '-')}"
            why = "; the small model reads no text" if option in _TEXTS else ""
            raise InputError(f"{option} is for an official model (--model){why}")
