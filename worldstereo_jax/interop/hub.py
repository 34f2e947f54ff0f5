"""Folders on this machine, or on the Hugging Face hub: downloaded into the hub's own cache.

`huggingface_hub` drops what it has of a file when a process ends, which with one file of 35 GB is
all of it. Large files are therefore brought here first, into a partial file that outlives the
process, and checked against the hub's checksum; the rest is left to `huggingface_hub`.
"""

import hashlib
import os
import typing
from collections.abc import Sequence
from pathlib import Path

from worldstereo_jax.errors import InputError


def resolve(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    patterns: Sequence[str] | None = None,
) -> Path:
    """A folder on this machine: the one named, or one of the hub, downloaded.

    What was downloaded stays in the hub's cache, and is taken from there when the hub cannot be
    asked. An interrupted download goes on where it ended, also in the middle of a large file.

    Args:
        source: a folder, a hub id "owner/name", or a folder of one, "owner/name/folder".
        revision: branch, tag or commit of a hub id.
        patterns: files of the folder that are needed, None for all.

    Raises:
        InputError: when there is no such folder, or it cannot be had from the hub: it is not
            there, is not open to everyone, cannot be reached, or the download broke off.
    """
    path = Path(source)
    if path.is_dir():
        return path
    name = str(source)
    owner, repository, *inside = name.split("/") if "/" in name else (name, "")
    if not all((owner, repository, *inside)) or owner[0] in ".~":
        raise InputError(f"{name}: no such folder, and no hub id of the form owner/name")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"{name}: no such folder; hub ids need the hub extra: pip install worldstereo-jax[hub]"
        ) from error
    wanted = ["/".join((*inside, pattern)) for pattern in patterns or ("*",)]
    folder = _download(f"{owner}/{repository}", revision, wanted).joinpath(*inside)
    if not folder.is_dir():
        raise InputError(f"{name}: {owner}/{repository} on the hub has no such folder")
    return folder


def commit_of(source: str | os.PathLike[str], folder: Path) -> str | None:
    """The commit that `resolve` brought a hub id's folder from; None for a folder of this machine.

    Args:
        source: as it was given to `resolve`.
        folder: what that returned.
    """
    if Path(source).is_dir():
        return None
    # <cache>/models--<owner>--<name>/snapshots/<commit>/<folders of the id>
    inside = len(str(source).split("/")) - 2
    return folder.parts[len(folder.parts) - 1 - inside]


def _download(repository: str, revision: str | None, patterns: list[str]) -> Path:
    """The folder in the hub's cache with the files of a repository that match."""
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.hf_api import RepoFile
    from huggingface_hub.utils import filter_repo_objects

    try:
        commit = HfApi().repo_info(repository, revision=revision).sha
        entries = HfApi().list_repo_tree(repository, recursive=True, revision=commit)
        files = [entry for entry in entries if isinstance(entry, RepoFile)]
    except _failures() as error:
        # Without the hub, the cache may have everything.
        try:
            return Path(
                snapshot_download(
                    repository, revision=revision, allow_patterns=patterns, local_files_only=True
                )
            )
        except _failures():
            raise InputError(_sentence(error, repository, revision)) from error
    try:
        for file in filter_repo_objects(files, allow_patterns=patterns, key=lambda f: f.path):
            if file.lfs is not None:
                _download_large(repository, commit, file)
        # By the name that was asked for, which the cache then knows without the hub too.
        return Path(snapshot_download(repository, revision=revision, allow_patterns=patterns))
    except InputError:
        raise
    except _failures() as error:
        raise InputError(_sentence(error, repository, revision)) from error


def _download_large(repository: str, commit: str | None, file: typing.Any) -> None:
    """Put a large file where the hub's cache keeps it, going on with what an earlier call has.

    `file` is huggingface_hub's RepoFile, whose type cannot be named without importing it.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    cache, checksum, size = Path(constants.HF_HUB_CACHE), file.lfs.sha256, file.lfs.size
    folder = repo_folder_name(repo_id=repository, repo_type="model")
    blob = cache / folder / "blobs" / checksum
    if blob.exists():
        return
    # The lock that huggingface_hub takes for this file.
    lock = cache / ".locks" / folder / f"{checksum}.lock"
    for parent in (blob.parent, lock.parent):
        parent.mkdir(parents=True, exist_ok=True)
    partial = blob.with_name(f"{checksum}.partial")
    with WeakFileLock(lock):
        if blob.exists():
            return
        try:
            with partial.open("ab") as out:
                http_get(
                    hf_hub_url(repository, file.path, revision=commit),
                    out,
                    resume_size=out.tell(),
                    headers=build_hf_headers(),
                    expected_size=size,
                    displayed_filename=file.path,
                )
        except _failures() as error:
            have = partial.stat().st_size
            if not have:
                partial.unlink()
                raise
            raise InputError(
                f"{repository}: the download of {file.path} broke off after {have / size:.0%} of "
                f"{size / 1e9:.3g} GB ({_first_line(error)}); the next call goes on from there"
            ) from error
        with partial.open("rb") as whole:
            found = hashlib.file_digest(whole, "sha256").hexdigest()
        if found != checksum:
            partial.unlink()
            raise InputError(
                f"{repository}: what came as {file.path} has not the hub's checksum, and was "
                "deleted; the next call downloads it anew"
            )
        partial.replace(blob)


def _failures() -> tuple[type[Exception], ...]:
    """What `huggingface_hub` raises when something cannot be had.

    Among them the base of all errors of its HTTP client, which is another one in each of its
    major versions.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, ValueError, HfHubHTTPError.__bases__[0])


def _sentence(error: Exception, repository: str, revision: str | None) -> str:
    from huggingface_hub import constants, errors

    start = f"{repository}: no such folder, and"
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{start} the hub's repository is gated: ask for access at "
            f"{constants.ENDPOINT}/{repository}, then log in with hf auth login"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{start} the hub has no such repository, or it is private: check the name, or log in "
            "with hf auth login"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{start} the hub's repository has no revision {revision}"
    if isinstance(error, errors.HfHubHTTPError):
        return f"{start} the hub does not give it ({_first_line(error)})"
    return f"{start} the hub cannot be reached ({_first_line(error)})"


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__
