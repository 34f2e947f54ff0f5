"""`worldstereo view`: the viewer on a server of its own, and a browser that speaks its protocol."""

import contextlib
import json
import sys
import time
import urllib.request

import numpy as np
import pytest

from tests.evaluation import wall_world as ww
from worldstereo_jax.cli import view
from worldstereo_jax.cli.camera_paths import CameraChoice, path_through_memory
from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.outputs import RUN_FILE, save_world
from worldstereo_jax.cli.viewer_path import NO_KEY
from worldstereo_jax.evaluation.memory_scene import pose_of, w2c_of
from worldstereo_jax.evaluation.path_preview import frame_figures, preview_path
from worldstereo_jax.evaluation.preview_sheet import KNOWN, UNKNOWN
from worldstereo_jax.geometry.camera_io import read_camera_json, write_cameras_json
from worldstereo_jax.geometry.rotations import look_at
from worldstereo_jax.memory.spatial_stereo import init_spatial_memory

CLIP = ww.ahead((0, 0, 0), (0.1, 0, 0), (0.3, 0, 0))


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The results of a run of one clip of three frames."""
    folder = tmp_path_factory.mktemp("run")
    save_world(folder / "memory", ww.wall(), "tiny")
    write_cameras_json(folder / "cameras.json", CLIP, np.stack([ww.K] * 3), (ww.HEIGHT, ww.WIDTH))
    record = {"clips": [""], "rollout": {"frames": 3}, "arguments": {"scene": "my photo.jpg"}}
    (folder / RUN_FILE).write_text(json.dumps(record))
    return folder


@pytest.fixture(scope="module")
def viser():
    return pytest.importorskip("viser", reason="viser (the view extra) is not installed")


@pytest.fixture
def shown(viser, results):
    """A server that shows the results, with its scene and path builder."""
    with view.serving(viser, view.read_viewed(results), "127.0.0.1", 0) as served:
        yield served


def until(condition) -> None:
    """Wait for what other threads do."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


class Browser:
    """What a browser tells a server: where its camera is, and what is clicked."""

    def __init__(self, server, version: str):
        from websockets.sync.client import connect  # pyright: ignore[reportMissingImports]

        address = f"ws://127.0.0.1:{server.get_port()}"
        known = set(server.get_clients())
        self._socket = connect(address, subprotocols=[f"viser-v{version}"], max_queue=None)
        self._server = server
        self._tell_camera(np.eye(4))
        until(lambda: set(server.get_clients()) - known)
        (number,) = set(server.get_clients()) - known
        self.client = server.get_clients()[number]

    def look(self, w2c) -> None:
        """Stand somewhere."""
        self._tell_camera(w2c)
        position = pose_of(np.asarray(w2c, np.float32)).position
        until(lambda: np.allclose(self.client.camera.position, position, atol=1e-5))

    def click(self, node: str) -> None:
        """Click on something in the scene."""
        place = {"ray_origin": [0, 0, 0], "ray_direction": [0, 0, 1], "screen_pos": [0, 0]}
        self._send("SceneNodeClickMessage", name=node, instance_index=None, modifier=None, **place)

    def w2c(self) -> np.ndarray:
        """Where the server believes the camera to be."""
        camera = self.client.camera
        return w2c_of(np.asarray(camera.wxyz), np.asarray(camera.position))

    def close(self) -> None:
        self._socket.close()

    def _tell_camera(self, w2c) -> None:
        w2c = np.asarray(w2c, np.float32)
        pose = pose_of(w2c)
        self._send(
            "ViewerCameraMessage",
            wxyz=pose.wxyz.tolist(),
            position=pose.position.tolist(),
            look_at=(pose.position + w2c[2, :3]).tolist(),
            up_direction=(-w2c[1, :3]).tolist(),
            fov=1.0,
            near=0.01,
            far=100.0,
            image_height=300,
            image_width=400,
        )

    def _send(self, kind: str, **fields) -> None:
        import msgspec  # pyright: ignore[reportMissingImports]

        self._socket.send(msgspec.msgpack.encode({"type": kind, **fields}))


@pytest.fixture
def browser(viser, shown):
    with contextlib.closing(Browser(shown[0], viser.__version__)) as browser:
        yield browser


def towards(eye, target) -> np.ndarray:
    return np.asarray(look_at(np.array(eye, np.float32), np.array(target, np.float32)))


def press(button) -> None:
    button.value = True


def test_without_the_library_it_says_how_to_get_it(monkeypatch, results, refused):
    monkeypatch.setitem(sys.modules, "viser", None)
    assert 'pip install -e ".[view]"' in refused("view", results)


def test_a_run_is_read_with_its_last_clip_and_its_scene(results, tmp_path):
    for folder in (results, results / "memory"):
        viewed = view.read_viewed(folder)
        assert viewed.folder == results / "memory"
        assert (viewed.frames, viewed.scene) == (3, "my photo.jpg")
        np.testing.assert_allclose(viewed.clip, CLIP, atol=1e-6)
    save_world(tmp_path / "alone", ww.wall(), "tiny")
    viewed = view.read_viewed(tmp_path / "alone")
    assert viewed.clip is None
    assert viewed.scene is None


@pytest.mark.usefixtures("viser")
def test_mistakes_are_one_sentence(results, tmp_path, refused):
    assert "does not exist" in refused("view", tmp_path / "nowhere")
    assert "from 0 to 65535" in refused("view", results, "--port", "70000")
    assert "no address of this machine" in refused("view", results, "--host", "203.0.113.1")
    empty = ww.wall().replace(stereo=init_spatial_memory(1, ww.HEIGHT, ww.WIDTH))
    save_world(tmp_path / "memory", empty, "tiny")
    assert "holds no views" in refused("view", tmp_path / "memory")
    save_world(tmp_path / "run/memory", ww.wall(), "tiny")
    (tmp_path / "run" / RUN_FILE).write_text("[]")
    assert "no record of a run" in refused("view", tmp_path / "run")


@pytest.mark.usefixtures("viser")
def test_it_serves_until_it_is_interrupted(monkeypatch, results, capsys):
    said = []

    def wait():
        said.append(capsys.readouterr().out)
        address = said[0].split(" is at ")[1].split()[0]
        with urllib.request.urlopen(address, timeout=10) as page:
            assert b"<html" in page.read()
        raise KeyboardInterrupt

    monkeypatch.setattr(view, "_wait", wait)
    assert main(["view", str(results), "--port", "0"]) == 0
    assert said[0].count("\n") == 1
    assert capsys.readouterr().out == ""
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(said[0].split(" is at ")[1].split()[0], timeout=10)


def test_the_memories_are_in_the_scene_and_controls_change_them(shown):
    _, scene, _ = shown
    memory = ww.wall()
    assert len(scene.points.points) == int(memory.points.count)
    assert not scene.points.visible
    assert len(scene.entries.points) == int(memory.entries.count)
    for handle, w2c in zip(scene.frusta, ww.ahead(*ww.EYES), strict=True):
        np.testing.assert_allclose(w2c_of(handle.wxyz, handle.position), w2c, atol=1e-6)
        assert np.tan(handle.fov / 2) == pytest.approx(16 / 40)
    assert scene.clip.points.shape == (2, 2, 3)
    colours = scene.entries.colors
    scene.colour.value = "normal"
    assert (scene.entries.colors != colours).any()
    scene.size.value = 2.0
    assert scene.entries.point_size == pytest.approx(0.1)
    scene.confidence.value = 0.95
    assert len(scene.entries.points) == 0
    scene.points_on.value = True
    assert scene.points.visible
    scene.clip_on.value = False
    assert not scene.clip.visible
    scene.views_on.value = False
    assert not any(handle.visible for handle in scene.frusta)
    assert not scene.rays.visible
    scene.rays_on.value = True
    assert scene.rays.visible
    assert len(scene.rays.points) == 2 * 60
    assert "88 % of view 0 is in view 1" in scene.shared.content
    scene.second.value = "0"
    assert "100 % of view 0 is in view 0" in scene.shared.content


def test_a_click_on_a_view_leads_there_and_back(shown, browser):
    _, scene, _ = shown
    browser.look(towards([-1.0, -0.5, -1.0], [0.0, 0, 2.0]))
    browser.click("/views/1")
    # Pictures that stand before the camera make way.
    until(lambda: not any(handle.visible for handle in (*scene.frusta, *scene.names)))
    until(lambda: np.allclose(browser.w2c(), ww.ahead(ww.EYES[1])[0], atol=1e-5))
    assert browser.client.camera.fov == pytest.approx(scene.frusta[1].fov)
    browser.look(ww.ahead((0.301, 0, 0))[0])
    assert not scene.frusta[1].visible
    browser.look(ww.ahead((0.3, 0, -1))[0])
    until(lambda: all(handle.visible for handle in (*scene.frusta, *scene.names)))


def test_keys_are_added_where_browsers_stand_and_taken_away(shown, browser):
    _, _, builder = shown
    press(builder.delete)
    assert "no keys yet" in builder.said.content
    places = [ww.ahead((0.302, 0, 0.001))[0], towards([0.5, -0.3, 0.4], [0.2, 0, 2.0])]
    for w2c in places:
        browser.look(w2c)
        press(builder.add)
    assert "Key 1 added." in builder.said.content
    # The first was meant to be the stored view.
    np.testing.assert_array_equal(builder.path.keys[0], ww.ahead(ww.EYES[1])[0])
    np.testing.assert_allclose(builder.path.keys[1], places[1], atol=1e-5)
    assert builder.key.options == ("0", "1")
    assert builder.line.points.shape == (2, 2, 3)
    builder.frames.value = 5
    assert builder.line.points.shape == (4, 2, 3)
    np.testing.assert_allclose(builder.line.points[-1, 1], [0.5, -0.3, 0.4], atol=1e-5)
    builder.key.value = "0"
    press(builder.go)
    until(lambda: np.allclose(browser.w2c(), ww.ahead(ww.EYES[1])[0], atol=1e-5))
    browser.click("/path/keys/1")
    until(lambda: builder.key.value == "1")
    builder.frame.value = 4
    until(lambda: np.allclose(browser.w2c(), places[1], atol=1e-4))
    builder.frames.value = 3
    assert builder.frame.value == builder.frame.max == 2
    builder.key.value = "0"
    press(builder.delete)
    np.testing.assert_allclose(builder.path.keys[0], places[1], atol=1e-5)
    assert builder.line is None
    press(builder.delete)
    assert builder.key.options == (NO_KEY,)
    assert builder.keys == []
    press(builder.play)
    assert "at least 2 keys" in builder.said.content


def test_without_a_browser_there_is_no_camera_to_add(shown):
    builder = shown[2]
    press(builder.add)
    assert "no browser" in builder.said.content
    assert builder.path.keys == ()


def test_a_viewer_that_is_closed_draws_no_further_frame(shown, browser):
    _, _, builder = shown
    for eye in ((0, 0, 0), (0.9, 0, 0)):
        browser.look(ww.ahead(eye)[0])
        press(builder.add)
    builder.close()
    press(builder.preview)
    assert builder.figures == []
    assert "Frame 1" not in builder.said.content
    press(builder.play)
    assert builder.frame.value == 0


def test_a_path_is_previewed_played_and_written_for_generate(shown, browser, tmp_path):
    _, _, builder = shown
    for eye in ((0, 0, 0), (0.9, 0, 0)):
        browser.look(ww.ahead(eye)[0])
        press(builder.add)
    press(builder.preview)
    expected = frame_figures(preview_path(ww.wall(), builder.cameras()))
    assert builder.figures == expected
    assert expected[2].known < expected[0].known
    assert builder.coverage.visible
    assert [picture.label.split(",")[0] for picture in builder.pictures] == [
        f"frame {i}: {100 * frame.known:.0f} % known" for i, frame in enumerate(expected)
    ]
    assert "least in frame 2" in builder.summary.content
    # From green, for what is known wholly, towards the colour of what is not.
    ends = builder.line.colors[[0, -1], [0, 1]].astype(int)
    np.testing.assert_array_equal(ends[0], KNOWN)
    np.testing.assert_allclose(ends[1], 0.75 * ends[0] + 0.25 * np.array(UNKNOWN), atol=8)

    press(builder.play)
    assert builder.frame.value == 2
    until(lambda: np.allclose(browser.w2c(), ww.ahead((0.9, 0, 0))[0], atol=1e-5))

    file = tmp_path / "path.json"
    builder.file.value = str(file)
    press(builder.export)
    assert f"'my photo.jpg' --camera {file} --memory" in builder.said.content
    assert "no stored view" not in builder.said.content
    w2c, _, size = read_camera_json(file)
    np.testing.assert_array_equal(w2c, builder.cameras().w2c)
    assert size == (ww.HEIGHT, ww.WIDTH)
    told = path_through_memory(ww.wall(), CameraChoice(str(file)), 3)
    np.testing.assert_array_equal(told.w2c, builder.cameras().w2c)
    np.testing.assert_allclose(told.intrinsics, builder.cameras().intrinsics)

    # Another key: what was known of the path is known no more, and its file may be written anew.
    press(builder.add)
    assert not builder.coverage.visible
    assert builder.pictures == []
    builder.key.value = "0"
    press(builder.delete)
    press(builder.export)
    assert "starts at no stored view" in builder.said.content
    assert len(read_camera_json(file)[0]) == 3
    for name, said in (("x.txt", "must end in .json"), ("other.json", "there already")):
        (tmp_path / "other.json").write_text("mine")
        builder.file.value = str(tmp_path / name)
        press(builder.export)
        assert said in builder.said.content
    assert (tmp_path / "other.json").read_text() == "mine"
