import json
from pathlib import Path

import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.training.run_folder import open_folder, record_run


def test_a_folder_is_made_and_left_without_traces(tmp_path):
    out = open_folder(tmp_path / "a/b", resume=False)
    assert out == tmp_path / "a/b"
    assert list(out.iterdir()) == []


def test_what_cannot_be_a_run_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"gs://bucket/run: expected a folder; mount the bucket"):
        open_folder("gs://bucket/run", resume=False)
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(InputError, match="cannot be written to"):
            open_folder(out, resume=False)
    with pytest.raises(InputError, match="no checkpoint to resume from"):
        open_folder(tmp_path / "new", resume=True)
    (tmp_path / "run/checkpoints/30").mkdir(parents=True)
    with pytest.raises(InputError, match="holds a run of 30 steps"):
        open_folder(tmp_path / "run", resume=False)
    assert open_folder(tmp_path / "run", resume=True) == tmp_path / "run"


def test_a_resumed_run_agrees_with_what_it_was_started_with(tmp_path):
    given = {"stage": "memory", "steps": 10, "cache": [Path("clips")], "lora": None}
    record_run(tmp_path, given, fixed=("stage", "lora"), resume=False)
    said = json.loads((tmp_path / "run.json").read_text())
    assert said["arguments"] == {**given, "cache": ["clips"]}
    assert said["devices"] == 8
    record_run(tmp_path, {**given, "steps": 20}, fixed=("stage", "lora"), resume=True)
    assert json.loads((tmp_path / "run.json").read_text())["arguments"]["steps"] == 20
    with pytest.raises(InputError, match=r"--stage is 'camera', but the run in .* has 'memory'"):
        record_run(tmp_path, {**given, "stage": "camera"}, fixed=("stage",), resume=True)
    # A new run is its own.
    record_run(tmp_path, {**given, "stage": "camera"}, fixed=("stage",), resume=False)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        record_run(tmp_path, given, fixed=("stage",), resume=True)
