import json
import os

import av
import jax.numpy as jnp
import pytest

from worldstereo_jax.cli.outputs import (
    RUN_FILE,
    check_output_folder,
    params_hash,
    results_folder,
    write_clip,
    write_run,
)
from worldstereo_jax.errors import InputError
from worldstereo_jax.sampling.official_conditions import Renders
from worldstereo_jax.sampling.official_rollout import OfficialClip
from worldstereo_jax.sampling.world import Cameras


def test_new_and_empty_folders_are_accepted(tmp_path):
    (tmp_path / "empty").mkdir()
    for name in ("new", "deep/er", "empty"):
        check_output_folder(tmp_path / name, overwrite=False)
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_results_are_replaced_only_when_asked_and_other_files_never(tmp_path):
    (tmp_path / "photo.jpg").write_text("mine")
    with pytest.raises(InputError, match="already holds files"):
        check_output_folder(tmp_path, overwrite=False)
    with pytest.raises(InputError, match="something else than an earlier run"):
        check_output_folder(tmp_path, overwrite=True)
    (tmp_path / RUN_FILE).write_text("{}")
    with pytest.raises(InputError, match="already holds files"):
        check_output_folder(tmp_path, overwrite=False)
    with pytest.raises(InputError, match=r"also holds photo\.jpg"):
        check_output_folder(tmp_path, overwrite=True)
    (tmp_path / "photo.jpg").unlink()
    check_output_folder(tmp_path, overwrite=True)


def test_a_run_replaces_the_clips_that_its_record_tells_of(tmp_path):
    for name in ("view0", "memory", "other"):
        (tmp_path / name).mkdir()
    record = tmp_path / RUN_FILE
    record.write_text(json.dumps({"clips": ["view0/traj0"]}))
    with pytest.raises(InputError, match="also holds other"):
        check_output_folder(tmp_path, overwrite=True)
    (tmp_path / "other").rmdir()
    check_output_folder(tmp_path, overwrite=True)
    for nonsense in ("[]", "{", '{"clips": 3}'):
        record.write_text(nonsense)
        with pytest.raises(InputError, match="no record of a run"):
            check_output_folder(tmp_path, overwrite=True)


def test_results_of_a_command_that_was_faster_stay(tmp_path):
    def run(*, overwrite: bool, faster: bool):
        with results_folder(tmp_path / "out", overwrite=overwrite) as folder:
            (folder / RUN_FILE).write_text("{}")
            if faster:
                run(overwrite=False, faster=False)
                (tmp_path / "out" / "video.mp4").write_text("of the other")

    with pytest.raises(InputError, match="already holds files"):
        run(overwrite=False, faster=True)
    assert (tmp_path / "out" / "video.mp4").read_text() == "of the other"
    run(overwrite=True, faster=False)
    assert [path.name for path in tmp_path.rglob("*")] == ["out", RUN_FILE]


def test_places_where_no_folder_can_be_made_are_refused(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is a file; expected a folder"):
        check_output_folder(tmp_path / "file", overwrite=True)
    with pytest.raises(InputError, match="file is a file"):
        check_output_folder(tmp_path / "file/out", overwrite=True)
    monkeypatch.setattr(os, "access", lambda path, mode: path != tmp_path)
    with pytest.raises(InputError, match="is not writable"):
        check_output_folder(tmp_path / "deep/out", overwrite=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for folder in (tmp_path, tmp_path / "here", tmp_path / "here/../here"):
        with pytest.raises(InputError, match="holds the current folder"):
            check_output_folder(folder, overwrite=True)


def test_all_videos_of_a_clip_run_at_the_rate_asked_for(tmp_path):
    frames = jnp.zeros((2, 16, 32, 3))
    clip = OfficialClip(
        video=frames, depth=frames[..., 0], views=None, inherited=frames[..., 0],
        cameras=Cameras(jnp.stack([jnp.eye(4)] * 2), jnp.stack([jnp.eye(3)] * 2)),
        guidance=Renders(frames, frames[..., 0], frames[..., 0]),
    )  # fmt: skip
    for options, rate in (({}, 6), ({"frames_per_second": 16}, 16)):
        write_clip(tmp_path, clip, "title", **options)
        for name in ("video", "render", "render_mask"):
            with av.open(str(tmp_path / f"{name}.mp4")) as container:
                assert container.streams.video[0].average_rate == rate


def test_the_hash_tells_models_apart_by_values_names_and_nothing_else():
    params = {"a": {"kernel": jnp.arange(4.0)}, "b": jnp.ones(2)}
    assert params_hash(params) == params_hash({"b": jnp.ones(2), "a": dict(params["a"])})
    assert params_hash(params) != params_hash({**params, "b": jnp.zeros(2)})
    assert params_hash(params) != params_hash({"a": params["a"], "c": jnp.ones(2)})
    assert len(params_hash(params)) == 64


def test_run_json_tells_arguments_versions_and_devices(tmp_path):
    write_run(tmp_path, "generate", {"arguments": {"out": tmp_path}, "seed": 3})
    record = json.loads((tmp_path / RUN_FILE).read_text())
    assert record["command"] == "worldstereo generate"
    assert record["arguments"] == {"out": str(tmp_path)}
    assert record["seed"] == 3
    assert {"jax", "numpy", "worldstereo_jax", "python"} <= record["versions"].keys()
    assert record["devices"]
