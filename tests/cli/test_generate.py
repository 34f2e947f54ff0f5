"""The whole command, from files to files, with the weights that ship."""

import json
import types
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image
from plyfile import PlyData

from tests.posed_cameras import random_cameras
from worldstereo_jax.cli import generate
from worldstereo_jax.cli.main import main
from worldstereo_jax.data import images, video_io
from worldstereo_jax.data.scene_source import SceneClips
from worldstereo_jax.geometry.camera_formats import write_cameras
from worldstereo_jax.geometry.camera_io import read_camera_json
from worldstereo_jax.geometry.cameras import camera_centers
from worldstereo_jax.geometry.scene_unit import middle_depth
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.memory.folder import load_memory
from worldstereo_jax.sampling.world import RolloutConfig, empty_memory

pytestmark = pytest.mark.usefixtures("optimised")

_FILES = {
    "agreement.png",
    "video.mp4",
    "contact_sheet.png",
    "render.mp4",
    "render_mask.mp4",
    "points.ply",
    "surface.ply",
    "cameras.json",
    "memory",
    "run.json",
}


def _generate(*arguments: object) -> None:
    assert main(["generate", *(str(argument) for argument in arguments)]) == 0


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image of a procedural room, as JPEG bytes under a PNG's name, and its depth."""
    folder = tmp_path_factory.mktemp("room")
    item = SceneClips(range(4, 5), split="held_out", frames=2)[0]
    picture = Image.fromarray(images.to_uint8(item["image"][0]))
    picture.save(folder / "image.png", format="JPEG", quality=95)
    np.save(folder / "depth.npy", item["depth"][0])
    return folder


def _arguments(room: Path) -> tuple[object, ...]:
    return "--camera", "left", "--depth", room / "depth.npy", "--seed", 5


@pytest.fixture(scope="module")
def first(room: Path, optimised: None) -> Path:
    """Results along "left"."""
    out = room / "first"
    _generate(room / "image.png", *_arguments(room), "--out", out)
    return out


@pytest.mark.slow
def test_everything_is_written_and_readable(first):
    assert {path.name for path in first.iterdir()} == _FILES
    config = RolloutConfig()
    shape = (config.frames, config.height, config.width)
    video = video_io.read_video(first / "video.mp4")
    assert video.shape == (*shape, 3)
    assert np.isfinite(video).all()
    assert video.std() > 0.05
    assert video_io.read_video(first / "render.mp4").shape == (*shape, 3)
    masks = video_io.read_mask_video(first / "render_mask.mp4")
    assert masks.shape == (*shape, 1)
    assert not masks[0].any()
    assert masks[-1].any()
    sheet = images.read_image(first / "contact_sheet.png")
    assert min(sheet.shape[:2]) > 500
    w2c, intrinsics, size = read_camera_json(first / "cameras.json")
    assert w2c.shape == (config.frames, 4, 4)
    assert intrinsics.shape == (config.frames, 3, 3)
    assert size == (config.height, config.width)
    centres = np.asarray(camera_centers(w2c))
    assert np.all(np.diff(centres[:, 0]) < 0)
    points = PlyData.read(first / "points.ply")["vertex"]
    assert len(points) > 10_000
    assert {"red", "green", "blue"} <= {p.name for p in points.properties}
    surface = PlyData.read(first / "surface.ply")["vertex"]
    assert len(surface) > 10_000
    assert {"red", "nx", "ny", "nz"} <= {p.name for p in surface.properties}


@pytest.mark.slow
def test_the_first_frame_is_the_input_image(first, room):
    video = video_io.read_video(first / "video.mp4")
    image = images.read_image(room / "image.png")
    assert np.mean((video[0] - image) ** 2) < 4 * 10 ** (-20 / 10)


@pytest.mark.slow
def test_the_memory_holds_the_image_and_keyframes_of_the_clip(first):
    points, stereo = load_memory(first / "memory", model="tiny")
    config = RolloutConfig()
    assert int(stereo.count) == 1 + config.keyframes
    assert set(np.asarray(stereo.source)[: int(stereo.count)]) == {0, 1}
    assert int(points.count) > 10_000
    assert int(points.overflow) == int(stereo.overflow) == 0


@pytest.mark.slow
def test_run_json_tells_what_was_done(first):
    record = json.loads((first / "run.json").read_text())
    assert record["command"] == "worldstereo generate"
    assert record["seed"] == 5
    assert record["arguments"]["steps"] is None
    assert record["arguments"]["camera"] == "left"
    assert record["rollout"]["steps"] == RolloutConfig().steps
    assert record["model"]["preset"] == "tiny"
    assert len(record["model"]["sha256"]) == 64
    assert record["versions"]["jax"]
    assert all(seconds >= 0 for seconds in record["seconds"].values())
    assert record["seconds"]["making the clip"] > 0


@pytest.mark.slow
@pytest.mark.row("S25")
def test_the_clip_is_drawn_beside_the_entries_it_was_made_from(first):
    picture = images.read_image(first / "agreement.png")
    assert min(picture.shape[:2]) > 500
    record = json.loads((first / "run.json").read_text())
    # A clip of the small model departs little from what it was told, and not by nothing.
    assert 1e-4 < record["difference from the memory"][""] < 0.1


@pytest.mark.slow
def test_the_same_seed_gives_the_same_bytes_and_replaces_what_was_there(first, room):
    out = room / "again"
    (out / "stale").mkdir(parents=True)
    (out / "run.json").write_text('{"clips": ["stale"]}')
    _generate(room / "image.png", *_arguments(room), "--overwrite", "--out", out)
    for name in ("video.mp4", "render.mp4", "points.ply", "memory/spatial_stereo.safetensors"):
        assert (out / name).read_bytes() == (first / name).read_bytes()
    assert {path.name for path in out.iterdir()} == _FILES


@pytest.mark.slow
def test_a_memory_is_continued_with_another_path(first, room):
    out = room / "second"
    memory = first / "memory"
    before = {path.name: path.read_bytes() for path in memory.iterdir()}
    # A recorded path, in a unit of its own: the way to the right, ten times as long.
    recorded = random_cameras(5)
    recorded.w2c[:] = make_path("right", 5, pivot_depth=10.0)
    write_cameras(room / "model", recorded, "colmap")
    _generate(
        room / "image.png", "--camera", room / "model", "--memory", memory, "--steps", 2,
        "--out", out,
    )  # fmt: skip
    assert before == {path.name: path.read_bytes() for path in memory.iterdir()}
    assert json.loads((out / "run.json").read_text())["rollout"]["steps"] == 2
    old_points, old = load_memory(memory, model="tiny")
    points, stereo = load_memory(out / "memory", model="tiny")
    count = int(old.count)
    assert int(stereo.count) == count + RolloutConfig().keyframes
    np.testing.assert_array_equal(stereo.images[:count], old.images[:count])
    assert int(points.count) >= int(old_points.count)
    # The path starts where the first one did: at the image.
    w2c, _, _ = read_camera_json(out / "cameras.json")
    np.testing.assert_allclose(w2c[0], np.eye(4), atol=1e-5)
    # It goes as far as the preset does, whose pivot is the middle of the image.
    middle = middle_depth(np.asarray(stereo.depth[0]))
    told = json.loads((out / "run.json").read_text())["units of the recorded path"]
    np.testing.assert_allclose(told[""], middle / 10, rtol=1e-3)
    expected = np.asarray(make_path("right", 9, pivot_depth=middle))
    np.testing.assert_allclose(w2c[-1], expected[-1], atol=1e-3 * middle)


@pytest.mark.slow
def test_a_panorama_makes_a_clip_per_trajectory_in_one_memory(panorama, tmp_path):
    out = tmp_path / "out"
    _generate(panorama, "--steps", 1, "--out", out)
    clip_files = _FILES - {"points.ply", "surface.ply", "memory", "run.json"}
    for name in ("view0/traj0", "target1/traj0"):
        assert {path.name for path in (out / name).iterdir()} == clip_files
    assert {path.name for path in out.iterdir()} == {
        "view0",
        "target1",
        "points.ply",
        "surface.ply",
        "memory",
        "run.json",
    }
    _, stereo = load_memory(out / "memory", model="tiny")
    assert int(stereo.count) == 3 + 2 * RolloutConfig().keyframes
    assert int(stereo.overflow) == 0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_an_interruption_leaves_nothing(picture, tmp_path, monkeypatch, capsys, error):
    def load(preset, *, rollout):
        return None, None

    def begin(*arguments):
        assert any(path.name.startswith(".out.") for path in tmp_path.iterdir())
        raise error

    monkeypatch.setattr(generate, "load_world", load)
    monkeypatch.setattr(generate, "begin_memory", begin)
    before = {path.name for path in tmp_path.iterdir()}
    arguments = ["generate", str(picture), "--camera", "left", "--out", str(tmp_path / "out")]
    if error is KeyboardInterrupt:
        assert main(arguments) == 130
        assert "interrupted" in capsys.readouterr().err.splitlines()[-1]
    else:
        with pytest.raises(RuntimeError):
            main(arguments)
    assert {path.name for path in tmp_path.iterdir()} == before


def test_the_noise_follows_from_the_seed(scene, tmp_path, monkeypatch):
    class Stop(Exception):
        pass

    keys = []

    def compile_rollout(world, params, on_step):
        def rollout(params, memory, cameras, key):
            keys.append(np.asarray(jax.random.key_data(key)).tolist())
            raise Stop

        return rollout

    world = types.SimpleNamespace(name="tiny")
    monkeypatch.setattr(generate, "load_world", lambda preset, *, rollout: (world, None))
    monkeypatch.setattr(generate, "begin_memory", lambda *_: empty_memory(RolloutConfig()))
    monkeypatch.setattr(generate, "compile_rollout", compile_rollout)
    for seed in ("5", "5", "6"):
        with pytest.raises(Stop):
            main(["generate", str(scene), "--seed", seed, "--out", str(tmp_path / "out")])
    assert keys[0] == keys[1] != keys[2]
    assert not (tmp_path / "out").exists()
