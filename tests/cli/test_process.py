"""A command's own process keeps its compiled programs, unless its user says otherwise."""

import os
import re
import subprocess
import sys

import pytest

from pallas_kernels.compat import quick_compiler_flags
from worldstereo_jax.cli.process import cache_folder

_OF_CACHE = re.compile("JAX_(COMPILATION|PERSISTENT)_CACHE_")
PROGRAM = """
import os, jax
from worldstereo_jax.cli.process import ask_for_quick_start
ask_for_quick_start(os.environ)
jax.jit(lambda x: x @ x)(jax.numpy.ones((3, 3))).block_until_ready()
print(os.environ.get("XLA_FLAGS", ""))
"""


def run(**variables: str) -> str:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name not in ("XLA_FLAGS", "XDG_CACHE_HOME") and not _OF_CACHE.match(name)
    }
    command = [sys.executable, "-c", PROGRAM]
    done = subprocess.run(
        command, env=inherited | variables, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def test_programs_are_kept_below_the_users_cache_folder(tmp_path):
    flags = run(XDG_CACHE_HOME=str(tmp_path))
    assert list(cache_folder({"XDG_CACHE_HOME": str(tmp_path)}).glob("*"))
    assert flags.split() == list(quick_compiler_flags())


@pytest.mark.parametrize("chosen", ["elsewhere", ""])
def test_what_the_user_has_set_stays(tmp_path, chosen):
    folder = tmp_path / chosen if chosen else ""
    # The other way round where there is a choice of emitters; a later version knows no such flag.
    given = "--xla_backend_optimization_level=1"
    if quick_compiler_flags():
        given = "--xla_cpu_use_fusion_emitters=true"
    flags = run(
        XDG_CACHE_HOME=str(tmp_path / "cache"),
        JAX_COMPILATION_CACHE_DIR=str(folder),
        JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0",
        XLA_FLAGS=given,
    )
    assert flags == given
    assert not (tmp_path / "cache").exists()
    if folder:
        assert any(folder.iterdir())


def test_without_a_cache_variable_the_home_folder_holds_it(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder({}) == tmp_path / ".cache" / "worldstereo_jax" / "compiled"


def test_a_user_without_a_home_keeps_nothing(monkeypatch):
    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("worldstereo_jax.cli.process.Path.home", no_home)
    assert cache_folder({}) is None


def test_a_cache_that_cannot_be_made_is_done_without_and_without_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    inherited = {
        name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env=inherited | {"XDG_CACHE_HOME": str(tmp_path / "file")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr == ""
