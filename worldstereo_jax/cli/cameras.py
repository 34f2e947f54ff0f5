"""`worldstereo cameras`: what a file of cameras holds, and the same cameras in another format."""

import argparse
import dataclasses
from pathlib import Path, PurePosixPath

import numpy as np

from worldstereo_jax.cli.arguments import ArgumentParser, check_new, parse_size
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_formats import (
    FORMATS,
    UNIT_SIZE,
    PosedCameras,
    detect_format,
    inverse,
    read_cameras,
    resized,
    write_cameras,
)
from worldstereo_jax.geometry.camera_formats.posed_cameras import by_number, intrinsic_matrices

_FRAMES_PER_SECOND = 30.0


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(
        prog="worldstereo cameras",
        description=__doc__,
        epilog=_formats(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION")
    info = actions.add_parser("info", help="print what a file of cameras holds")
    _add_source(info)
    info.set_defaults(act=_info)
    what = "write the cameras of a file in another format"
    convert = actions.add_parser("convert", help=what, description=what)
    _add_source(convert)
    convert.add_argument("target", type=Path, metavar="DST", help="a new file (COLMAP: a folder)")
    writable = [name for name, known in FORMATS.items() if known.write is not None]
    convert.add_argument(
        "--to", required=True, choices=writable, metavar="NAME", help=", ".join(writable)
    )
    convert.add_argument(
        "--lens", metavar="FX,FY,CX,CY", help="in pixels of --size, of a source that has none"
    )
    convert.add_argument(
        "--frames", metavar="A:B:STEP", help="some of the cameras, counted from 0, without B"
    )
    convert.add_argument(
        "--scale", type=float, metavar="S", help="units of the result that one of the source is"
    )
    convert.add_argument(
        "--relative", action="store_true", help="in the world that is the first camera's frame"
    )
    convert.add_argument(
        "--fps",
        type=float,
        default=_FRAMES_PER_SECOND,
        metavar="X",
        help="frames a second, of a source without times (default %(default)g)",
    )
    convert.set_defaults(act=_convert)
    return parser


def run(options: argparse.Namespace) -> None:
    """Do what was chosen."""
    options.act(options)


def describe(path: Path, name: str, cameras: PosedCameras) -> str:
    """What cameras are, as lines of text."""
    places = inverse(cameras.w2c)[:, :3, 3]
    steps = np.linalg.norm(np.diff(places, axis=0), axis=-1)
    unit = "m" if cameras.metric else "units of its own"
    lines = [
        f"{path}, {name}: {FORMATS[name].line}",
        f"  cameras     {len(cameras):,}, {cameras.names[0]} to {cameras.names[-1]}",
        f"  images      {_describe_size(cameras)}",
        f"  lens        {_describe_lens(cameras)}",
        f"  way         {steps.sum():.4g} {unit}, farthest from the first "
        f"{np.linalg.norm(places - places[0], axis=-1).max():.4g}",
    ]
    if cameras.times is not None:
        lines.append(f"  times       {cameras.times[0]:.6f} to {cameras.times[-1]:.6f} s")
    if cameras.points is not None:
        lines.append(f"  points      {len(cameras.points):,}")
    return "\n".join(lines)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, metavar="SRC", help="a file (COLMAP: a folder)")
    parser.add_argument(
        "--from", dest="source_format", metavar="NAME", help="its format (default: as it looks)"
    )
    parser.add_argument(
        "--size", metavar="HxW", help="of its images, where it does not tell, such as 480x832"
    )


def _info(options: argparse.Namespace) -> None:
    name, cameras = _read(options)
    print(describe(options.source, name, cameras))


def _convert(options: argparse.Namespace) -> None:
    """Read, change, write, and say what was written."""
    check_new(options.target, "DST")
    for option, value in (("--fps", options.fps), ("--scale", options.scale)):
        if value is not None and not (np.isfinite(value) and value > 0):
            raise InputError(f"{option} must be a positive number, not {value}")
    name, cameras = _read(options)
    if options.lens is not None:
        cameras = _with_lens(cameras, options)
    if options.frames is not None:
        cameras = cameras.take(_chosen(options.frames, len(cameras)))
    if options.relative:
        cameras = _relative(cameras)
    if options.scale is not None:
        cameras = _scaled(cameras, options.scale)
    if cameras.times is None:
        cameras = dataclasses.replace(cameras, times=np.arange(len(cameras)) / options.fps)
    cameras = dataclasses.replace(cameras, names=_picture_names(cameras.names, options.to))
    needs_lens = "intrinsics" in FORMATS[options.to].needs
    if needs_lens and cameras.intrinsics is not None and cameras.size is None:
        raise InputError(
            f"{options.to} needs the size of the images, which {options.source} does not tell: "
            "give it as --size HxW"
        )
    write_cameras(options.target, cameras, options.to)
    print(f"{len(cameras):,} cameras, {name} as {options.to}")
    print(options.target)


def _read(options: argparse.Namespace) -> tuple[str, PosedCameras]:
    name = options.source_format or detect_format(options.source)
    size = None if options.size is None else parse_size(options.size)
    return name, read_cameras(options.source, name, size=size)


def _with_lens(cameras: PosedCameras, options: argparse.Namespace) -> PosedCameras:
    if cameras.intrinsics is not None:
        raise InputError(f"--lens is for a source without intrinsics; {options.source} has some")
    if options.size is None:
        raise InputError("--lens needs --size, the size of the images that it belongs to")
    try:
        values = np.array([float(word) for word in options.lens.split(",")])
    except ValueError:
        values = np.zeros(0)
    if values.shape != (4,) or not np.isfinite(values).all() or values[:2].min() <= 0:
        raise InputError(
            f"--lens is {options.lens!r}, expected FX,FY,CX,CY such as 525,525,320,240"
        )
    lens = intrinsic_matrices(*np.repeat(values[:, None], len(cameras), axis=1))
    return dataclasses.replace(cameras, intrinsics=lens, size=parse_size(options.size))


def _chosen(text: str, count: int) -> np.ndarray:
    words = text.split(":")
    try:
        parts = [int(word) if word else None for word in words]
    except ValueError:
        parts = []
    # Backwards would be undone by readers that go by names.
    if len(parts) not in (2, 3) or any(step is not None and step < 1 for step in parts[2:]):
        raise InputError(f"--frames is {text!r}, expected A:B or A:B:STEP such as 0:200:5")
    found = np.arange(count)[slice(*parts)]
    if len(found) == 0:
        raise InputError(f"--frames {text} holds none of the {count} cameras")
    return found


def _relative(cameras: PosedCameras) -> PosedCameras:
    start = cameras.w2c[0]
    points = cameras.points
    if points is not None:
        points = points @ start[:3, :3].T + start[:3, 3]
    return dataclasses.replace(cameras, w2c=cameras.w2c @ inverse(start), points=points)


def _scaled(cameras: PosedCameras, scale: float) -> PosedCameras:
    w2c = cameras.w2c.copy()
    w2c[:, :3, 3] *= scale
    points = None if cameras.points is None else cameras.points * scale
    return dataclasses.replace(cameras, w2c=w2c, points=points)


def _picture_names(names: tuple[str, ...], target: str) -> tuple[str, ...]:
    """Names as the target has them: COLMAP's begin below images/, nerfstudio's beside the file.

    Both are read in the order of names, so time stamps that are not in that order become numbers.
    """
    if target not in ("colmap", "nerfstudio"):
        return names
    # A time stamp's decimals are no suffix.
    suffixes = (PurePosixPath(name).suffix[1:] for name in names)
    if not all(suffix and not suffix.isdecimal() for suffix in suffixes):
        if (by_number(names) != np.arange(len(names))).any():
            names = tuple(f"{number:06d}" for number in range(len(names)))
        names = tuple(f"{name}.png" for name in names)
    paths = [PurePosixPath(name) for name in names]
    if target == "nerfstudio":
        return tuple(str(path if len(path.parts) > 1 else "images" / path) for path in paths)
    return tuple(
        str(path.relative_to("images") if path.parts[0] == "images" else path) for path in paths
    )


def _describe_size(cameras: PosedCameras) -> str:
    if cameras.size is None:
        return "of unknown size"
    if cameras.size == UNIT_SIZE:
        return "of any size: the lens is a share of it"
    return f"{cameras.size[0]} x {cameras.size[1]} pixels (height x width)"


def _describe_lens(cameras: PosedCameras) -> str:
    if cameras.intrinsics is None:
        return "none: a path takes the scene's"
    k = cameras.intrinsics[0]
    size = cameras.size
    text = f"focal {k[0, 0]:.4g} {k[1, 1]:.4g}, centre {k[0, 2]:.4g} {k[1, 2]:.4g}"
    if size is not None:
        share = resized(k[None], size, UNIT_SIZE)[0]
        across = (share[0, 2], 1 - share[0, 2])
        degrees = np.degrees(sum(np.arctan(part / share[0, 0]) for part in across))
        text += f", {degrees:.1f} degrees across"
    changes = (cameras.intrinsics != cameras.intrinsics[:1]).any()
    return f"{text}; it changes" if changes else text


def _formats() -> str:
    width = max(map(len, FORMATS))
    lines = (f"  {name:<{width}}  {known.line}" for name, known in FORMATS.items())
    return "\n".join(
        [
            "formats (w2c: world to camera, c2w: camera to world; centres of pixels at +0.5):",
            *lines,
            "All cameras are kept as w2c, OpenCV axes, pixels. Lenses with distortion are refused.",
        ]
    )
