"""`worldstereo memory undo`, `prune`, `select`, `merge`."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.memory_input import open_memory
from worldstereo_jax.cli.outputs import save_world
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    empty_memory,
    remember_frames,
)

pytestmark = pytest.mark.row("S33")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Memories of a scene's first frame, and with one and three more."""
    home = tmp_path_factory.mktemp("worlds")
    config = RolloutConfig()
    clips = SceneClips(range(4, 5), frames=4, height=config.height, width=config.width)
    scene = {name: jnp.asarray(value) for name, value in clips[0].items()}
    memory = empty_memory(config)
    made = []
    for source, frames in enumerate(([0], [1], [2, 3])):
        part = jnp.asarray(frames)
        cameras = Cameras(w2c=scene["w2c"][part], intrinsics=scene["intrinsics"][part])
        pictures = scene["image"][part], scene["depth"][part]
        memory = remember_frames(config, memory, *pictures, cameras, source)
        made.append(home / str(source) / "memory")
        made[-1].parent.mkdir()
        save_world(made[-1], memory, "tiny")
    return made


def held(folder):
    memory = open_memory(folder).memory
    return int(memory.stereo.count), int(memory.points.count), int(memory.entries.count)


def test_undo_gives_back_the_memory_before(folders, tmp_path, capsys):
    assert main(["memory", "undo", str(folders[2]), "--out", str(tmp_path / "undone")]) == 0
    said = capsys.readouterr().out
    assert "keyframes: 4 -> 2" in said
    before, undone = (open_memory(f).memory for f in (folders[1], tmp_path / "undone"))
    for a, b in zip(jax.tree.leaves(before), jax.tree.leaves(undone), strict=True):
        np.testing.assert_array_equal(a, b)
    assert held(folders[2])[0] == 4


@pytest.mark.row("S31")
@pytest.mark.parametrize("bits", [8, 4])
def test_compress_keeps_all_but_the_features_last_digits(folders, tmp_path, capsys, bits):
    out = tmp_path / "small"
    assert (
        main(["memory", "compress", str(folders[1]), "--bits", str(bits), "--out", str(out)]) == 0
    )
    said = capsys.readouterr().out
    assert "bytes of an entry, features:" in said
    before, after = (open_memory(f).memory for f in (folders[1], out))
    for level, coded in zip(before.entries.features, after.entries.features, strict=True):
        step = np.abs(level).max(0) / (2 ** (bits - 1) - 1)
        assert (np.abs(np.asarray(level - coded)) <= 0.51 * step + 1e-6).all()
        assert (np.asarray(level) != np.asarray(coded)).any()
    np.testing.assert_array_equal(before.entries.position, after.entries.position)
    np.testing.assert_array_equal(before.stereo.images, after.stereo.images)
    old, new = (
        sum(file.stat().st_size for file in folder.iterdir()) for folder in (folders[1], out)
    )
    assert new < old


def test_prune_and_select_keep_what_was_asked(folders, tmp_path):
    views, _, entries = held(folders[2])
    budget = ["--views", "3", "--entries", str(entries // 2)]
    assert main(["memory", "prune", str(folders[2]), *budget, "--out", str(tmp_path / "p")]) == 0
    assert (held(tmp_path / "p")[0], held(tmp_path / "p")[2]) == (3, entries // 2)
    chosen = ["--views", "0", "1"]
    assert main(["memory", "select", str(folders[2]), *chosen, "--out", str(tmp_path / "s")]) == 0
    assert held(tmp_path / "s") == held(folders[1])
    box = ["--box", "-50", "-50", "-50", "50", "50", "50"]
    assert main(["memory", "select", str(folders[2]), *box, "--out", str(tmp_path / "b")]) == 0
    assert held(tmp_path / "b") == held(folders[2])
    assert views == 4


def test_merge_joins_two_memories(folders, tmp_path):
    chosen = ["--views", "0", "2", "3"]
    assert main(["memory", "select", str(folders[2]), *chosen, "--out", str(tmp_path / "o")]) == 0
    both = ["memory", "merge", str(folders[1]), str(tmp_path / "o")]
    assert main([*both, "--out", str(tmp_path / "m")]) == 0
    assert held(tmp_path / "m")[0] == 4
    assert held(tmp_path / "m")[2] > held(folders[1])[2]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["undo", "0"], "no clip to undo"),
        (["prune", "2"], "needs a budget"),
        (["select", "2", "--views", "7"], "views 0 to 3"),
        (["select", "2"], "required"),
        (["select", "2", "--box", *"000001"], "would be left; it holds 4 views, and points from"),
        (["select", "2", "--box", *"00000", "nan"], "--box: its corners must be finite"),
        (["merge", "2", "nowhere"], "does not exist"),
    ],
)
def test_mistakes_are_one_sentence(folders, tmp_path, capsys, arguments, said):
    action, number, *rest = arguments
    folder = str(folders[int(number)])
    assert main(["memory", action, folder, *rest, "--out", str(tmp_path / "x")]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "x").exists()


def test_places_where_nothing_can_be_written_are_named_first(folders, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    for action in ("undo", "surface"):
        out = tmp_path / "file" / "x.ply"
        assert main(["memory", action, str(folders[2]), "--out", str(out)]) == 2
        assert f"--out {out} cannot be made: {tmp_path / 'file'} is a file" in (
            capsys.readouterr().err
        )
    assert (tmp_path / "file").read_text() == "mine"


def test_nothing_is_overwritten_and_a_broken_record_is_named(folders, tmp_path, capsys):
    assert main(["memory", "undo", str(folders[2]), "--out", str(folders[1])]) == 2
    assert "there already" in capsys.readouterr().err
    record = folders[2].parent / "run.json"
    record.write_text(json.dumps({"rollout": {"point_radius": "wide"}}))
    assert main(["memory", "undo", str(folders[2]), "--out", str(tmp_path / "x")]) == 2
    assert "no record of a run" in capsys.readouterr().err
    record.unlink()
