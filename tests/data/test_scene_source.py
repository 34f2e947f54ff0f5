import grain
import numpy as np
import pytest

from worldstereo_jax.data.scene_layouts import make_scene
from worldstereo_jax.data.scene_source import LongWorlds, SceneClips, render_clip
from worldstereo_jax.data.scene_trajectories import sample_revisit, sample_trajectory
from worldstereo_jax.errors import InputError


def _small(seeds: range, split: str = "train") -> SceneClips:
    return SceneClips(seeds, split=split, frames=3, height=24, width=40)


def test_items_have_both_clips_and_do_not_depend_on_order():
    source = _small(range(10, 14))
    again = _small(range(12, 14))
    assert len(source) == 4
    _ = source[0]
    item, same = source[2], again[0]
    assert set(item) == set(same)
    for name in item:
        np.testing.assert_array_equal(item[name], same[name])
    assert item["seed"] == 12
    for prefix in ("", "revisit_"):
        assert item[f"{prefix}image"].shape == (3, 24, 40, 3)
        assert item[f"{prefix}depth"].shape == (3, 24, 40)
        assert item[f"{prefix}normal"].shape == (3, 24, 40, 3)
        assert item[f"{prefix}w2c"].shape == (3, 4, 4)
        assert item[f"{prefix}intrinsics"].shape == (3, 3, 3)
        assert np.abs(item[f"{prefix}image"]).max() <= 1
        assert item[f"{prefix}depth"].min() > 0
    # Both clips start from one photograph.
    np.testing.assert_array_equal(item["image"][0], item["revisit_image"][0])
    assert np.abs(item["image"][2] - item["revisit_image"][2]).mean() > 0.01


def test_an_item_is_its_scene_rendered():
    item = _small(range(3, 4), split="held_out")[0]
    scene = make_scene(3, "held_out")
    _, second, k = sample_revisit(3, scene, 3, height=24, width=40)
    clip = render_clip(scene, second, k, height=24, width=40)
    np.testing.assert_array_equal(item["revisit_w2c"], clip["w2c"])
    np.testing.assert_allclose(item["revisit_depth"], clip["depth"], rtol=1e-5)


def test_grain_batches_the_source():
    source = _small(range(4))
    batches = list(grain.MapDataset.source(source).shuffle(seed=0).batch(2))
    assert len(batches) == 2
    assert batches[0]["image"].shape == (2, 3, 24, 40, 3)
    assert sorted(int(s) for batch in batches for s in batch["seed"]) == [0, 1, 2, 3]

    sampler = grain.samplers.IndexSampler(4, shuffle=False, num_epochs=1, seed=0)
    loader = grain.DataLoader(
        data_source=source, sampler=sampler, operations=[grain.transforms.Batch(2)]
    )
    np.testing.assert_array_equal(next(iter(loader))["seed"], [0, 1])


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="seeds"):
        SceneClips(range(0))
    with pytest.raises(IndexError):
        _small(range(2))[2]


def test_long_worlds_hold_different_paths_from_one_first_view():
    source = LongWorlds(range(5, 7), paths=3, frames=3, height=24, width=40)
    assert len(source) == 2
    item = source[0]
    assert item["image"].shape == (3, 3, 24, 40, 3)
    assert item["intrinsics"].shape == (3, 3, 3, 3)
    for path in (1, 2):
        np.testing.assert_array_equal(item["image"][path, 0], item["image"][0, 0])
        assert np.abs(item["w2c"][path, 2] - item["w2c"][0, 2]).max() > 0.05
    w2c, _ = sample_trajectory(5 * 3 + 1, make_scene(5, "train"), 3, height=24, width=40)
    np.testing.assert_array_equal(item["w2c"][1], w2c)
    with pytest.raises(InputError, match="long worlds"):
        LongWorlds(range(2), paths=0)
