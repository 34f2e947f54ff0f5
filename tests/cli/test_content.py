"""Hashes tell content apart, wherever it lies and whatever holds it."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.cli.camera_paths import PresetPath
from worldstereo_jax.cli.content import content_hash


def test_equal_content_is_equal(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(b"content")
    assert content_hash(tmp_path / "a") == content_hash(tmp_path / "b")
    array = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    assert content_hash(array) == content_hash(jnp.asarray(array)) == content_hash(array.T.copy().T)
    assert content_hash(None) is None
    assert content_hash(1.0) == content_hash(np.float64(1.0))


def test_other_content_is_another(tmp_path):
    (tmp_path / "a").write_bytes(b"content")
    path = PresetPath("left", 1.0)
    values = [
        tmp_path / "a", "a", 1, 1.0, True, "1", [], [None], ["a", "b"], ["ab"], [["a"], "b"],
        np.zeros(4), np.zeros(4, np.float32), np.zeros((2, 2)), np.ones(4), path,
        dataclasses.replace(path, amplitude=2.0),
    ]  # fmt: skip
    assert len({content_hash(value) for value in values}) == len(values)
    with pytest.raises(TypeError, match="no hash of a set"):
        content_hash({1})
