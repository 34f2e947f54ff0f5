"""What a command asks of its process: programs that are ready soon, and an end at once.

A command runs each of its programs once or twice, so compiling is most of what a person waits for.
Imported once jax has been; `main` calls it when the process is the command's own.
"""

import contextlib
import os
from collections.abc import Iterator, MutableMapping
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import jax

from pallas_kernels.compat import quick_compiler_flags


def ask_for_quick_start(environment: MutableMapping[str, str]) -> None:
    """Let programs be compiled the quicker way where there is one, and be kept for the next time.

    Compiled programs go to the user's cache folder (about 3 MB for a command and its sizes). What
    the user has set is left as it is: `JAX_COMPILATION_CACHE_DIR` names another folder, or none
    when it is empty.

    Args:
        environment: the process's variables; `XLA_FLAGS` is extended in place, which counts until
            jax is first asked for a device.
    """
    folder = cache_folder(environment)
    if "JAX_COMPILATION_CACHE_DIR" not in environment and folder and _can_hold_files(folder):
        jax.config.update("jax_compilation_cache_dir", str(folder))
        # All: the smallest program is read back in half the time that it takes to compile.
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    given = environment.get("XLA_FLAGS", "")
    new = [flag for flag in quick_compiler_flags() if flag.split("=")[0] not in given]
    if new:
        environment["XLA_FLAGS"] = " ".join([given, *new]).strip()


@contextlib.contextmanager
def aside() -> Iterator[Executor]:
    """A thread for work beside the command's own; an error or Ctrl-C does not wait for it."""
    executor = ThreadPoolExecutor(1)
    try:
        yield executor
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        raise
    executor.shutdown()


def _can_hold_files(folder: Path) -> bool:
    """Whether files can be written there; jax would warn of each program that cannot."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK | os.X_OK)


def cache_folder(environment: MutableMapping[str, str]) -> Path | None:
    """Where compiled programs are kept: below `XDG_CACHE_HOME`, or `.cache` in the home folder.

    None for a user without a home, as in a container that runs under a number without a name.
    """
    base = environment.get("XDG_CACHE_HOME")
    if not base:
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return Path(base) / "worldstereo_jax" / "compiled"
