"""Files and folders written so that a crash never leaves half of one, and JSON read."""

import contextlib
import errno
import json
import os
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from worldstereo_jax.errors import InputError

REFUSALS = frozenset(
    {
        errno.EACCES,
        errno.EDQUOT,
        errno.EFBIG,
        errno.ENAMETOOLONG,
        errno.ENOSPC,
        errno.ENOTDIR,
        errno.EPERM,
        errno.EROFS,
    }
)
"""Numbers of the OSErrors by which a disk, or who owns it, refuses a file: nothing is wrong with
the program."""


def refusal(error: BaseException) -> str | None:
    """Why a disk refused a file, where an error is such a one: in the system's words, else None.

    Libraries in other languages say so in an error of their own, which names no number.
    """
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno in REFUSALS else None
    words = (os.strerror(number) for number in sorted(REFUSALS))
    return next((each for each in words if each in str(error)), None)


DAMAGED_ARRAYS = (
    OSError,
    ValueError,
    EOFError,
    IndexError,
    AttributeError,
    zipfile.BadZipFile,
    zlib.error,
)
"""What reading a .npy or .npz file may raise when it is damaged, or something else."""


def read_json(path: str | os.PathLike[str]) -> Any:
    """The content of a JSON file; InputError when it is missing, no file, or not JSON."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path} does not exist or is not a file.")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split()).rstrip(".")
        raise InputError(f"{path} is not valid JSON: {reason}.") from error


def read_json_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Like `read_json`, and the content must be an object with named fields."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object with named fields.")
    return content


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it onto `path` when the block succeeds.

    The temporary name keeps the suffix, since writers such as PyAV choose a format by it.
    When the block raises, the temporary file is removed and `path` is left as it was. An OSError of
    `REFUSALS` names `path`.
    """
    path = Path(path)
    with _naming(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}.", suffix=path.suffix or ".tmp"
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            # mkstemp makes private files; give the result the permissions any new file would have.
            temporary.chmod(0o666 & ~_umask())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; swap it in for `path` when the block succeeds.

    A folder already at `path` is replaced only after everything was written. When the block
    raises, the temporary folder is removed, and parents that were made for it, too. An OSError of
    `REFUSALS` names `path`.
    """
    with _naming(Path(path)), _swapped_in(Path(path).resolve()) as temporary:
        yield temporary


@contextlib.contextmanager
def _swapped_in(path: Path) -> Iterator[Path]:
    made = [parent for parent in path.parents if not parent.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    # Holds the new folder and, for a moment, the old one; removed whatever happens.
    workshop = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    temporary = workshop / "new"
    temporary.mkdir()
    try:
        yield temporary
        # Some writers (mkdtemp, safetensors) make what they write private; the result is as open as
        # any new file.
        for made_inside in (temporary, *temporary.rglob("*")):
            made_inside.chmod((0o777 if made_inside.is_dir() else 0o666) & ~_umask())
        retired = workshop / "old"
        if path.exists():
            path.replace(retired)
        try:
            temporary.replace(path)
        except BaseException:
            if retired.exists():
                retired.replace(path)
            raise
    finally:
        shutil.rmtree(workshop, ignore_errors=True)
        for parent in made:
            # Fails where something was written, which is then to stay.
            with contextlib.suppress(OSError):
                parent.rmdir()


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let a refusal name the result that was to be written, instead of a temporary file or none."""
    try:
        yield
    except OSError as error:
        if error.errno not in REFUSALS:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


def _umask() -> int:
    """The process's mask of permissions, which can only be read by setting it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask
