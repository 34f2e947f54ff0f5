"""Small inputs for the commands, and a way to run them in this process."""

import json
from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from tests import small_world
from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.outputs import save_world
from worldstereo_jax.data import images, video_io
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.sampling.world import Cameras, empty_memory, remember_frames

# Of the proportions of 96x160, at another scale.
HEIGHT, WIDTH = 72, 120
INTRINSICS = np.array([[100.0, 0, 60], [0, 100.0, 36], [0, 0, 1]], np.float32)


def _picture() -> np.ndarray:
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH].astype(np.float32)
    waves = [np.sin(x / 9), np.cos(y / 7), np.sin((x + y) / 13)]
    return np.stack(waves, -1).astype(np.float32) * np.float32(0.7)


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A picture file."""
    images.write_image(tmp_path / "photo.png", _picture())
    return tmp_path / "photo.png"


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A single-view folder whose path has 12 cameras."""
    folder = tmp_path / "scene"
    images.write_image(folder / "image.png", _picture())
    (folder / "prompt.json").write_text(json.dumps({"long caption": "waves"}))
    write_cameras_json(folder / "camera.json", make_path("right", 12), np.stack([INTRINSICS] * 12))
    return folder


@pytest.fixture
def panorama(tmp_path: Path) -> Path:
    """A panorama folder of three views, one trajectory from each of two of them."""
    folder = tmp_path / "panorama"
    cameras = {
        f"{i:04d}": {"extrinsic": w2c.tolist(), "intrinsic": INTRINSICS.tolist()}
        for i, w2c in enumerate(np.asarray(make_path("pan", 3)))
    }
    (folder / "pano_bank").mkdir(parents=True)
    (folder / "pano_bank/cameras.json").write_text(json.dumps(cameras))
    for i, key in enumerate(cameras):
        picture = np.roll(_picture(), 8 * i, axis=1)
        images.write_image(folder / f"pano_bank/images/{key}.png", picture)
    for view in ("view0", "target1"):
        images.write_image(folder / view / "start_frame.png", _picture())
        path = folder / view / "traj0"
        write_cameras_json(
            path / "camera.json", make_path("left", 4), np.stack([INTRINSICS] * 4), (HEIGHT, WIDTH)
        )
        (path / "traj_caption.json").write_text(json.dumps({"prompt": view}))
        clip = np.zeros((4, HEIGHT, WIDTH, 3), np.float32)
        video_io.write_video(path / "render.mp4", clip)
        video_io.write_mask_video(path / "render_mask.mp4", clip[..., :1])
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a command that must end in exit code 2 and one sentence, which is returned."""

    def run(*arguments: object) -> str:
        capsys.readouterr()
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        assert code == 2, captured.err
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1, captured.err
        assert captured.err.startswith(f"worldstereo {arguments[0]}: ")
        assert "Traceback" not in captured.err
        return captured.err

    return run


@pytest.fixture(scope="session")
def true_scene():
    """Ground truth of a small clip, as numpy arrays."""
    return {name: np.asarray(value) for name, value in small_world.scene().items()}


@pytest.fixture(scope="session")
def finished(tmp_path_factory, true_scene) -> Path:
    """What a run leaves, cheaply: two clips of one path through one memory, and the memory.

    `first` shows the truth; the last two frames of `second` are paler.
    """
    home, config = tmp_path_factory.mktemp("runs") / "out", small_world.ROLLOUT
    pale = true_scene["image"].copy()
    pale[2:] = 0.6 * pale[2:] + 0.3
    memory = empty_memory(config)
    # One frame at a time, as other tests do: their programs are taken.
    clips = (("", true_scene["image"], 0), ("first", true_scene["image"], 3), ("second", pale, 2))
    for source, (name, video, frame) in enumerate(clips):
        part = slice(frame, frame + 1)
        cameras = Cameras(*(jnp.asarray(true_scene[k][part]) for k in ("w2c", "intrinsics")))
        pictures = (jnp.asarray(x[part]) for x in (video, true_scene["depth"]))
        memory = remember_frames(config, memory, *pictures, cameras, source)
        if name:
            video_io.write_video(home / name / "video.mp4", video)
            path = true_scene["w2c"], true_scene["intrinsics"]
            write_cameras_json(home / name / "cameras.json", *path, (config.height, config.width))
    save_world(home / "memory", memory, "tiny")
    return home
