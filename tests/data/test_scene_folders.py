import json
import shutil

import numpy as np
import pytest

from worldstereo_jax.data import images, scene_folders, video_io
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import write_cameras_json
from worldstereo_jax.geometry.trajectories import make_path

_K = np.array([[30.0, 0.0, 20.0], [0.0, 30.0, 12.0], [0.0, 0.0, 1.0]], np.float32)
_HEIGHT, _WIDTH = 24, 40


def _image(value: float = 0.2) -> np.ndarray:
    return np.full((_HEIGHT, _WIDTH, 3), value, np.float32)


def _single_view(folder, frames: int = 5):
    folder.mkdir()
    images.write_image(folder / "image.png", _image())
    (folder / "prompt.json").write_text(
        json.dumps({"short caption": "s", "long caption": "a long one"})
    )
    write_cameras_json(folder / "camera.json", make_path("right", frames), np.stack([_K] * frames))
    return folder


def _trajectory(folder, frames: int = 3, hole: float = 0.0):
    folder.mkdir(parents=True)
    write_cameras_json(
        folder / "camera.json",
        make_path("right", frames),
        np.stack([_K] * frames),
        (_HEIGHT, _WIDTH),
    )
    (folder / "traj_caption.json").write_text(json.dumps({"prompt": folder.name}))
    video_io.write_video(folder / "render.mp4", np.zeros((frames, _HEIGHT, _WIDTH, 3), np.float32))
    video_io.write_mask_video(
        folder / "render_mask.mp4", np.full((frames, _HEIGHT, _WIDTH, 1), hole, np.float32)
    )


def _panorama(folder, views=(("view0", ("traj0", "traj2")),)):
    (folder / "pano_bank/images").mkdir(parents=True)
    cameras = {
        f"{i:04d}": {"extrinsic": w2c.tolist(), "intrinsic": _K.tolist()}
        for i, w2c in enumerate(np.asarray(make_path("pan", 3)))
    }
    (folder / "pano_bank/cameras.json").write_text(json.dumps(cameras))
    for i, key in enumerate(cameras):
        images.write_image(folder / f"pano_bank/images/{key}.png", _image(0.1 * i))
    for view, names in views:
        for name in names:
            _trajectory(folder / view / name)
        images.write_image(folder / view / "start_frame.png", _image(0.5))
    return folder


def test_reads_the_official_single_view_scenes(shared_dir):
    folder = shared_dir / "data/single_view/photorealistic-indoor-dining_spaces-030"
    scene = scene_folders.read_scene(folder, (96, 160))
    assert isinstance(scene, scene_folders.SingleViewScene)
    assert scene.image.shape == (96, 160, 3)
    assert scene.prompt.startswith("A bright, modern kitchen")
    assert scene.w2c is not None
    assert scene.w2c.shape == (81, 4, 4)
    own = json.loads((folder / "camera.json").read_text())["intrinsic"][0]
    assert scene.intrinsics is not None
    np.testing.assert_allclose(
        scene.intrinsics[0], np.array(own) * [[160 / 1080], [96 / 720], [1]], rtol=1e-5
    )


def test_reads_the_official_panorama_scene(shared_dir):
    scene = scene_folders.read_scene(shared_dir / "data/panorama/scene0", (48, 80))
    assert isinstance(scene, scene_folders.PanoramaScene)
    assert scene.bank.images.shape == (27, 48, 80, 3)
    assert [(t.view, t.name) for t in scene.trajectories] == [
        ("view0", "traj2"),
        ("view0", "traj0"),
        ("reconstruct_0", "traj0"),
    ]
    np.testing.assert_allclose(scene.bank.intrinsics[0, :2, 2], [40, 24])
    trajectory = scene.trajectories[1]
    renders, masks = scene_folders.read_renders(trajectory)
    assert renders.shape == (21, 48, 80, 3)
    assert masks.shape == (21, 48, 80, 1)
    np.testing.assert_array_equal(renders[0], trajectory.start_frame)
    # The second render comes from the same place, a step further on.
    assert np.abs(renders[1] - renders[0]).mean() < 0.1


def test_a_bare_picture_is_a_scene_without_cameras(tmp_path):
    images.write_image(tmp_path / "holiday.png", _image())
    scene = scene_folders.read_scene(tmp_path / "holiday.png", (12, 20))
    assert isinstance(scene, scene_folders.SingleViewScene)
    assert (scene.name, scene.prompt, scene.w2c) == ("holiday", "", None)
    assert scene.image.shape == (12, 20, 3)


def test_a_resized_picture_is_seen_under_the_angles_it_was_taken_under(tmp_path):
    images.write_image(tmp_path / "wide.png", np.zeros((20, 200, 3), np.float32))
    scene = scene_folders.read_scene(tmp_path / "wide.png", (12, 20))
    assert isinstance(scene, scene_folders.SingleViewScene)
    tangents = np.array([20, 12]) / (2 * scene.intrinsics[0, [0, 1], [0, 1]])
    across, up = 2 * np.degrees(np.arctan(tangents))
    np.testing.assert_allclose(across, 60, rtol=1e-5)
    np.testing.assert_allclose(tangents[0], 10 * tangents[1], rtol=1e-5)
    assert up < 7
    np.testing.assert_allclose(scene.intrinsics[0, :2, 2], [10, 6])


def test_default_intrinsics_span_sixty_degrees_over_the_longer_side():
    k = scene_folders.default_intrinsics(100, 200)
    np.testing.assert_allclose(2 * np.degrees(np.arctan(100 / k[0, 0])), 60, rtol=1e-5)
    np.testing.assert_allclose(k[:2, 2], [100, 50])


def test_trajectories_come_in_the_order_of_generation_and_invalid_views_are_skipped(tmp_path):
    views = (
        ("reconstruct-1", ("traj1", "traj0")),
        ("target0", ("traj0",)),
        ("view0", ("traj0", "traj1", "traj2")),
        ("view-1", ("traj2",)),
        ("view2", ("traj0",)),
        ("wonder0", ("traj0",)),
    )
    folder = _panorama(tmp_path / "scene", views)
    (folder / "view2/valid_analysis.json").write_text('{"valid": "no"}')
    (folder / "view0/valid_analysis.json").write_text('{"valid": "yes"}')
    scene = scene_folders.read_scene(folder)
    assert isinstance(scene, scene_folders.PanoramaScene)
    assert [(t.view, t.name) for t in scene.trajectories] == [
        ("view0", "traj2"),
        ("view_1", "traj2"),
        ("view0", "traj0"),
        ("view0", "traj1"),
        ("target0", "traj0"),
        ("reconstruct_1", "traj0"),
        ("wonder0", "traj0"),
        ("reconstruct_1", "traj1"),
    ]
    assert scene.trajectories[0].prompt == "traj2"


def test_one_image_with_several_paths_and_their_renders(tmp_path):
    folder = tmp_path / "shop"
    images.write_image(folder / "image.png", _image(0.5))
    (folder / "prompt.json").write_text(json.dumps({"prompt": "a shop", "response": "yes"}))
    for name in ("traj_left", "traj_eloop", "traj_other", "traj_up"):
        _trajectory(folder / "renders" / name, hole=1.0)
        (folder / "renders" / name / "traj_caption.json").unlink()
    path = folder / "renders/traj_eloop/camera.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "type": "eloop", "id": 3}))
    scene = scene_folders.read_scene(folder, (12, 20))
    assert isinstance(scene, scene_folders.PanoramaScene)
    names = [trajectory.name for trajectory in scene.trajectories]
    assert names == ["traj_eloop", "traj_up", "traj_left", "traj_other"]
    first = scene.trajectories[0]
    assert (first.view, first.prompt) == ("renders", "a shop")
    np.testing.assert_array_equal(scene.bank.images, first.start_frame[None])
    np.testing.assert_array_equal(scene.bank.w2c, np.eye(4)[None])
    np.testing.assert_array_equal(scene.bank.intrinsics, first.intrinsics[:1])
    renders, masks = scene_folders.read_renders(first)
    np.testing.assert_array_equal(renders[0], first.start_frame)
    np.testing.assert_array_equal(masks.mean((1, 2, 3)), [0, 1, 1])
    (folder / "prompt.json").unlink()
    _assert_one_sentence(folder, "prompt.json")
    shutil.rmtree(folder / "renders")
    (folder / "renders").mkdir()
    _assert_one_sentence(folder, "renders/traj_*/camera.json was expected")


def test_masks_of_the_first_frame(tmp_path):
    folder = _panorama(tmp_path / "scene", ())
    for view, name in (("view0", "traj0"), ("reconstruct0", "traj1")):
        _trajectory(folder / view / name, hole=1.0)
        images.write_image(folder / view / "start_frame.png", _image(0.5))
    scene = scene_folders.read_scene(folder)
    assert isinstance(scene, scene_folders.PanoramaScene)
    kept, cleared = (scene_folders.read_renders(t)[1] for t in scene.trajectories)
    assert kept.min() == 1
    assert cleared[0].max() == 0
    assert cleared[1:].min() == 1


def _rename(old, new):
    return lambda folder: (folder / old).rename(folder / new)


def _write(name, text):
    return lambda folder: (folder / name).write_text(text)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_rename("image.png", "picture.png"), "image.png does not exist"),
        (_rename("camera.json", "c.json"), "camera.json does not exist"),
        (_rename("prompt.json", "p.json"), "prompt.json does not exist"),
        (_write("prompt.json", "{}"), "no field 'long caption'"),
        (_write("prompt.json", '{"prompt": 3}'), "'prompt' must be text"),
        (_write("image.png", "text"), "image.png is not an image"),
        (_write("camera.json", "{}"), "camera.json has no field 'extrinsic'"),
    ],
)
def test_faults_of_a_single_view_folder_are_named(tmp_path, change, words):
    folder = _single_view(tmp_path / "scene")
    scene_folders.read_scene(folder)
    change(folder)
    _assert_one_sentence(folder, words)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_rename("pano_bank/images/0001.png", "gone.png"), "0001.png does not exist"),
        (_rename("pano_bank/cameras.json", "gone.json"), "cameras.json does not exist"),
        (_rename("view0/start_frame.png", "gone.png"), "start_frame.png does not exist"),
        (_rename("view0/traj0/camera.json", "gone.json"), "traj0/camera.json does not exist"),
        (_rename("view0/traj0/render.mp4", "gone.mp4"), "render.mp4 does not exist"),
        (_rename("view0/traj2/render_mask.mp4", "gone.mp4"), "render_mask.mp4 does not exist"),
        (_rename("view0/traj2/traj_caption.json", "g.json"), "traj_caption.json does not exist"),
        (_write("pano_bank/cameras.json", '{"0000": {}}'), "no field '0000.extrinsic'"),
        (lambda folder: shutil.rmtree(folder / "view0"), "no trajectory"),
        (
            lambda folder: images.write_image(
                folder / "pano_bank/images/0002.png", np.zeros((8, 8, 3), np.float32)
            ),
            "0002.png is 8 x 8",
        ),
    ],
)
def test_faults_of_a_panorama_folder_are_named(tmp_path, change, words):
    folder = _panorama(tmp_path / "scene")
    change(folder)
    _assert_one_sentence(folder, words)


def test_renders_must_have_as_many_frames_as_cameras(tmp_path):
    folder = _panorama(tmp_path / "scene")
    video_io.write_video(
        folder / "view0/traj2/render.mp4", np.zeros((2, _HEIGHT, _WIDTH, 3), np.float32)
    )
    scene = scene_folders.read_scene(folder)
    assert isinstance(scene, scene_folders.PanoramaScene)
    with pytest.raises(InputError, match=r"holds 2 frames.* 3 cameras"):
        scene_folders.read_renders(scene.trajectories[0])


def test_other_paths_are_no_scenes(tmp_path):
    _assert_one_sentence(tmp_path, "no scene folder")
    _assert_one_sentence(tmp_path / "missing", "does not exist")


def _assert_one_sentence(path, words):
    with pytest.raises(InputError) as raised:
        scene_folders.read_scene(path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
