import json
import struct

import jax.numpy as jnp
import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.interop import weights
from worldstereo_jax.interop.weights import (
    check_safetensors,
    count_parameters,
    load_weights,
    save_weights,
)

PARAMS = {
    "block": {"kernel": jnp.linspace(-2.0, 2.0, 24).reshape(2, 3, 4), "bias": jnp.zeros(4)},
    "steps": jnp.arange(3),
}
METADATA = {"model": "toy", "config": {"widths": [1, 2], "scale": 0.5}}


def test_round_trip_keeps_tree_values_and_metadata(tmp_path):
    save_weights(tmp_path / "w.safetensors", PARAMS, METADATA)
    params, metadata = load_weights(tmp_path / "w.safetensors")
    assert metadata == METADATA
    assert set(params) == {"block", "steps"}
    np.testing.assert_array_equal(params["block"]["kernel"], PARAMS["block"]["kernel"])
    assert params["steps"].dtype == jnp.int32
    assert count_parameters(params) == 24 + 4 + 3


def test_bfloat16_halves_the_file_and_rounds_once(tmp_path):
    big = {"kernel": jnp.linspace(-2.0, 2.0, 5000)}
    save_weights(tmp_path / "full.safetensors", big, {})
    save_weights(tmp_path / "half.safetensors", big, {}, dtype=jnp.bfloat16)
    full, half = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("full", "half"))
    assert full - half == 2 * 5000
    params, _ = load_weights(tmp_path / "half.safetensors")
    assert params["kernel"].dtype == jnp.float32
    np.testing.assert_array_equal(params["kernel"], big["kernel"].astype(jnp.bfloat16))


@pytest.mark.parametrize("keep", [0, 5, 60, -1])
def test_truncated_file_is_named(tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    save_weights(path, PARAMS, METADATA)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(InputError, match=r"cut\.safetensors: truncated"):
        load_weights(path)


def test_longer_file_and_other_formats_are_refused(tmp_path):
    path = tmp_path / "long.safetensors"
    save_weights(path, PARAMS, METADATA)
    path.write_bytes(path.read_bytes() + b"xx")
    with pytest.raises(InputError, match=r"long\.safetensors"):
        load_weights(path)
    (tmp_path / "text.safetensors").write_text("no weights at all, just words and more words")
    with pytest.raises(InputError, match=r"text\.safetensors"):
        load_weights(tmp_path / "text.safetensors")


@pytest.mark.parametrize("header", [b"[1, 2]", b"{not json", b'{"a": {"dtype": "F32"}}'])
def test_unreadable_header_is_refused(tmp_path, header):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(InputError, match="header"):
        check_safetensors(path)


def test_header_alone_is_read(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, PARAMS, METADATA)
    assert check_safetensors(path) == METADATA
    # The format itself only knows strings; each of ours is JSON.
    length = struct.unpack("<Q", path.read_bytes()[:8])[0]
    stored = json.loads(path.read_bytes()[8 : 8 + length])["__metadata__"]
    assert json.loads(stored["config"]) == METADATA["config"]


def test_missing_file_says_what_to_do(tmp_path, monkeypatch):
    with pytest.raises(InputError, match=r"none\.safetensors: no such"):
        load_weights(tmp_path / "none.safetensors")
    monkeypatch.setattr(weights, "SHIPPED_WEIGHTS", tmp_path)
    with pytest.raises(InputError, match=r"none\.safetensors.*reinstall"):
        load_weights(tmp_path / "none.safetensors")


def test_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(path, PARAMS, METADATA)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_weights(path, PARAMS, {"bad": object()})
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["w.safetensors"]
