"""Entry point of the `worldstereo` command."""

import contextlib
import importlib
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator
from typing import NoReturn

import worldstereo_jax
from worldstereo_jax.cli.arguments import ArgumentParser
from worldstereo_jax.errors import InputError, nearest_hint
from worldstereo_jax.files import REFUSALS

# name -> (module, one line). A module is imported only when chosen, since jax takes seconds to
# load; it has `parser()` and `run(options)`, which may return an exit code.
COMMANDS = {
    "demo": (
        "worldstereo_jax.cli.demo",
        "two clips of a room made on the spot, through one memory",
    ),
    "generate": ("worldstereo_jax.cli.generate", "a clip from an image or scene and a camera path"),
    "video": (
        "worldstereo_jax.cli.video",
        "a video from a prompt, or from one and an image, by plain Wan 2.1",
    ),
    "evaluate": (
        "worldstereo_jax.cli.evaluate",
        "how consistent a run's clips are, and how far from a truth",
    ),
    "export": (
        "worldstereo_jax.cli.export",
        "a run's frames, cameras and points for COLMAP, nerfstudio or WorldMirror",
    ),
    "memory": ("worldstereo_jax.cli.memory", "look into the memory that a run wrote, or edit it"),
    "cameras": (
        "worldstereo_jax.cli.cameras",
        "look into cameras of COLMAP, nerfstudio and others, or convert them",
    ),
    "view": ("worldstereo_jax.cli.view", "walk through a memory in the browser, and build paths"),
    "convert": ("worldstereo_jax.cli.convert", "official weights to orbax, and back"),
    "verify": ("worldstereo_jax.cli.verify", "compare with recorded outputs of the official code"),
}

_ENDING = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
_BY_SIGNAL = frozenset(128 + number for number in _ENDING)


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the process's exit code.

    What a person can mend, be it input or a full disk, ends in one sentence on standard error and
    exit code 2. A reader that has gone (`| head`) ends it without a word.
    """
    own_process = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    command = arguments[0] if arguments else ""
    program = f"worldstereo {command}" if command in COMMANDS else "worldstereo"
    try:
        with _removing_traces():
            if command not in COMMANDS:
                _no_command(command, arguments)
            module = importlib.import_module(COMMANDS[command][0])
            if own_process:
                _print_anything()
                _start_quickly()
            code = module.run(module.parser().parse_args(arguments[1:])) or 0
            # Now, since at exit a reader that has gone can no longer be answered.
            if sys.stdout is not None:
                sys.stdout.flush()
            return code
    except InputError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        sys.stdout = None
        return 141
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        print(f"{program}: {error.filename or 'a file'}: {error.strerror}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        if not _is_out_of_memory(error):
            raise
        said = str(error).strip().splitlines()[0].rstrip(".")
        print(
            f"{program}: the device has too little memory ({said}); "
            "of an official model --devices, --weights int8 and --vae-tile make less lie on each",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted before its result was complete", file=sys.stderr)
        if own_process:
            _left(130)
        return 130
    except SystemExit as ended:
        if own_process and isinstance(ended.code, int) and ended.code in _BY_SIGNAL:
            _left(ended.code)
        raise


def _left(code: int) -> NoReturn:
    """End the process now: its threads may be compiling for a minute, and Python waits for them.

    Temporary files are gone by then.
    """
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


def _is_out_of_memory(error: RuntimeError) -> bool:
    # Imported by the command that failed, or the error is not jax's.
    jax = sys.modules.get("jax")
    if jax is None or not isinstance(error, jax.errors.JaxRuntimeError):
        return False
    return "RESOURCE_EXHAUSTED" in str(error)


def _print_anything() -> None:
    """Let a terminal or file of few characters get a ? for others, instead of an error."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _start_quickly() -> None:
    # Imported only now, since it imports jax.
    process = importlib.import_module("worldstereo_jax.cli.process")
    process.ask_for_quick_start(os.environ)


def _no_command(command: str, arguments: list[str]) -> None:
    """Answer `--help` and `--version`; reject anything else, naming the nearest command."""
    if command and not command.startswith("-"):
        raise InputError(f"there is no command {command!r}: {nearest_hint(command, COMMANDS)}")
    parser = ArgumentParser(
        prog="worldstereo",
        description="One image and a camera path in; a 3D-consistent video, its memory and a "
        "point cloud out.",
    )
    version = f"worldstereo-jax {worldstereo_jax.__version__}"
    parser.add_argument("--version", action="version", version=version)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, (_, line) in COMMANDS.items():
        commands.add_parser(name, help=line)
    parser.parse_args(arguments)


@contextlib.contextmanager
def _removing_traces() -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into an exit that passes through the removal of temporary files.

    SIGHUP comes when a terminal closes; where it is ignored (nohup), it stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in _ENDING}
    heard = [number for number in _ENDING if before[number] is not signal.SIG_IGN]
    for number in heard:
        signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


if __name__ == "__main__":
    sys.exit(main())
