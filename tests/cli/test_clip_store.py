"""Finished clips on disk: the same to the bit, and none of another run."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.cli.clip_store import ClipStore
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, write_safetensors
from worldstereo_jax.memory.entry_points import POINT_CONFIDENCE
from worldstereo_jax.sampling.official_conditions import ChosenViews, Renders
from worldstereo_jax.sampling.official_rollout import OfficialClip
from worldstereo_jax.sampling.world import Cameras

RUN = {"seed": 3, "size": (4, 6), "model": {"checkpoint": "a"}}


@pytest.fixture
def clip():
    rng = np.random.default_rng(0)

    def normal(*shape):
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return OfficialClip(
        video=normal(2, 4, 6, 3),
        depth=normal(2, 4, 6),
        cameras=Cameras(w2c=normal(2, 4, 4), intrinsics=normal(2, 3, 3)),
        guidance=Renders(normal(2, 4, 6, 3), normal(2, 4, 6), normal(2, 4, 6)),
        views=ChosenViews(jnp.array([3]), jnp.array([1]), jnp.array([True])),
        inherited=normal(2, 4, 6),
    )


def test_a_clip_comes_back_to_the_bit(tmp_path, clip):
    store = ClipStore(tmp_path / "clips", RUN)
    assert store.read("view0/traj1") is None
    store.write("view0/traj1", clip)
    found = ClipStore(tmp_path / "clips", RUN).read("view0/traj1")
    assert jax.tree.structure(found) == jax.tree.structure(clip)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(clip), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert store.read("") is None


def test_in_a_clip_from_before_all_that_the_memory_knew_was_read(tmp_path, clip):
    store = ClipStore(tmp_path, RUN)
    store.write("", clip)
    path = tmp_path / "clip.safetensors"
    file = SafetensorsFile(path)
    old = {name: np.asarray(file[name]) for name in file if name != "inherited"}
    write_safetensors(path, old, file.metadata)
    found = store.read("")
    assert found is not None
    expected = np.where(np.asarray(clip.guidance.depth) > 0, POINT_CONFIDENCE, 0.0)
    np.testing.assert_allclose(found.inherited, expected)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"seed": 4}, "made with seed 3, this run has 4; choose another --clips folder"),
        ({"model": {"checkpoint": "b"}}, "made with model checkpoint 'a', this run has 'b'"),
        ({"depth": "1f" * 32}, "made with depth none, this run has 1f1f1f1f1f1f; choose"),
        ({"prompt": {"": "a boat"}}, "made with prompt 'a tree', this run has 'a boat'"),
    ],
)
def test_clips_of_another_run_are_refused(tmp_path, clip, change, said):
    run = {**RUN, "prompt": {"": "a tree"}, "depth": None}
    ClipStore(tmp_path, run).write("", clip)
    ClipStore(tmp_path, run).check(["", "view0/traj1"])
    for read in (lambda store: store.read(""), lambda store: store.check([""])):
        with pytest.raises(InputError) as refusal:
            read(ClipStore(tmp_path, {**run, **change}))
        assert said in str(refusal.value)


def test_what_a_run_no_longer_tells_differs_too(tmp_path, clip):
    ClipStore(tmp_path, RUN).write("", clip)
    with pytest.raises(InputError, match="made with seed 3, this run has none"):
        ClipStore(tmp_path, {"size": RUN["size"], "model": RUN["model"]}).read("")


def test_other_files_are_refused(tmp_path):
    write_safetensors(tmp_path / "clip.safetensors", {"video": np.zeros(3, np.float32)})
    with pytest.raises(InputError, match="holds no finished clip"):
        ClipStore(tmp_path, RUN).read("")
