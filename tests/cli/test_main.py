import errno
import os
import signal
import subprocess
import sys
import types

import jax
import pytest

import worldstereo_jax
from worldstereo_jax.cli import main as command_line
from worldstereo_jax.cli.main import main
from worldstereo_jax.errors import InputError


def _install(monkeypatch, run) -> None:
    module = types.ModuleType("fake_command")
    module.__dict__.update(parser=lambda: _Parser(), run=run)
    monkeypatch.setitem(sys.modules, "fake_command", module)
    monkeypatch.setitem(command_line.COMMANDS, "fake", ("fake_command", "a command for tests"))


class _Parser:
    def parse_args(self, arguments: list[str]) -> list[str]:
        return arguments


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("generat", "did you mean 'generate'?"),
        ("dmeo", "did you mean 'demo'?"),
        ("xyz", "known are demo, generate"),
    ],
)
def test_an_unknown_command_is_answered_with_the_nearest(capsys, wrong, said):
    assert main([wrong, "--out", "x"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"worldstereo: there is no command '{wrong}'")
    assert said in error
    assert error.count("\n") == 1


def test_no_command_is_one_sentence(capsys):
    assert main([]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "worldstereo: the following arguments are required: COMMAND (see worldstereo --help)"
    ]
    assert main(["--bogus"]) == 2


@pytest.mark.parametrize("flag", ["--help", "--version"])
def test_help_and_version_do_not_load_jax(flag):
    code = (
        "import sys\nfrom worldstereo_jax.cli.main import main\n"
        f"try:\n    main([{flag!r}])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=os.getcwd()
    )
    expected = worldstereo_jax.__version__ if flag == "--version" else "generate"
    assert expected in done.stdout


@pytest.mark.parametrize("command", command_line.COMMANDS)
def test_every_command_has_help(capsys, command):
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    assert end.value.code == 0
    assert f"usage: worldstereo {command}" in capsys.readouterr().out


def test_an_input_error_of_several_lines_becomes_one(capsys, monkeypatch):
    def run(options):
        raise InputError("a file\n  is wrong")

    _install(monkeypatch, run)
    assert main(["fake"]) == 2
    assert capsys.readouterr().err == "worldstereo fake: a file is wrong\n"


def test_an_interruption_says_so_and_a_bug_is_not_hidden(capsys, monkeypatch):
    def interrupted(options):
        raise KeyboardInterrupt

    _install(monkeypatch, interrupted)
    assert main(["fake"]) == 130
    assert "interrupted before its result was complete" in capsys.readouterr().err

    def broken(options):
        raise ValueError("a bug")

    _install(monkeypatch, broken)
    with pytest.raises(ValueError, match="a bug"):
        main(["fake"])


def test_a_refusing_disk_is_one_sentence_and_other_errors_stay(capsys, monkeypatch):
    def full(options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "out/x")

    _install(monkeypatch, full)
    assert main(["fake"]) == 2
    assert capsys.readouterr().err == "worldstereo fake: out/x: No space left on device\n"

    def broken(options):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), "a bug")

    _install(monkeypatch, broken)
    with pytest.raises(FileNotFoundError, match="a bug"):
        main(["fake"])


def test_a_full_device_is_one_sentence_and_other_errors_of_jax_stay(capsys, monkeypatch):
    def full(options):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory, 9 bytes.\nMore\nof it")

    _install(monkeypatch, full)
    assert main(["fake"]) == 2
    assert capsys.readouterr().err == (
        "worldstereo fake: the device has too little memory (RESOURCE_EXHAUSTED: Out of memory, 9 "
        "bytes); of an official model --devices, --weights int8 and --vae-tile make less lie on "
        "each\n"
    )

    def broken(options):
        raise jax.errors.JaxRuntimeError("INTERNAL: a bug")

    _install(monkeypatch, broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="a bug"):
        main(["fake"])


_PRINTING = """
import sys, types
from worldstereo_jax.cli import main as command_line
fake = types.ModuleType("fake_command")
fake.parser = lambda: types.SimpleNamespace(parse_args=list)
fake.run = lambda options: print("\u2588" * 100_000)
sys.modules["fake_command"] = fake
command_line.COMMANDS["fake"] = ("fake_command", "")
command_line._start_quickly = lambda: None
sys.argv = ["worldstereo", "fake"]
sys.exit(command_line.main())
"""


_COMPILING = _PRINTING.replace(
    'lambda options: print("\u2588" * 100_000)',
    """None
import signal, time
from worldstereo_jax.cli.process import aside
# A shell starts what runs in its background with this signal ignored, tests included.
signal.signal(signal.SIGINT, signal.default_int_handler)
def run(options):
    with aside() as thread:
        working = thread.submit(time.sleep, 100)
        print("working", flush=True)
        working.result()
fake.run = run""",
)


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 128 + signal.SIGTERM)]
)
def test_a_signal_does_not_wait_for_what_is_compiling_aside(number, code):
    program = [sys.executable, "-c", _COMPILING]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "working\n"
        process.send_signal(number)
        assert process.wait(timeout=60) == code


@pytest.mark.parametrize(("reader", "codes"), [("head -c 3", "141 0"), ("cat > /dev/null", "0 0")])
def test_output_may_go_to_few_characters_or_to_nobody(reader, codes):
    line = f'"{sys.executable}" -c "$PROGRAM" | {reader}; echo "${{PIPESTATUS[@]}}"'
    variables = os.environ | {"PROGRAM": _PRINTING, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        ["bash", "-c", line], env=variables, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].endswith(codes)
    assert done.stderr == ""


def _signalled(monkeypatch, number: int) -> tuple[object, list[bool]]:
    """What a command ends with that sends itself a signal, and whether it cleaned up."""
    cleaned = []

    def run(options):
        try:
            os.kill(os.getpid(), number)
        finally:
            cleaned.append(True)

    _install(monkeypatch, run)
    try:
        return main(["fake"]), cleaned
    except SystemExit as end:
        return end.code, cleaned


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_pass_through_cleanup_and_the_handler_is_put_back(monkeypatch, number):
    before = signal.signal(number, signal.default_int_handler)
    try:
        assert _signalled(monkeypatch, number) == (128 + number, [True])
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)


def test_a_command_outlives_its_terminal_where_asked_to(monkeypatch):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        assert _signalled(monkeypatch, signal.SIGHUP) == (0, [True])
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)
