"""Checkpoints from a hub on this machine: large files go on where they ended."""

import os
import subprocess
import sys
import time

import numpy as np
import pytest

from tests import toy_official as toy
from tests.interop.toy_hub import COMMIT, serving
from worldstereo_jax.errors import InputError
from worldstereo_jax.interop.hub import resolve
from worldstereo_jax.interop.identity import encoder_identity, model_identity
from worldstereo_jax.interop.official import official_from_params
from worldstereo_jax.interop.pretrained import from_pretrained

huggingface_hub = pytest.importorskip("huggingface_hub", reason="the hub extra is not installed")

WEIGHTS = "dmd/model.safetensors"


@pytest.fixture(scope="module")
def tensors():
    return toy.official_tensors()


@pytest.fixture(scope="module")
def repositories(tmp_path_factory, tensors):
    """A checkpoint in a folder beside another one, and a whole Wan model."""
    folder = tmp_path_factory.mktemp("repositories")
    toy.write_checkpoint(folder / "three/dmd", tensors, **toy.DMD)
    toy.write_checkpoint(folder / "three/camera", {"proj_out.bias": np.zeros(64)})
    toy.write_base(folder / "wan")
    toy.write_backbone(folder / "wan", tensors)
    return {"owner/three": folder / "three", "owner/wan": folder / "wan"}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    # What the client holds before it writes.
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)
    # It tries again after one second, two, four ...
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return tmp_path / "cache"


@pytest.fixture
def hub(repositories, cache, monkeypatch):
    from huggingface_hub import constants

    with serving(dict(repositories)) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE",
            hub.url + "/{repo_id}/resolve/{revision}/{filename}",
        )  # fmt: skip
        yield hub


def load(source):
    return from_pretrained(source, dtype=None, progress=False, scan_layers=False)


def refused(source, **options) -> str:
    with pytest.raises(InputError) as caught:
        resolve(source, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_an_interrupted_download_goes_on_where_it_ended(hub, cache, repositories, tensors):
    original = repositories["owner/three"] / WEIGHTS
    half = original.stat().st_size // 2048 * 1024
    hub.cut[WEIGHTS] = half
    with pytest.raises(InputError) as caught:
        load("owner/three/dmd")
    sentence = str(caught.value)
    assert f"owner/three: the download of {WEIGHTS} broke off after 50% of" in sentence
    assert "the next call goes on from there" in sentence
    assert "\n" not in sentence
    assert [p.stat().st_size for p in cache.rglob("*.partial")] == [half]

    hub.gone.clear()
    hub.requests.clear()
    model = load("owner/three/dmd")
    asked = [(path, bytes_) for method, path, bytes_ in hub.requests if method == "GET"]
    assert asked == [(WEIGHTS, f"bytes={half}-")]
    found = official_from_params(model.params, model.config)
    for name, array in tensors.items():
        np.testing.assert_array_equal(found[name], array)
    stored = cache / "models--owner--three/snapshots" / COMMIT / WEIGHTS
    assert stored.read_bytes() == original.read_bytes()
    assert not list(cache.rglob("*.partial"))

    # Nothing is downloaded twice.
    hub.requests.clear()
    load("owner/three/dmd")
    assert not hub.downloads()


def test_a_killed_process_loses_nothing(hub, cache, repositories):
    """The partial file of a process that was killed is as good as one that was closed."""
    original = (repositories["owner/three"] / WEIGHTS).read_bytes()
    code = (
        "import os, huggingface_hub.file_download as f; from worldstereo_jax.interop import hub\n"
        "def get(url, out, **_): out.write(open(os.environ['ORIGINAL'], 'rb').read()[:9999]); "
        "out.flush(); os.kill(os.getpid(), 9)\n"
        "f.http_get = get; hub.resolve('owner/three/dmd', patterns=['model*'])"
    )
    environment = {
        **os.environ, "HF_ENDPOINT": hub.url, "HF_HUB_CACHE": str(cache),
        "ORIGINAL": str(repositories["owner/three"] / WEIGHTS),
    }  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, timeout=60)
    assert done.returncode == -9
    folder = resolve("owner/three/dmd", patterns=["model*"])
    assert ("GET", WEIGHTS, "bytes=9999-") in hub.requests
    assert (folder / "model.safetensors").read_bytes() == original


def test_what_comes_wrong_is_not_kept(hub, cache, repositories):
    hub.spoilt.add(WEIGHTS)
    sentence = refused("owner/three/dmd", patterns=["model*"])
    assert f"owner/three: what came as {WEIGHTS} has not the hub's checksum" in sentence
    assert not [path for path in cache.rglob("*") if path.suffix == ".partial"]
    hub.spoilt.clear()
    folder = resolve("owner/three/dmd", patterns=["model*"])
    original = repositories["owner/three"] / WEIGHTS
    assert (folder / "model.safetensors").read_bytes() == original.read_bytes()


def test_only_the_files_needed_come_from_the_hub(hub):
    assert load("owner/three/dmd").config.control == toy.MODEL.control
    assert sorted(hub.downloads()) == ["dmd/config.json", WEIGHTS]
    hub.requests.clear()
    assert load("owner/wan").config.control is None
    files = ["config.json", "diffusion_pytorch_model.safetensors"]
    assert sorted(hub.downloads()) == [f"transformer/{file}" for file in files]
    assert refused("owner/three/x") == "owner/three/x: owner/three on the hub has no such folder"


def test_a_model_is_named_by_its_commit_without_its_weights(hub):
    assert model_identity("owner/three/dmd") == f"owner/three/dmd@{COMMIT}"
    assert encoder_identity("owner/wan") == f"owner/wan@{COMMIT}"
    assert encoder_identity("owner/three") is None
    assert not [name for name in hub.downloads() if name.endswith(".safetensors")]


def test_what_cannot_be_had_is_said_in_a_sentence(hub, cache, monkeypatch):
    assert refused("owner/absent") == (
        "owner/absent: no such folder, and the hub has no such repository, or it is private: check "
        "the name, or log in with hf auth login"
    )
    assert "has no revision v9" in refused("owner/three", revision="v9")
    hub.gated.add("owner/three")
    assert f"is gated: ask for access at {hub.url}/owner/three, then" in refused("owner/three")
    hub.gated.clear()
    folder = resolve("owner/three/dmd")
    # Nobody answers at this port any more; what the cache has is as good as ever.
    hub.shutdown()
    hub.server_close()
    assert resolve("owner/three/dmd") == folder
    assert "the hub cannot be reached (" in refused("owner/wan")
