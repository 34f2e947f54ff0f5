"""Entry point of the `worldstereo` command."""

import contextlib
import difflib
import importlib
import os
import signal
import sys
import threading
from collections.abc import Iterator

import worldstereo_jax
from worldstereo_jax.cli.arguments import ArgumentParser
from worldstereo_jax.errors import InputError

# name -> (module, one line). A module is imported only when chosen, since jax takes seconds to
# load; it has `parser()` and `run(options)`, which may return an exit code.
COMMANDS = {
    "demo": (
        "worldstereo_jax.cli.demo",
        "two clips of a room made on the spot, through one memory",
    ),
    "generate": ("worldstereo_jax.cli.generate", "a clip from an image or scene and a camera path"),
    "memory": ("worldstereo_jax.cli.memory", "look into the memory that a run wrote, or edit it"),
    "convert": ("worldstereo_jax.cli.convert", "official weights to orbax, and back"),
    "verify": ("worldstereo_jax.cli.verify", "compare with recorded outputs of the official code"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the process's exit code.

    Input that a person can mend ends in one sentence on standard error and exit code 2.
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
                _start_quickly()
            return module.run(module.parser().parse_args(arguments[1:])) or 0
    except InputError as error:
        print(f"{program}: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{program}: interrupted; nothing was written", file=sys.stderr)
        return 130


def _start_quickly() -> None:
    # Imported only now, since it imports jax.
    process = importlib.import_module("worldstereo_jax.cli.process")
    process.ask_for_quick_start(os.environ)


def _no_command(command: str, arguments: list[str]) -> None:
    """Answer `--help` and `--version`; reject anything else, naming the nearest command."""
    if command and not command.startswith("-"):
        near = difflib.get_close_matches(command, COMMANDS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(COMMANDS)}."
        raise InputError(f"there is no command {command!r}: {hint}")
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
    """Turn SIGTERM into an exit that passes through the code which removes temporary files."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


if __name__ == "__main__":
    sys.exit(main())
