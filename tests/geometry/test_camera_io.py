import copy
import json

import numpy as np
import pytest

from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry import camera_io
from worldstereo_jax.geometry.trajectories import make_path

_K = np.array([[80.0, 0.0, 48.0], [0.0, 80.0, 32.0], [0.0, 0.0, 1.0]], np.float32)


def _content(frames: int = 3) -> dict:
    return {
        "extrinsic": np.asarray(make_path("orbit", frames)).tolist()
        if frames > 1
        else [np.eye(4).tolist()],
        "intrinsic": [_K.tolist() for _ in range(frames)],
    }


def _write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_reads_the_single_view_layout(shared_dir):
    folder = shared_dir / "data/single_view/photorealistic-indoor-dining_spaces-030"
    w2c, intrinsics, size = camera_io.read_camera_json(folder / "camera.json")
    assert w2c.shape == (81, 4, 4)
    assert intrinsics.shape == (81, 3, 3)
    assert size is None
    assert w2c.dtype == intrinsics.dtype == np.float32


def test_reads_the_panorama_layout(shared_dir):
    folder = shared_dir / "data/panorama/scene0"
    w2c, _, size = camera_io.read_camera_json(folder / "view0/traj0/camera.json")
    assert w2c.shape == (21, 4, 4)
    assert size == (480, 832)
    keys, bank, intrinsics = camera_io.read_keyed_cameras(folder / "pano_bank/cameras.json")
    assert keys[:2] == ["0000", "0001"]
    assert bank.shape == (27, 4, 4)
    assert intrinsics.shape == (27, 3, 3)


def test_our_file_comes_back_bit_for_bit(tmp_path):
    w2c = make_path("spiral", 5)
    intrinsics = np.broadcast_to(_K * np.array([[1.1], [0.7], [1.0]], np.float32), (5, 3, 3))
    camera_io.write_cameras_json(tmp_path / "cameras.json", w2c, intrinsics, (64, 96))
    again, intrinsics_again, size = camera_io.read_camera_json(tmp_path / "cameras.json")
    np.testing.assert_array_equal(again, w2c)
    np.testing.assert_array_equal(intrinsics_again, intrinsics)
    assert size == (64, 96)
    assert [p.name for p in tmp_path.iterdir()] == ["cameras.json"]


def _without(name):
    return lambda c: c.pop(name)


def _set(name, value):
    return lambda c: c.__setitem__(name, value)


def _entry(name, index, value):
    def change(c):
        at = c[name]
        for i in index[:-1]:
            at = at[i]
        at[index[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_without("extrinsic"), "no field 'extrinsic'"),
        (_without("intrinsic"), "no field 'intrinsic'"),
        (_set("extrinsic", [[1, 2], [3]]), "4 x 4"),
        (_set("extrinsic", [[1, 2], [3, 4]]), "2 x 2"),
        (_set("extrinsic", "here"), "something else"),
        (_set("extrinsic", []), "shape is 0"),
        (_set("intrinsic", [np.eye(4).tolist()] * 3), "3 x 4 x 4"),
        (_set("intrinsic", [_K.tolist()] * 2), "3 cameras but 'intrinsic' 2"),
        (_entry("extrinsic", (1, 0, 3), float("nan")), "'extrinsic' of camera 1 holds NaN"),
        (_entry("intrinsic", (2, 0, 0), 1e300), "'intrinsic' of camera 2 holds NaN or infinity"),
        (_entry("extrinsic", (2, 0, 0), 1.5), "camera 2 is no rotation"),
        (_entry("extrinsic", (0,), np.diag([1.0, 1.0, -1.0, 1.0]).tolist()), "0 is no rotation"),
        (_entry("extrinsic", (1, 3, 2), 0.5), "row 0 0 0 1"),
        (_entry("intrinsic", (1, 1, 1), 0.0), "camera 1 is singular"),
        (_entry("intrinsic", (1, 2, 2), 0.0), "upper triangular"),
        (_set("width", 96), "'height'"),
        (_set("format", "other"), "'format'"),
        (lambda c: c.update(format="worldstereo-cameras", version=7), "'version' is 7"),
    ],
)
def test_each_fault_is_one_sentence_naming_file_and_field(tmp_path, change, words):
    content = copy.deepcopy(_content())
    change(content)
    path = _write(tmp_path / "camera.json", content)
    with pytest.raises(InputError) as raised:
        camera_io.read_camera_json(path)
    message = str(raised.value)
    assert words in message
    assert str(path) in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("{not json", "not valid JSON"),
        ("", "not valid JSON"),
        ("[1, 2]", "object with named fields"),
        (_content(1), "holds 1 cameras"),
    ],
)
def test_other_files_are_rejected(tmp_path, content, words):
    path = _write(tmp_path / "camera.json", content)
    with pytest.raises(InputError, match=words):
        camera_io.read_camera_json(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "no.json", tmp_path):
        with pytest.raises(InputError, match=str(path)):
            camera_io.read_camera_json(path)


def test_a_fault_in_a_keyed_bank_names_its_key(tmp_path):
    good = {"extrinsic": np.eye(4).tolist(), "intrinsic": _K.tolist()}
    for bad, words in (
        ({"extrinsic": good["extrinsic"]}, "0001.intrinsic"),
        ([], "'0001' must be an object"),
        (good | {"intrinsic": np.eye(2).tolist()}, "'0001.intrinsic' must be"),
        (good | {"extrinsic": (2 * np.eye(4)).tolist()}, "'0001.extrinsic' of camera 0"),
    ):
        path = _write(tmp_path / "cameras.json", {"0000": good, "0001": bad})
        with pytest.raises(InputError, match=words):
            camera_io.read_keyed_cameras(path)
    with pytest.raises(InputError, match="holds no cameras"):
        camera_io.read_keyed_cameras(_write(tmp_path / "cameras.json", {}))


def test_selection_takes_every_fourth_of_81_and_keeps_both_ends():
    w2c = np.arange(81, dtype=np.float32)[:, None, None] + np.zeros((1, 4, 4), np.float32)
    intrinsics = w2c[:, :3, :3]
    chosen, chosen_k = camera_io.select_cameras(w2c, intrinsics, 21)
    np.testing.assert_array_equal(chosen[:, 0, 0], np.arange(0, 81, 4))
    np.testing.assert_array_equal(chosen_k[:, 0, 0], np.arange(0, 81, 4))
    nine, _ = camera_io.select_cameras(w2c, intrinsics, 9)
    np.testing.assert_array_equal(nine[:, 0, 0], np.arange(0, 81, 10))
    with pytest.raises(InputError, match="needs 82 cameras"):
        camera_io.select_cameras(w2c, intrinsics, 82)
    with pytest.raises(InputError, match="at least 2"):
        camera_io.select_cameras(w2c, intrinsics, 1)


def test_keyframes_equal_the_official_choice(goldens_dir):
    golden = np.load(goldens_dir / "retrieval.npz", allow_pickle=False)
    for total in (21, 81):
        np.testing.assert_array_equal(
            camera_io.keyframe_indices(total, 8), golden[f"align_indices_{total}_8"]
        )


@pytest.mark.parametrize(("total", "count"), [(9, 8), (9, 4), (5, 8), (2, 3), (1, 3)])
def test_keyframes_end_with_the_last_frame_and_never_hold_the_first(total, count):
    index = camera_io.keyframe_indices(total, count)
    assert len(index) == min(count, total - 1)
    assert 0 not in index
    assert len(set(index.tolist())) == len(index)
    assert not len(index) or index[-1] == total - 1
