"""`worldstereo memory surface`."""

import jax.numpy as jnp
import numpy as np
import pytest
from plyfile import PlyData

from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.memory_input import open_memory
from worldstereo_jax.cli.outputs import save_world
from worldstereo_jax.data.point_cloud_io import read_point_cloud
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.memory.entry_cloud import surface_cloud
from worldstereo_jax.sampling.world import RolloutConfig, init_memory

pytestmark = pytest.mark.row("S27")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The memory of a scene's first frame."""
    config = RolloutConfig()
    clips = SceneClips(range(4, 5), frames=2, height=config.height, width=config.width)
    scene = {name: jnp.asarray(value[0]) for name, value in clips[0].items() if name != "seed"}
    fields = (scene[name] for name in ("image", "depth", "w2c", "intrinsics"))
    folder = tmp_path_factory.mktemp("world") / "memory"
    save_world(folder, init_memory(config, *fields), "tiny")
    return folder


def test_a_saved_memory_gives_its_surfaces(folder, tmp_path, capsys):
    out = tmp_path / "surface.ply"
    arguments = ["--spacing", "0.01", "--least-confidence", "0.5", "--out", str(out)]
    assert main(["memory", "surface", str(folder), *arguments]) == 0
    entries = open_memory(folder).memory.entries
    cloud = surface_cloud(entries, spacing=0.01, least_confidence=0.5)
    positions, _ = read_point_cloud(out)
    np.testing.assert_array_equal(positions, cloud.positions)
    assert f"{len(positions):,} points" in capsys.readouterr().out
    vertices = PlyData.read(out)["vertex"]
    length = np.sqrt(sum(np.square(vertices[name]) for name in ("nx", "ny", "nz")))
    np.testing.assert_allclose(length, 1.0, atol=1e-4)
    assert main(["memory", "surface", str(folder), "--out", str(tmp_path / "plain.ply")]) == 0
    assert len(read_point_cloud(tmp_path / "plain.ply")[0]) < len(positions)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--out", "x.txt"], "must end in .ply"),
        (["--out", "x.ply", "--spacing", "0"], "positive spacing"),
        (["--out", "x.ply", "--spacing", "1e-7"], "wider spacing"),
        (["--out", "x.ply", "--least-confidence", "2"], "within 0 to 1"),
    ],
)
def test_mistakes_are_one_sentence(folder, tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(["memory", "surface", str(folder), *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_overwritten(folder, tmp_path, capsys):
    (tmp_path / "x.ply").write_text("mine")
    assert main(["memory", "surface", str(folder), "--out", str(tmp_path / "x.ply")]) == 2
    assert "there already" in capsys.readouterr().err
    assert (tmp_path / "x.ply").read_text() == "mine"
