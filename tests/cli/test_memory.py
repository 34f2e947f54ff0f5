"""`worldstereo memory inspect`."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from worldstereo_jax.cli.main import main
from worldstereo_jax.memory.entries import EntryConfig, init_entries
from worldstereo_jax.memory.entry_folder import entry_fields
from worldstereo_jax.memory.folder import save_memory
from worldstereo_jax.memory.global_geometric import init_global_memory
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory, insert_keyframes


@pytest.fixture
def folder(tmp_path):
    stereo = insert_keyframes(
        init_spatial_memory(3, 32, 48),
        jnp.zeros((2, 32, 48, 3)),
        jnp.full((2, 32, 48), 2.0),
        jnp.stack([jnp.eye(4), jnp.eye(4).at[0, 3].set(-0.2)]),
        jnp.broadcast_to(jnp.array([[40.0, 0, 24], [0, 40, 16], [0, 0, 1]]), (2, 3, 3)),
        source=7,
    )
    bank = init_entries(EntryConfig(6))
    bank = bank.replace(
        valid=bank.valid.at[:5].set(True),
        views=bank.views.at[:2, 0].set(3).at[2:5, 0].set(1),
        confidence=bank.confidence.at[:5].set(0.95),
        features=tuple(level.at[:3].set(1.0) for level in bank.features),
        count=jnp.asarray(5, jnp.int32),
    )
    optional = entry_fields(bank) | {"descriptor.census": np.zeros((5, 2), np.uint32)}
    save_memory(
        tmp_path / "memory", init_global_memory(10), stereo, model="tiny", optional=optional
    )
    return tmp_path / "memory"


@pytest.mark.row("S25")
def test_inspect_prints_and_draws(folder, capsys):
    assert main(["memory", "inspect", str(folder)]) == 0
    said = capsys.readouterr().out
    assert "2 of 3 (2 of clip 1), 32 x 48 pixels" in said
    assert "made by model tiny" in said
    assert "descriptor.census uint32 5 x 2" in said
    assert "entries     5, 0 found no room" in said
    assert "3 of 27 channels, 3 of 27 channels, 3 of 27 channels" in said
    assert "3 by 1, 2 by 2" in said
    assert "descriptor.state" not in said
    assert "0 of 10" in said
    with Image.open(folder.parent / "memory.png") as picture:
        assert picture.size[0] > 800
    assert "verdicts    5 seen once" in said
    with Image.open(folder.parent / "memory_agreement.png") as picture:
        assert picture.size[0] > 800


def test_the_picture_goes_where_it_is_wanted(folder, tmp_path, capsys):
    # The run's folder stands for the memory in it.
    run = str(folder.parent)
    assert main(["memory", "inspect", run, "--picture", str(tmp_path / "p.png")]) == 0
    assert (tmp_path / "p.png").is_file()
    assert not (tmp_path / "memory.png").exists()


def test_the_picture_is_named_after_the_folder(folder, capsys):
    # Dollar signs in the title are no formula.
    other = folder.rename(folder.with_name("of $\\x$"))
    assert main(["memory", "inspect", str(other)]) == 0
    assert other.with_name(f"{other.name}.png").is_file()
    assert not other.with_name("memory.png").exists()


@pytest.mark.parametrize(
    ("name", "said"), [("photo.jpg", "must end in .png"), ("photo.jpg/a.png", "is a file")]
)
def test_a_picture_replaces_no_photograph(folder, tmp_path, capsys, name, said):
    (tmp_path / "photo.jpg").write_text("mine")
    assert main(["memory", "inspect", str(folder), "--picture", str(tmp_path / name)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert said in captured.err
    assert (tmp_path / "photo.jpg").read_text() == "mine"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["inspect", "nowhere"], "memory folder nowhere does not exist"),
        (["inspekt", "x"], "invalid choice"),
        ([], "required: ACTION"),
    ],
)
def test_mistakes_are_one_sentence(capsys, arguments, said):
    assert main(["memory", *arguments]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_truncated_memory_is_refused(folder, capsys):
    path = folder / "spatial_stereo.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert main(["memory", "inspect", str(folder)]) == 2
    assert "truncated" in capsys.readouterr().err
