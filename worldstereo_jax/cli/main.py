"""Entry point of the `worldstereo` command."""

import argparse
import importlib
import sys

from worldstereo_jax.errors import InputError

# name -> (module, one line); modules are imported only when chosen, since jax takes seconds to load.
COMMANDS = {
    "demo": ("worldstereo_jax.cli.demo", "two clips through one memory, on a scene made on the spot"),
    "generate": ("worldstereo_jax.cli.generate", "an image or scene and a camera path -> a clip"),
}


def main(arguments: list[str] | None = None) -> int:
    """Run one subcommand; returns the process's exit code.

    Input that a person can mend ends in one sentence on standard error and exit code 2.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(
        prog="worldstereo",
        description="One image and a camera path in; a 3D-consistent video, its memory and a "
        "point cloud out.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, (_, line) in COMMANDS.items():
        subparsers.add_parser(name, help=line, add_help=False)
    command = parser.parse_args(arguments[:1]).command
    module = importlib.import_module(COMMANDS[command][0])
    options = module.parser().parse_args(arguments[1:])
    try:
        module.run(options)
    except InputError as error:
        print(f"worldstereo {command}: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
