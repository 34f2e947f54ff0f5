import errno
import os
import stat
from pathlib import Path

import pytest

from worldstereo_jax.files import atomic_folder, atomic_write


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def umask():
    previous = os.umask(0o027)
    yield 0o027
    os.umask(previous)


def test_a_file_appears_only_after_the_block(tmp_path):
    with atomic_write(tmp_path / "deep/clip.mp4") as temporary:
        temporary.write_text("new")
        assert temporary.parent == tmp_path / "deep"
        assert temporary.suffix == ".mp4"
        assert not (tmp_path / "deep/clip.mp4").exists()
    assert _names(tmp_path / "deep") == ["clip.mp4"]
    assert (tmp_path / "deep/clip.mp4").read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_file(tmp_path, error):
    path = tmp_path / "run.json"
    path.write_text("old")

    def write_half():
        with atomic_write(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write_half()
    assert _names(tmp_path) == ["run.json"]
    assert path.read_text() == "old"


def test_files_and_folders_get_the_permissions_of_new_ones(tmp_path, umask):
    with atomic_write(tmp_path / "file") as temporary:
        temporary.write_text("")
    with atomic_folder(tmp_path / "folder") as temporary:
        (temporary / "inner").mkdir(mode=0o700)
        (temporary / "inner/private").touch(mode=0o600)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o666 & ~umask
    assert stat.S_IMODE((tmp_path / "folder/inner/private").stat().st_mode) == 0o666 & ~umask
    for name in ("folder", "folder/inner"):
        assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o777 & ~umask


def test_a_folder_appears_only_after_the_block(tmp_path):
    with atomic_folder(tmp_path / "a/b/out") as temporary:
        (temporary / "memory").mkdir()
        (temporary / "memory/points").write_text("p")
        assert not (tmp_path / "a/b/out").exists()
    assert _names(tmp_path / "a/b") == ["out"]
    assert (tmp_path / "a/b/out/memory/points").read_text() == "p"


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    out = tmp_path / "out"
    (out / "old").mkdir(parents=True)
    with atomic_folder(out) as temporary:
        (temporary / "new").write_text("n")
        assert _names(out) == ["old"]
    assert _names(out) == ["new"]
    assert _names(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_a_block_that_raises_leaves_the_old_folder_and_no_parents(tmp_path, error):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/kept").write_text("k")

    def write_half(path: Path):
        with atomic_folder(path) as temporary:
            (temporary / "half").write_text("h")
            raise error

    for path in (tmp_path / "out", tmp_path / "made/for/it"):
        with pytest.raises(error):
            write_half(path)
    assert _names(tmp_path) == ["out"]
    assert (tmp_path / "out/kept").read_text() == "k"


def test_a_failing_swap_puts_the_old_folder_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "kept").write_text("k")
    replace = Path.replace

    def failing(self: Path, target: Path) -> Path:
        if self.name == "new":
            raise OSError("no space")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises(OSError, match="no space"), atomic_folder(out) as temporary:
        (temporary / "half").write_text("h")
    assert _names(tmp_path) == ["out"]
    assert _names(out) == ["kept"]


def test_a_relative_folder_is_where_it_was_named(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with atomic_folder("out") as temporary:
        monkeypatch.chdir(tmp_path / "elsewhere")
        (temporary / "file").write_text("f")
    assert _names(tmp_path) == ["elsewhere", "out"]


@pytest.mark.parametrize("write", [atomic_write, atomic_folder])
def test_a_refusal_names_the_result_and_not_a_temporary_file(tmp_path, write):
    def refused(path: Path, number: int, name: str | None):
        with pytest.raises(OSError, match=r".*") as found, write(path):
            raise OSError(number, os.strerror(number), name)
        assert _names(tmp_path) == []
        return found.value

    full = refused(tmp_path / "out", errno.ENOSPC, None)
    assert (full.errno, full.filename) == (errno.ENOSPC, str(tmp_path / "out"))
    missing = refused(tmp_path / "out", errno.ENOENT, "input")
    assert missing.filename == "input"
    with pytest.raises(OSError, match="too long") as found, write(tmp_path / ("a" * 300)):
        pass
    assert found.value.filename == str(tmp_path / ("a" * 300))
