"""From posed video to a trained checkpoint by the two commands, at toy size."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments import build_official_cache, train_official
from tests import toy_official as toy
from worldstereo_jax.data.video_io import write_video
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.lora_files import FILE
from worldstereo_jax.interop.official import official_from_params
from worldstereo_jax.interop.pretrained import from_pretrained
from worldstereo_jax.interop.safetensors_io import SafetensorsFile, write_safetensors
from worldstereo_jax.training.clip_cache import ClipCache
from worldstereo_jax.training.loop import read_log
from worldstereo_jax.training.official_fields import read_negative_text, read_null_text

FRAMES, HEIGHT, WIDTH = 12, toy.HEIGHT, toy.WIDTH
ON_SURFACE = ("--reference-positions", "surface")


def build_cache(weights: Path, videos: Path, out: Path, *arguments: object) -> None:
    command(
        build_official_cache, "--clips", videos, "--model", weights / "model", "--out", out,
        "--size", f"{HEIGHT}x{WIDTH}", "--windows", 2, "--views", 2, *arguments,
    )  # fmt: skip


def command(module, *arguments: object) -> None:
    module.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    toy.write_base(folder / "base")
    toy.write_checkpoint(folder / "model", toy.official_tensors(), base_model=str(folder / "base"))
    return folder


@pytest.fixture(scope="module")
def cache(weights, tmp_path_factory) -> Path:
    """Two clips of one video of a wall, with depth and a caption; and the places of tokens."""
    folder = tmp_path_factory.mktemp("clips")
    clip = folder / "videos/wall"
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    phase = np.arange(FRAMES)[:, None, None] / 3
    waves = [np.sin(x / 5 + phase), np.cos(y / 4 + phase), np.sin(x / 3 + y + phase)]
    write_video(clip / "video.mp4", np.stack(waves, -1).astype(np.float32))
    k = np.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]], np.float32)
    path = make_path("right", FRAMES, amplitude=0.5)
    write_cameras_json(clip / "cameras.json", path, np.stack([k] * FRAMES), (HEIGHT, WIDTH))
    np.savez(clip / "depth.npz", depth=np.full((FRAMES, HEIGHT, WIDTH), 3, np.float16))
    (clip / "prompt.json").write_text(json.dumps({"prompt": "a wall"}))
    overlap = ("--overlap", 0.1, 1.0)
    build_cache(weights, folder / "videos", folder / "cache", *overlap, *ON_SURFACE)
    return folder / "cache"


def train_in(weights: Path, cache: Path, out: Path, *arguments: object) -> None:
    command(
        train_official, "--cache", cache, "--model", weights / "model", "--out", out, "--batch", 8,
        "--dtype", "float32", "--export-dtype", "float32", "--learning-rate", 1e-2, "--warmup", 1,
        "--log-every", 1, "--save-every", 1, "--remat", "none", *arguments,
    )  # fmt: skip


def train(weights: Path, cache: Path, out: Path, *arguments: object) -> dict[str, np.ndarray]:
    """The tensors after two steps of the memory stage, references on the surface."""
    train_in(weights, cache, out, "--stage", "memory", *ON_SURFACE, "--steps", 2, *arguments)
    return dict(SafetensorsFile(out / "worldstereo/model.safetensors"))


@pytest.fixture(scope="module")
def run(weights, cache, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "whole"
    held_out = ("--held-out", *[cache] * 4, "--evaluate-every", 1)
    train(weights, cache, folder, *held_out)
    return folder


@pytest.fixture(scope="module")
def trained(run) -> dict[str, np.ndarray]:
    return dict(SafetensorsFile(run / "worldstereo/model.safetensors"))


@pytest.mark.slow
def test_video_becomes_clips_and_clips_a_checkpoint(cache, run, trained):
    assert len(ClipCache(cache)) == 2
    # Of the empty prompt and of the checkpoint's negative one.
    assert np.abs(read_null_text(cache) - read_negative_text(cache)).max() > 0
    start = toy.official_tensors()
    for name, array in trained.items():
        frozen = ".attn2." in name
        assert np.array_equal(array, start[name]) == frozen, name
    log = read_log(run / "log.jsonl")
    assert [r["step"] for r in log] == [1, 2]
    # The same clips as in training, and the average follows.
    assert log[1]["held_out_loss"] < log[0]["held_out_loss"]
    assert log[1]["held_out_loss"] != log[1]["held_out_loss_without_memory"]
    assert (run / "curves.png").is_file()
    loaded = from_pretrained(run / "worldstereo", progress=False)
    assert loaded.settings.frames == toy.FRAMES
    assert loaded.config.reference_positions == "surface"


def test_documented_batches_fit_their_meshes():
    root, found = Path(__file__).parents[2], []
    for source in ("README.md", *(f"experiments/{x}_official.py" for x in ("train", "distill"))):
        text = (root / source).read_text().replace("\\\n", " ")
        pattern = r"--batch (\d+)(?: +--accumulate (\d+))? +--mesh (\S*=\d\S*)"
        found += [(source, *each) for each in re.findall(pattern, text)]
    assert len(found) >= 6
    for source, batch, parts, mesh in found:
        sizes = dict(part.split("=") for part in mesh.split(","))
        at_once = int(sizes.get("data", 1)) * int(sizes.get("fsdp", 1)) * int(parts or 1)
        assert int(batch) % at_once == 0, (source, batch, parts, mesh)


def test_a_run_is_not_resumed_as_another(weights, cache, run, capsys):
    with pytest.raises(SystemExit):
        train_in(weights, cache, run, "--stage", "camera", "--steps", 3, "--resume")
    assert "--stage is 'camera', but the run in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_in(weights, cache, run, "--stage", "memory", "--steps", 3, "--resume")
    assert "--reference-positions is None, but the run in" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        train_in(weights, cache, run, "--stage", "memory", "--steps", 3)
    assert "holds a run of 2 steps; go on with it by --resume" in capsys.readouterr().err


def test_a_finished_run_is_resumed_on_a_mesh_and_written_again_to_the_bit(
    weights, cache, run, trained, tmp_path
):
    """Its arrays lie split over devices then; `train` itself is tested to resume."""
    shutil.copytree(run, tmp_path / "again")
    (tmp_path / "again/worldstereo/model.safetensors").unlink()
    again = train(weights, cache, tmp_path / "again", "--resume", "--mesh", "data=2,fsdp=4")
    assert set(again) == set(trained)
    for name, array in trained.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.slow
@pytest.mark.row("S18")
@pytest.mark.row("S28")
def test_a_published_checkpoint_learns_to_read_the_memory(weights, cache, tmp_path, capsys):
    """Modules are attached and train; all tensors that were there stay, and the file says so."""
    videos, stereo = cache.parent / "videos", tmp_path / "cache"
    build_cache(weights, videos, stereo, "--stereo")
    fields = ClipCache(stereo)[0]
    assert fields["warped.features"].shape == (5, 4, 6, 2, 17)
    assert fields["entries.features"].shape == (30, 90)
    out = tmp_path / "out"
    train_in(weights, stereo, out, "--stage", "stereo", "--steps", 2)
    assert "tensors are in no official checkpoint: blocks.*.entry_attn" in capsys.readouterr().out
    found = dict(SafetensorsFile(out / "worldstereo/model.safetensors"))
    start = toy.official_tensors()
    for name, array in start.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    loaded = from_pretrained(out / "worldstereo", progress=False)
    assert set(loaded.added) == set(found) - set(start)
    assert (loaded.config.warped_width, loaded.config.entry_width) == (17, 90)
    # The zeros that it began with have moved.
    assert all(found[name].any() for name in loaded.added if "to_out" in name)
    (out / "worldstereo/model.safetensors").unlink()
    train_in(weights, stereo, out, "--stage", "stereo", "--steps", 2, "--resume")
    again = dict(SafetensorsFile(out / "worldstereo/model.safetensors"))
    for name, array in found.items():
        np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.slow
def test_adapters_are_resumed_to_the_bit_and_merged_as_they_were_trained(weights, cache, tmp_path):
    """Of a finished run, as above; merged by the loader they are what was trained."""

    def adapters(name: str, *arguments: object) -> dict[str, np.ndarray]:
        given = ("--lora", 2, "--lora-alpha", 4, "--steps", 2, *arguments)
        train_in(weights, cache, tmp_path / name, *given)
        return dict(SafetensorsFile(tmp_path / name / FILE))

    whole = adapters("whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "again")
    (tmp_path / "again" / FILE).unlink()
    again = adapters("again", "--resume")
    assert set(whole) == set(again)
    for name, array in whole.items():
        assert array.any(), name
        np.testing.assert_array_equal(again[name], array, err_msg=name)
    start, merged = toy.official_tensors(), {}
    for scale in (0.0, 1.0):
        loaded = from_pretrained(
            weights / "model", dtype="float32", lora=tmp_path / "whole" / FILE, lora_scale=scale,
            progress=False,
        )  # fmt: skip
        merged[scale] = official_from_params(loaded.params, loaded.config)
    for name, array in start.items():
        np.testing.assert_array_equal(merged[0.0][name], array)
        module = f"transformer.{name.removesuffix('.weight')}"
        if f"{module}.lora_A.weight" not in whole:
            np.testing.assert_array_equal(merged[1.0][name], array)
            continue
        down, up = (whole[f"{module}.lora_{half}.weight"] for half in "AB")
        np.testing.assert_allclose(merged[1.0][name], array + up @ down, atol=1e-6)


@pytest.mark.slow
def test_adapters_of_8_bit_weights_go_on_from_where_they_stopped_to_the_bit(
    weights, cache, tmp_path
):
    given = ("--lora", 2, "--weights", "int8", "--steps", 2, "--accumulate", 2)
    train_in(weights, cache, tmp_path / "whole", *given)
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    (tmp_path / "cut" / FILE).unlink()
    shutil.rmtree(tmp_path / "cut/checkpoints/2")
    train_in(weights, cache, tmp_path / "cut", *given, "--resume")
    whole, resumed = (dict(SafetensorsFile(tmp_path / x / FILE)) for x in ("whole", "cut"))
    for name, array in whole.items():
        assert array.any(), name
        np.testing.assert_array_equal(resumed[name], array, err_msg=name)


def test_what_does_not_fit_is_refused_in_a_sentence(weights, cache, tmp_path, capsys):
    def refused(*arguments: object, module=train_official) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            command(module, *arguments)
        assert ended.value.code == 2
        return capsys.readouterr().err.splitlines()[-1]

    given = ("--model", weights / "model", "--out", tmp_path / "out")
    training = ("--stage", "memory", "--steps", 1)
    assert "--accumulate is 3, expected a divisor of --batch 8" in refused(
        "--cache", cache, *given, *training, "--accumulate", 3
    )
    assert "2 clips are held out, expected a batch of 8" in refused(
        "--cache", cache, *given, *training, "--held-out", cache
    )
    assert "--attach is for --stage" in refused(
        "--cache", cache, *given, "--lora", 2, "--steps", 1, "--attach", "warped"
    )
    assert "hold neither warped views nor entries; build their cache again with --stereo" in (
        refused("--cache", cache, *given, "--stage", "stereo", "--steps", 1)
    )
    assert "lack what a model of warped_width 17 reads" in refused(
        "--cache", cache, *given, *training, "--attach", "warped"
    )
    assert "--reference-positions is for --stage: a file of adapters names none" in refused(
        "--cache", cache, *given, "--lora", 2, "--steps", 1, *ON_SURFACE
    )
    for stage in ("camera", "stereo"):
        assert f"the stage {stage} does not train attention to references" in refused(
            "--cache", cache, *given, "--stage", stage, "--steps", 1, *ON_SURFACE
        )
    assert "--from-lora is for --lora" in refused(
        "--cache", cache, *given, *training, "--from-lora", "a.safetensors"
    )
    adapter = tmp_path / "lora.safetensors"
    name = "blocks.0.attn1.to_q.lora"
    factors = {f"{name}_A.weight": np.ones((2, 24)), f"{name}_B.weight": np.ones((24, 2))}
    write_safetensors(adapter, factors)
    assert "choose the same modules" in refused(
        "--cache", cache, *given, "--lora", 2, "--steps", 1, "--from-lora", adapter
    )
    other = tmp_path / "cache"
    shutil.copytree(cache, other)
    index = json.loads((other / "cache.json").read_text())
    del index["recipe"]["reference_positions"]
    (other / "cache.json").write_text(json.dumps(index))
    assert "build their cache again with --reference-positions surface" in refused(
        "--cache", other, *given, *training, *ON_SURFACE
    )
    index["recipe"]["text_width"] = 4096
    (other / "cache.json").write_text(json.dumps(index))
    assert "made for a model of text_width 4096, this one has 6" in refused(
        "--cache", other, *given, *training
    )
    index["recipe"] = {"scenes": 4}
    (other / "cache.json").write_text(json.dumps(index))
    assert "holds no clips of official models" in refused("--cache", other, *given, *training)
    shutil.copy(cache / "cache.json", other)
    (other / "null_text.npy").unlink()
    assert "null_text.npy is missing" in refused("--cache", other, *given, *training)

    videos = cache.parent / "videos"
    bare = tmp_path / "videos"
    shutil.copytree(videos, bare)
    (bare / "wall/depth.npz").unlink()
    build = ("--clips", bare, "--model", weights / "model", "--out", tmp_path / "new", "--size")
    assert "has no depth; add it, or give --depth-model" in refused(
        *build, "32x48", module=build_official_cache
    )
    unknown = np.zeros((FRAMES, HEIGHT, WIDTH), np.float16)
    np.savez(bare / "wall/depth.npz", depth=unknown)
    assert "the first frame of a clip has no depth" in refused(
        *build, "32x48", module=build_official_cache
    )
    assert "expected multiples of 16" in refused(*build, "30x48", module=build_official_cache)
    build = ("--clips", videos, *build[2:], "32x48", "--overlap")
    assert "--overlap must be two shares of 1, the lower first" in refused(
        *build, 0.9, 0.3, module=build_official_cache
    )
    assert "no clip overlaps so" in refused(*build, 0.0, 0.01, module=build_official_cache)
    assert "--overlap and --camera-format are for --clips" in refused(
        "--procedural", 1, *build[2:], 0.3, 0.9, module=build_official_cache
    )
