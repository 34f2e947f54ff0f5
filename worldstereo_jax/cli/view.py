"""`worldstereo view`: a memory in the browser, and camera paths built by walking through it."""

import argparse
import contextlib
import importlib
import io
import socket
import threading
import typing
from collections.abc import Iterator
from pathlib import Path

from worldstereo_jax.array_types import Float, ndarray
from worldstereo_jax.cli.arguments import ArgumentParser
from worldstereo_jax.cli.memory_input import A_MEMORY, open_memory
from worldstereo_jax.cli.outputs import RUN_FILE
from worldstereo_jax.cli.run_record import read_record, rollout_of_run
from worldstereo_jax.cli.viewer_memory import MemoryScene, Viewed
from worldstereo_jax.cli.viewer_path import PathBuilder
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import read_camera_json

PORT = 8080
_PATH_FILE = Path("path.json")


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = ArgumentParser(prog="worldstereo view", description=__doc__, allow_abbrev=False)
    parser.add_argument("folder", **A_MEMORY)
    parser.add_argument(
        "--port",
        type=_port,
        default=PORT,
        metavar="P",
        help="where the browser finds it; the next free one is taken (default %(default)s)",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        metavar="H",
        help="address to listen at; 0.0.0.0 lets other machines in (default: this machine alone)",
    )
    return parser


def run(options: argparse.Namespace) -> None:
    """Serve until Ctrl-C."""
    viser = _viser()
    _check_address(options.host)
    viewed = read_viewed(options.folder)
    with serving(viser, viewed, options.host, options.port) as (server, _, _):
        address = f"http://{server.get_host()}:{server.get_port()}"
        print(f"{viewed.folder} is at {address} (Ctrl-C ends it)", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            _wait()


def read_viewed(folder: Path) -> Viewed:
    """What there is to see in a memory folder or a run's results.

    Raises:
        InputError: when there is no memory, or it holds no views.
    """
    found, _, memory = open_memory(folder)
    if int(memory.stereo.count) == 0:
        raise InputError(f"{found} holds no views, so there is nothing to see")
    scene = read_record(found).get("arguments", {}).get("scene")
    return Viewed(
        folder=found,
        memory=memory,
        frames=rollout_of_run(found).frames,
        clip=_last_clip(found),
        scene=scene if isinstance(scene, str) else None,
    )


@contextlib.contextmanager
def serving(
    viser: typing.Any, viewed: Viewed, host: str, port: int
) -> Iterator[tuple[typing.Any, MemoryScene, PathBuilder]]:
    """A viser server with the memory and the path builder, stopped when the block is left.

    Args:
        viser: the library.
        viewed: what it shows.
        host, port: where it listens; the next free port is taken.
    """
    # It announces itself in a box of its own, and its end as well.
    with contextlib.redirect_stdout(io.StringIO()):
        server = viser.ViserServer(host=host, port=port, label="WorldStereo", verbose=False)
    try:
        scene = MemoryScene(server, viewed)
        builder = PathBuilder(server, viewed, scene, _PATH_FILE)
        try:
            yield server, scene, builder
        finally:
            builder.close()
    finally:
        with contextlib.redirect_stdout(io.StringIO()):
            server.stop()


def _viser() -> typing.Any:
    try:
        return importlib.import_module("viser")
    except ImportError as error:
        raise InputError('the library viser is missing: pip install -e ".[view]"') from error


def _last_clip(memory: Path) -> Float[ndarray, "f 4 4"] | None:
    """The cameras of the last clip of the run that wrote a memory, if its results are there."""
    results = memory.resolve().parent
    if not (results / RUN_FILE).is_file():
        return None
    clips = read_record(memory).get("clips")
    if isinstance(clips, list) and clips:
        files = [results / str(clips[-1]) / "cameras.json"]
    else:
        # The demo's clips have names of their own.
        files = sorted(results.glob("*/cameras.json"), key=lambda file: file.stat().st_mtime)
    files = [file for file in files if file.is_file()]
    return read_camera_json(files[-1])[0] if files else None


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"expected a port from 0 to 65535, not {text!r}")
    return int(text)


def _check_address(host: str) -> None:
    """Refuse an address that is not this machine's: viser would try its ports for ever."""
    try:
        socket.create_server((host, 0)).close()
    except (OSError, UnicodeError) as error:
        raise InputError(f"--host {host} is no address of this machine: {error}") from error


def _wait() -> None:
    """Until the process is interrupted or ended."""
    threading.Event().wait()
