"""Everything a person can get wrong ends in one sentence, code 2, and no output."""

import dataclasses
import functools
import json
from pathlib import Path

import numpy as np
import pytest

from worldstereo_jax.cli import demo, generate
from worldstereo_jax.data import images
from worldstereo_jax.interop.shipped import SHIPPED, load_world
from worldstereo_jax.memory.folder import save_memory
from worldstereo_jax.memory.global_geometric import init_global_memory
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory


@pytest.fixture(autouse=True)
def _no_weights_are_read(monkeypatch, request):
    """Bad input is noticed before the model is loaded, except for the weights' own tests."""

    def load(*arguments, **options):
        raise AssertionError("the model was loaded before the input was checked")

    monkeypatch.setattr(generate, "load_world", load)
    monkeypatch.setattr(demo, "load_world", load)


@pytest.fixture
def out(tmp_path):
    """An output folder of which nothing may appear, nor anything beside it."""
    folder = tmp_path / "results/out"
    yield folder
    assert not folder.parent.exists()


def _edited(scene: Path, **changes) -> Path:
    """The scene's camera.json with some fields replaced, or removed where None."""
    file = scene / "camera.json"
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))
    return file


def _cameras(scene: Path, name: str) -> np.ndarray:
    return np.array(json.loads((scene / "camera.json").read_text())[name])


def test_a_missing_scene(refused, tmp_path, out):
    assert "nowhere does not exist" in refused("generate", tmp_path / "nowhere", "--out", out)


@pytest.mark.parametrize("name", ["image.png", "prompt.json", "camera.json"])
def test_a_scene_without_one_of_its_files(refused, scene, out, name):
    (scene / name).unlink()
    assert f"{name} does not exist" in refused("generate", scene, "--out", out)


def test_a_folder_that_is_no_scene(refused, tmp_path, out):
    (tmp_path / "empty").mkdir()
    assert "empty is no scene folder" in refused("generate", tmp_path / "empty", "--out", out)


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 40])
def test_a_file_that_is_no_image(refused, tmp_path, scene, out, content):
    (tmp_path / "photo.jpg").write_bytes(content)
    error = refused("generate", tmp_path / "photo.jpg", "--camera", "left", "--out", out)
    assert "photo.jpg" in error
    (scene / "image.png").write_bytes(content)
    assert "image.png" in refused("generate", scene, "--out", out)


def test_an_image_that_is_cut_short(refused, picture, out):
    picture.write_bytes(picture.read_bytes()[:-300])
    error = refused("generate", picture, "--camera", "left", "--out", out)
    assert "photo.png cannot be read as an image" in error


@pytest.mark.parametrize("name", ["extrinsic", "intrinsic"])
def test_cameras_without_a_key(refused, scene, out, name):
    _edited(scene, **{name: None})
    error = refused("generate", scene, "--out", out)
    assert f"camera.json has no field '{name}'" in error


def _with(array: np.ndarray, index: tuple[int, ...], value: float) -> list:
    array = array.copy()
    array[index] = value
    return array.tolist()


@pytest.mark.parametrize(
    ("name", "spoil", "said"),
    [
        ("extrinsic", lambda a: a[:, :3].tolist(), "shape is 12 x 3 x 4"),
        ("intrinsic", lambda a: a[0].tolist(), "shape is 3 x 3"),
        ("extrinsic", lambda a: a[:5].tolist(), "holds 5 cameras but 'intrinsic' 12"),
        ("extrinsic", lambda a: "words", "holds something else"),
        ("extrinsic", lambda a: [[1], [1, 2]], "rows differ in length"),
        ("extrinsic", lambda a: _with(a, (3, 0, 3), np.nan), "of camera 3 holds NaN"),
        ("intrinsic", lambda a: _with(a, (2, 0, 0), np.inf), "of camera 2 holds NaN or infinity"),
        ("extrinsic", lambda a: _with(a, (1, 0, 0), 2.0), "of camera 1 is no rotation"),
        ("extrinsic", lambda a: (a * [1, 1, -1, 1]).tolist(), "of camera 0 is no rotation"),
        ("intrinsic", lambda a: _with(a, (0, 1, 1), 0.0), "of camera 0 is singular"),
    ],
)
def test_cameras_that_are_none(refused, scene, picture, out, name, spoil, said):
    file = _edited(scene, **{name: spoil(_cameras(scene, name))})
    for arguments in ((scene,), (picture, "--camera", file)):
        error = refused("generate", *arguments, "--out", out)
        assert "camera.json" in error
        assert f"'{name}'" in error
        assert said in error


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_cameras(refused, scene, out, count):
    few = {name: _cameras(scene, name)[:count].tolist() for name in ("extrinsic", "intrinsic")}
    _edited(scene, **few)
    error = refused("generate", scene, "--out", out)
    assert "camera.json" in error
    assert "'extrinsic'" in error


def test_cameras_that_are_no_json(refused, scene, out):
    (scene / "camera.json").write_text("{'extrinsic'")
    assert "camera.json is not valid JSON" in refused("generate", scene, "--out", out)


@pytest.mark.parametrize(
    ("depth", "said"),
    [
        (np.ones((72, 119)), "72 x 119 (height x width), but the image is 72 x 120"),
        # The size at which the model works is not the image's own.
        (np.ones((96, 160)), "96 x 160 (height x width), but the image is 72 x 120"),
        (np.zeros((72, 120)), "no valid depth"),
        (np.full((72, 120), np.nan), "no valid depth"),
        (np.full((72, 120), -1.0), "negative depth"),
        (np.ones((72, 120, 3)), "one depth map"),
        (np.full((72, 120), "far"), "must hold numbers"),
    ],
)
def test_depth_that_is_none(refused, picture, tmp_path, out, depth, said):
    np.save(tmp_path / "depth.npy", depth)
    arguments = ("--camera", "left", "--depth", tmp_path / "depth.npy", "--out", out)
    error = refused("generate", picture, *arguments)
    assert "depth.npy" in error
    assert said in error


def test_depth_that_cannot_be_read(refused, picture, tmp_path, out):
    def error(file: Path) -> str:
        return refused("generate", picture, "--camera", "left", "--depth", file, "--out", out)

    assert "none.npy does not exist" in error(tmp_path / "none.npy")
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    assert "cut.npy cannot be read" in error(tmp_path / "cut.npy")
    (tmp_path / "evil.npy").write_bytes(b"")
    np.save(tmp_path / "evil.npy", np.array([object()]), allow_pickle=True)
    assert "evil.npy cannot be read" in error(tmp_path / "evil.npy")
    images.write_image(tmp_path / "rgb.png", np.zeros((72, 120, 3), np.float32))
    assert "rgb.png must be a 16-bit grey image" in error(tmp_path / "rgb.png")


def test_depth_is_for_a_new_single_view(refused, panorama, picture, tmp_path, out):
    np.save(tmp_path / "depth.npy", np.ones((72, 120)))
    depth = ("--depth", tmp_path / "depth.npy", "--out", out)
    assert "--depth is for a single image" in refused("generate", panorama, *depth)
    error = refused("generate", picture, "--camera", "left", "--memory", tmp_path, *depth)
    assert "--depth belongs to a new scene" in error


def test_a_bare_image_needs_a_camera(refused, picture, out):
    assert "--camera FILE or one of orbit" in refused("generate", picture, "--out", out)


@pytest.mark.parametrize(
    ("name", "nearest"), [("orbitt", "orbit"), ("Spiral", "spiral"), ("rihgt", "right")]
)
def test_an_unknown_camera_path(refused, picture, out, name, nearest):
    error = refused("generate", picture, "--camera", name, "--out", out)
    assert f"'{name}': did you mean '{nearest}'?" in error


def test_a_missing_camera_file(refused, picture, tmp_path, out):
    for file in ("path.json", tmp_path / "path"):
        error = refused("generate", picture, "--camera", file, "--out", out)
        assert f"{file} does not exist" in error


@pytest.mark.parametrize(
    ("amplitude", "said"),
    [("5.5", "too large"), ("nan", "must be a finite number"), ("much", "invalid float value")],
)
def test_an_amplitude_that_is_none(refused, picture, out, amplitude, said):
    path = ("--camera", "up", "--amplitude", amplitude)
    assert said in refused("generate", picture, *path, "--out", out)


def test_an_amplitude_without_a_preset(refused, scene, out):
    for path in ((), ("--camera", scene / "camera.json")):
        error = refused("generate", scene, *path, "--amplitude", "2", "--out", out)
        assert "--amplitude is for the PRESET paths" in error


def test_an_unknown_preset(refused, picture, out):
    arguments = ("--camera", "left", "--preset", "tinny", "--out", out)
    assert "'tinny': did you mean 'tiny'?" in refused("generate", picture, *arguments)


@pytest.mark.parametrize(
    "arguments", [("--steps", "0"), ("--steps", "two"), ("--seed", "-1"), ("--sed", "1")]
)
def test_numbers_and_options_that_are_none(refused, picture, out, arguments):
    error = refused("generate", picture, "--camera", "left", "--out", out, *arguments)
    assert arguments[0] in error


def test_missing_arguments(refused, picture):
    assert "--out" in refused("generate", picture)
    assert "SCENE_OR_IMAGE" in refused("generate", "--out", "x")
    assert "--scene" in refused("demo", "--scene", "-1")


def test_trajectories_of_a_panorama(refused, panorama, scene, out):
    error = refused("generate", panorama, "--trajectory", "view0/traj1", "--out", out)
    assert "'view0/traj1': did you mean 'view0/traj0'?" in error
    for arguments in ((scene,), (panorama, "--camera", "left")):
        error = refused("generate", *arguments, "--trajectory", "view0/traj0", "--out", out)
        assert "--trajectory chooses among the scene's own paths" in error


@pytest.mark.parametrize("name", ["pano_bank/cameras.json", "view0/traj0/render.mp4"])
def test_a_panorama_without_one_of_its_files(refused, panorama, out, name):
    (panorama / name).unlink()
    assert f"{name} does not exist" in refused("generate", panorama, "--out", out)


@pytest.mark.parametrize("command", ["generate", "demo"])
def test_an_output_folder_that_holds_results(refused, picture, tmp_path, command):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text("kept")
    arguments = (picture, "--camera", "left") if command == "generate" else ()
    error = refused(command, *arguments, "--out", tmp_path / "out")
    assert f"{tmp_path / 'out'} already holds files" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["run.json"]
    assert (tmp_path / "out/run.json").read_text() == "kept"


@pytest.mark.parametrize("command", ["generate", "demo"])
def test_missing_or_cut_weights(refused, picture, tmp_path, out, monkeypatch, command):
    weights = tmp_path / "weights"
    weights.mkdir()
    load = functools.partial(load_world, weights=weights)
    monkeypatch.setattr(generate, "load_world", load)
    monkeypatch.setattr(demo, "load_world", load)
    arguments = (picture, "--camera", "left") if command == "generate" else ()
    assert "no such weights file" in refused(command, *arguments, "--out", out)
    for name in SHIPPED["tiny"].values():
        (weights / name).write_bytes(b"\x80\x00\x00\x00\x00\x00\x00\x00{}")
    error = refused(command, *arguments, "--out", out)
    assert ".safetensors: truncated, or not a safetensors file" in error


@pytest.fixture
def memory(tmp_path, picture) -> Path:
    """A memory folder that holds the picture."""
    stereo = init_spatial_memory(2, 96, 160)
    stereo = dataclasses.replace(
        stereo,
        images=stereo.images.at[0].set(images.resize_image(images.read_image(picture), (96, 160))),
        valid=stereo.valid.at[0].set(True),
        count=stereo.count + 1,
    )
    save_memory(tmp_path / "memory", init_global_memory(16), stereo, model="tiny")
    return tmp_path / "memory"


def _changed_header(memory: Path, **changes) -> None:
    header = json.loads((memory / "memory.json").read_text())
    (memory / "memory.json").write_text(json.dumps(header | changes))


def _cut(memory: Path, name: str) -> None:
    (memory / name).write_bytes((memory / name).read_bytes()[:-10])


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda memory: memory.rename(memory.parent / "moved"), "does not exist"),
        (lambda memory: (memory / "memory.json").unlink(), "no memory.json"),
        (lambda memory: (memory / "memory.json").write_text("{"), "memory.json is not valid JSON"),
        (lambda memory: _changed_header(memory, version=99), "version 99"),
        (lambda memory: _changed_header(memory, model="large"), "model 'large', not by 'tiny'"),
        (
            lambda memory: (memory / "spatial_stereo.safetensors").unlink(),
            "no spatial_stereo.safetensors",
        ),
        (lambda memory: _cut(memory, "spatial_stereo.safetensors"), "truncated"),
        (lambda memory: _cut(memory, "global_geometric.safetensors"), "safetensors"),
    ],
)
def test_a_memory_that_is_none(refused, picture, memory, out, spoil, said):
    spoil(memory)
    arguments = ("--camera", "left", "--memory", memory, "--out", out)
    error = refused("generate", picture, *arguments)
    assert str(memory) in error
    assert said in error


def test_a_memory_of_another_image_or_size(refused, memory, tmp_path, out):
    for size, said in (((72, 120), "another image"), ((72, 72), "96x160 pixels")):
        images.write_image(tmp_path / "other.png", np.zeros((*size, 3), np.float32))
        arguments = ("--camera", "left", "--memory", memory, "--out", out)
        error = refused("generate", tmp_path / "other.png", *arguments)
        assert f"--memory {memory}" in error
        assert said in error
