"""`worldstereo memory preview`."""

import json

import numpy as np
import pytest
from PIL import Image

from tests.evaluation import wall_world as ww
from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.outputs import RUN_FILE, save_world
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory

pytestmark = pytest.mark.row("S26")


@pytest.fixture
def results(tmp_path):
    """The results of a run whose clips had three frames."""
    folder = tmp_path / "run"
    save_world(folder / "memory", ww.wall(), "of any kind")
    (folder / RUN_FILE).write_text(json.dumps({"rollout": {"frames": 3}}))
    return folder


def test_a_path_is_told_and_drawn(results, tmp_path, capsys):
    out = tmp_path / "preview.png"
    arguments = ["--camera", "right", "--amplitude", "2", "--out", str(out)]
    assert main(["memory", "preview", str(results), *arguments]) == 0
    said = capsys.readouterr().out
    lines = said.splitlines()
    assert [line.split()[0] for line in lines[2:5]] == ["0", "1", "2"]
    assert lines[5] == ""
    assert "100.0 %" in lines[2]
    assert "100.0 %" not in lines[4]
    assert "The memories show" in said
    assert lines[-1] == str(out)
    with Image.open(out) as picture:
        assert picture.size[0] > 3 * 224


def test_a_file_is_laid_through_the_memory(results, tmp_path, capsys):
    """Past the wall; the memory's own folder does, too."""
    path, file, out = ww.ahead((0, 0, 0), (0, 0, 2.5)), tmp_path / "a.json", tmp_path / "a.png"
    write_cameras_json(file, path, np.stack([ww.K] * 2), (ww.HEIGHT, ww.WIDTH))
    arguments = ["--camera", str(file), "--frames", "4", "--out", str(out)]
    assert main(["memory", "preview", str(results / "memory"), *arguments]) == 0
    said = capsys.readouterr().out
    assert "through a stored surface before frame 3." in said
    assert [line.split()[0] for line in said.splitlines()[2:6]] == ["0", "1", "2", "3"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--camera", "right", "--out", "x.jpg"], "must end in .png"),
        (["--camera", "rihgt", "--out", "x.png"], "did you mean 'right'"),
        (["--camera", "right", "--frames", "1", "--out", "x.png"], "at least 2 frames"),
        (["--camera", "right", "--amplitude", "nan", "--out", "x.png"], "finite number"),
        (["--camera", "no.json", "--out", "x.png"], "does not exist"),
        (["--camera", "no.json", "--amplitude", "2", "--out", "x.png"], "not for a file"),
        (["--out", "x.png"], "required: --camera"),
    ],
)
def test_mistakes_are_one_sentence(results, monkeypatch, tmp_path, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["memory", "preview", str(results), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.glob("x.*"))


def test_nothing_is_overwritten_and_nothing_told_of_a_memory_without_views(tmp_path, capsys):
    (tmp_path / "x.png").write_text("mine")
    empty = ww.wall().replace(stereo=init_spatial_memory(1, ww.HEIGHT, ww.WIDTH))
    save_world(tmp_path / "memory", empty, "tiny")
    for out, said in (("x.png", "there already"), ("y.png", "holds no views")):
        arguments = ["--camera", "right", "--out", str(tmp_path / out)]
        assert main(["memory", "preview", str(tmp_path / "memory"), *arguments]) == 2
        assert said in capsys.readouterr().err
    assert (tmp_path / "x.png").read_text() == "mine"
