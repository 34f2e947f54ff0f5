import time

import pytest

from worldstereo_jax.cli.console import Stages


def test_times_are_kept_and_added_up_by_name():
    with Stages(3) as stages:
        for name in ("a", "b", "a"):
            with stages.stage(name):
                time.sleep(0.02)
    assert list(stages.seconds) == ["a", "b"]
    assert stages.seconds["a"] >= 0.04 > stages.seconds["b"] >= 0.02


def test_the_bar_shows_stage_note_and_end_on_standard_error(capsys):
    with Stages(2) as stages:
        with stages.stage("making the clip"):
            stages.note(" step 2 of 4")
        with stages.stage("writing"):
            pass
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "making the clip" in captured.err
    assert "step 2 of 4" in captured.err
    # A stage's note does not outlive it.
    last = captured.err.split("\r")[-1]
    assert "done" in last
    assert "2/2" in last
    assert "step" not in last


def test_after_an_error_the_bar_is_wiped(capsys):
    def fail():
        with Stages(2) as stages, stages.stage("making"):
            raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        fail()
    error = capsys.readouterr().err
    assert not error.endswith("\n")
    assert error.rstrip(" \r") != error
    assert error.split("\r")[-2].strip() == ""
