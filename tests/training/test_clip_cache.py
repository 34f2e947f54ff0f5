import json
import pickle

import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.training.batches import Batches
from worldstereo_jax.training.clip_cache import ClipCache, ClipCacheWriter, cached_batches

_RECIPE = {"seed": 0, "size": (96, 160)}


def _clip(number: int) -> dict[str, np.ndarray]:
    return {
        "target": np.full((2, 3), number, np.float16),
        "geometry.depth": np.full((4,), number / 2, np.float32),
        "enabled": np.asarray(number % 2 == 0),
    }


def _filled(folder, count: int, capacity: int = 8) -> ClipCacheWriter:
    writer = ClipCacheWriter(folder, capacity, _clip(0), _RECIPE)
    for number in range(writer.written, count):
        writer.append(_clip(number))
    return writer


def test_clips_come_back_as_written(tmp_path):
    _filled(tmp_path / "cache", 3)
    cache = ClipCache(tmp_path / "cache")
    assert len(cache) == 3
    for number in range(3):
        found, expected = cache[number], _clip(number)
        assert found.keys() == expected.keys()
        for name, array in expected.items():
            assert found[name].dtype == array.dtype
            np.testing.assert_array_equal(found[name], array)
    with pytest.raises(IndexError):
        cache[3]  # allocated, but never written


def test_an_interrupted_cache_is_continued_where_it_stopped(tmp_path):
    writer = _filled(tmp_path, 3)
    # A clip written without its index counts as not written.
    writer.fields["target"][3] = 99
    del writer
    again = ClipCacheWriter(tmp_path, 8, _clip(0), _RECIPE)
    assert again.written == 3
    assert len(ClipCache(tmp_path)) == 3
    again.written -= 1
    for number in (2, 3):
        again.append(_clip(number))
    cache = ClipCache(tmp_path)
    assert [float(cache[i]["target"][0, 0]) for i in range(len(cache))] == [0, 1, 2, 3]


def test_a_clip_that_could_not_be_indexed_is_not_there(tmp_path, monkeypatch):
    writer = _filled(tmp_path, 2)
    monkeypatch.setattr(json, "dumps", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.append(_clip(2))
    monkeypatch.undo()
    assert len(ClipCache(tmp_path)) == 2
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"cache.json", "target.npy", "geometry.depth.npy", "enabled.npy"}


@pytest.mark.parametrize(
    ("capacity", "recipe", "example", "named"),
    [
        (8, {"seed": 1, "size": (96, 160)}, _clip(0), "recipe"),
        (9, _RECIPE, _clip(0), "capacity"),
        (8, _RECIPE, {**_clip(0), "target": np.zeros((2, 4), np.float16)}, "fields"),
        (8, _RECIPE, {**_clip(0), "target": np.zeros((2, 3), np.float32)}, "fields"),
        (8, _RECIPE, {"target": np.zeros((2, 3), np.float16)}, "fields"),
    ],
)
def test_another_recipe_or_form_is_refused_and_harms_nothing(
    tmp_path, capacity, recipe, example, named
):
    _filled(tmp_path, 2)
    with pytest.raises(InputError, match=named):
        ClipCacheWriter(tmp_path, capacity, example, recipe)
    assert len(ClipCache(tmp_path)) == 2
    np.testing.assert_array_equal(ClipCache(tmp_path)[1]["target"], _clip(1)["target"])


def test_clips_of_another_form_and_too_many_are_refused(tmp_path):
    writer = _filled(tmp_path, 1, capacity=2)
    with pytest.raises(InputError, match="'target'"):
        # Would broadcast into the array unnoticed.
        writer.append({**_clip(1), "target": np.zeros((3,), np.float16)})
    with pytest.raises(InputError, match="'enabled'"):
        writer.append({k: v for k, v in _clip(1).items() if k != "enabled"})
    with pytest.raises(InputError, match="'more'"):
        writer.append({**_clip(1), "more": np.zeros(1)})
    writer.append(_clip(1))
    with pytest.raises(InputError, match="full"):
        writer.append(_clip(2))
    assert len(ClipCache(tmp_path)) == 2


def test_damaged_caches_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"cache\.json is missing"):
        ClipCache(tmp_path)
    _filled(tmp_path, 2)
    array = tmp_path / "target.npy"
    whole = array.read_bytes()
    array.write_bytes(whole[:140])
    with pytest.raises(InputError, match=r"target\.npy is missing or damaged"):
        ClipCache(tmp_path)
    array.unlink()
    with pytest.raises(InputError, match=r"target\.npy is missing or damaged"):
        ClipCacheWriter(tmp_path, 8, _clip(0), _RECIPE)
    array.write_bytes(whole)
    index = json.loads((tmp_path / "cache.json").read_text())
    (tmp_path / "cache.json").write_text(json.dumps({**index, "version": 2}))
    with pytest.raises(InputError, match="version 2, expected 1"):
        ClipCache(tmp_path)
    del index["recipe"]
    (tmp_path / "cache.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="no field 'recipe'"):
        ClipCache(tmp_path)
    (tmp_path / "cache.json").write_text("{")
    with pytest.raises(InputError, match="not valid JSON"):
        ClipCache(tmp_path)


def test_a_pickled_cache_is_small_and_reads_the_same(tmp_path):
    _filled(tmp_path, 8)
    cache = ClipCache(tmp_path)
    data = pickle.dumps(cache)
    assert len(data) < 1000
    np.testing.assert_array_equal(pickle.loads(data)[5]["target"], cache[5]["target"])


def _numbers(batch: dict[str, np.ndarray]) -> list[float]:
    return [float(value) for value in batch["target"][:, 0, 0]]


def test_batches_are_a_function_of_the_seed(tmp_path):
    _filled(tmp_path, 8)
    source = ClipCache(tmp_path)

    def epochs(seed: int) -> list[list[float]]:
        batches = cached_batches([source], 4, seed)
        flat = [n for _ in range(6) for n in _numbers(next(batches))]
        return [flat[i : i + 8] for i in range(0, 24, 8)]

    first = epochs(0)
    assert first == epochs(0)
    assert first != epochs(1)
    for epoch in first:
        assert sorted(epoch) == list(range(8))
    assert first[0] != first[1]


@pytest.mark.parametrize("rows", [None, (0,)])
def test_batches_of_one_clip(tmp_path, rows):
    _filled(tmp_path, 3)
    batches = cached_batches([ClipCache(tmp_path)], 1, 0, rows=rows)
    assert sorted(_numbers(next(batches))[0] for _ in range(3)) == [0, 1, 2]


def test_hosts_read_their_rows_of_the_same_batches(tmp_path):
    _filled(tmp_path, 8)
    source = ClipCache(tmp_path)
    whole = cached_batches([source], 6, 5)
    rows = [(0, 3), (1, 2, 5), (4,)]
    hosts = [cached_batches([source], 6, 5, rows=own) for own in rows]
    for step in range(5):
        expected = _numbers(next(whole))
        for own, host in zip(rows, hosts, strict=True):
            assert _numbers(next(host)) == [expected[row] for row in own]
        if step == 2:
            # A position is that of the batch, on any host.
            again = cached_batches([source], 6, 5, rows=rows[1])
            again.set_state(hosts[1].get_state())
            hosts[1] = again


def test_a_restored_position_goes_on_as_the_unbroken_run(tmp_path):
    _filled(tmp_path, 7)
    source = ClipCache(tmp_path)
    unbroken = cached_batches([source], 2, 3)
    assert isinstance(unbroken, Batches)
    for _ in range(5):
        next(unbroken)
    state = unbroken.get_state()
    rest = [_numbers(next(unbroken)) for _ in range(6)]
    resumed = cached_batches([source], 2, 3)
    # What a checkpoint holds has gone through JSON.
    resumed.set_state(json.loads(json.dumps(state)))
    assert [_numbers(next(resumed)) for _ in range(6)] == rest


def test_a_position_in_another_order_is_refused(tmp_path):
    writer = _filled(tmp_path, 7)
    source = ClipCache(tmp_path)
    state = cached_batches([source], 2, 3).get_state()
    with pytest.raises(InputError, match="seed: the checkpoint's data has 3, this run 4"):
        cached_batches([source], 2, 4).set_state(state)
    with pytest.raises(InputError, match="batch: the checkpoint's data has 2, this run 1"):
        cached_batches([source], 1, 3).set_state(state)
    # A cache that has grown is shuffled in another way.
    writer.append(_clip(7))
    with pytest.raises(InputError, match=r"clips: the checkpoint's data has \[7\], this run \[8\]"):
        cached_batches([ClipCache(tmp_path)], 2, 3).set_state(state)


def test_several_caches_are_one(tmp_path):
    _filled(tmp_path / "a", 5)
    writer = ClipCacheWriter(tmp_path / "b", 4, _clip(0), _RECIPE)
    for number in (5, 6, 7):
        writer.append(_clip(number))
    batches = cached_batches([ClipCache(tmp_path / "a"), ClipCache(tmp_path / "b")], 4, 0)
    seen = [n for _ in range(2) for n in _numbers(next(batches))]
    assert sorted(seen) == list(range(8))
