import jax
import numpy as np
import pytest

from worldstereo_jax.data import textures
from worldstereo_jax.data.scene_layouts import make_scene
from worldstereo_jax.errors import InputError


def _equal(a, b):
    return [bool(np.array_equal(x, y)) for x, y in zip(*map(jax.tree.leaves, (a, b)), strict=True)]


def test_a_seed_gives_one_scene():
    assert all(_equal(make_scene(5, "train"), make_scene(5, "train")))


def test_seeds_and_splits_give_different_layouts():
    scenes = [make_scene(5, "train"), make_scene(6, "train"), make_scene(5, "held_out")]
    halves = {tuple(np.asarray(scene.room_half).tolist()) for scene in scenes}
    assert len(halves) == 3


def test_all_scenes_share_one_program():
    shapes = {
        str(jax.tree.map(lambda x: (x.shape, str(x.dtype)), make_scene(seed, split)))
        for seed in range(6)
        for split in ("train", "held_out")
    }
    assert len(shapes) == 1


@pytest.mark.parametrize(
    ("split", "allowed"),
    [("train", textures.TRAIN_PHOTOGRAPHS), ("held_out", textures.HELD_OUT_PHOTOGRAPHS)],
)
def test_a_split_shows_only_its_own_photographs(split, allowed, monkeypatch):
    shown = set()
    load = textures.load_photograph
    monkeypatch.setattr(textures, "load_photograph", lambda name: (shown.add(name), load(name))[1])
    for seed in range(8):
        make_scene(seed, split)
    assert shown
    assert shown <= set(allowed)


def test_rooms_hold_enough_things():
    boxes = [int((np.asarray(make_scene(s, "train").box_half)[:, 0] > 0).sum()) for s in range(20)]
    assert min(boxes) >= 3
    assert max(boxes) >= 12


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="validation"):
        make_scene(0, "validation")
    with pytest.raises(InputError, match="-1"):
        make_scene(-1, "train")
