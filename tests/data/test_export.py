import json

import numpy as np
import pytest

from worldstereo_jax.data import export
from worldstereo_jax.data.images import read_image
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.trajectories import make_path

_K = np.array([[240.0, 0.0, 416.0], [0.0, 240.0, 240.0], [0.0, 0.0, 1.0]], np.float32)


def _views(ids: list[str]) -> list[export.ExportView]:
    path = np.asarray(make_path("right", max(len(ids), 2)))
    return [
        export.ExportView(name, np.full((4, 6, 3), i / 10, np.float32), path[i], _K)
        for i, name in enumerate(ids)
    ]


def test_ids_follow_the_official_pattern():
    assert export.panorama_camera_id(3) == "pano-0003"


def test_folder_holds_images_cameras_to_world_and_the_name_map(tmp_path):
    ids = ["view0-traj1-0003", "pano-0001", "pano-0000"]
    views = _views(ids)
    folder = export.export_world_mirror(tmp_path, "memory", views)
    assert folder == tmp_path / "world_mirror_data" / "memory"
    assert sorted(p.name for p in (folder / "images").iterdir()) == sorted(f"{i}.png" for i in ids)
    np.testing.assert_allclose(
        read_image(folder / "images" / "pano-0001.png"), views[1].image, atol=5e-3
    )
    cameras = json.loads((folder / "cameras.json").read_text())
    assert cameras["num_cameras"] == 3
    for i, name in enumerate(ids):
        extrinsic, intrinsic = cameras["extrinsics"][i], cameras["intrinsics"][i]
        assert extrinsic["camera_id"] == intrinsic["camera_id"] == name
        np.testing.assert_allclose(
            np.array(extrinsic["matrix"]) @ np.asarray(views[i].w2c), np.eye(4), atol=1e-5
        )
        np.testing.assert_array_equal(intrinsic["matrix"], _K)
    assert json.loads((folder / "name_map.json").read_text()) == {
        "pano-0000": "0000",
        "pano-0001": "0001",
        "view0-traj1-0003": "0002",
    }


def test_a_second_export_replaces_the_first(tmp_path):
    export.export_world_mirror(tmp_path, "memory", _views(["a", "b"]))
    folder = export.export_world_mirror(tmp_path, "memory", _views(["c"]))
    assert [p.name for p in (folder / "images").iterdir()] == ["c.png"]
    assert [p.name for p in folder.parent.iterdir()] == ["memory"]


@pytest.mark.parametrize(
    ("ids", "model", "words"),
    [
        ([], "memory", "no views"),
        (["a", "a"], "memory", "share the id 'a'"),
        (["../a"], "memory", "cannot name a file"),
        (["a"], "..", "cannot name a file"),
    ],
)
def test_unusable_exports_leave_nothing(tmp_path, ids, model, words):
    with pytest.raises(InputError, match=words):
        export.export_world_mirror(tmp_path, model, _views(ids))
    assert not list(tmp_path.iterdir())
