"""`worldstereo export`: a run's clips and memory in the layouts of other programs."""

import json

import numpy as np
import pytest

from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.memory_input import open_memory
from worldstereo_jax.data.images import read_image
from worldstereo_jax.data.point_cloud_io import read_point_cloud
from worldstereo_jax.geometry.camera_formats import read_cameras
from worldstereo_jax.memory.entry_cloud import surface_cloud


def exported(folder, target, kind, *more):
    assert main(["export", str(folder), str(target), "--to", kind, *more]) == 0
    return target


def test_a_run_as_a_model_of_colmap(finished, true_scene, tmp_path, capsys):
    out = exported(finished, tmp_path / "model", "colmap")
    found = read_cameras(out)
    names = [f"{clip}-{i:04d}.png" for clip in ("first", "second") for i in range(4)]
    assert sorted(found.names) == names
    by_name = dict(zip(found.names, found.w2c, strict=True))
    for name in names:
        i = int(name[-8:-4])
        np.testing.assert_allclose(by_name[name], true_scene["w2c"][i], atol=1e-5)
    # A frame that the memory holds comes from there, without a video's losses.
    kept, seen = (read_image(out / f"images/first-000{i}.png") for i in (3, 1))
    np.testing.assert_allclose(kept, true_scene["image"][3], atol=1 / 127)
    assert 1 / 127 < np.abs(seen - true_scene["image"][1]).max() < 0.3
    cloud = surface_cloud(open_memory(finished / "memory").memory.entries)
    points = np.loadtxt(out / "sparse/0/points3D.txt")
    np.testing.assert_allclose(points[:, 1:4], cloud.positions, atol=1e-5)
    assert f"8 views, {len(points):,} points of the entries' surfaces" in capsys.readouterr().out


def test_a_memory_as_a_data_set_of_nerfstudio(finished, true_scene, tmp_path):
    out = exported(finished / "memory", tmp_path / "data", "nerfstudio")
    content = json.loads((out / "transforms.json").read_text())
    found = read_cameras(out / "transforms.json")
    assert found.names == tuple(
        f"images/{name}.png" for name in ("pano-0000", "stored-0001", "stored-0002")
    )
    np.testing.assert_allclose(found.w2c, true_scene["w2c"][[0, 3, 2]], atol=1e-5)
    np.testing.assert_allclose(found.intrinsics[0], true_scene["intrinsics"][0], rtol=1e-5)
    positions, _ = read_point_cloud(out / content["ply_file_path"])
    cloud = surface_cloud(open_memory(finished / "memory").memory.entries)
    np.testing.assert_array_equal(positions, cloud.positions)
    same = exported(finished, tmp_path / "same", "nerfstudio", "--views", "memory")
    assert (same / "transforms.json").read_bytes() == (out / "transforms.json").read_bytes()


def test_one_clip_for_worldmirror(finished, tmp_path):
    out = exported(finished / "first", tmp_path / "mirror", "worldmirror")
    folder = out / "world_mirror_data/tiny"
    cameras = json.loads((folder / "cameras.json").read_text())
    ids = [entry["camera_id"] for entry in cameras["extrinsics"]]
    # The view that the other clip left in the memory, and the clip.
    assert ids == ["stored-0002", *(f"clip-{i:04d}" for i in range(4))]
    assert len(list((folder / "images").iterdir())) == 5


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("none", "x", "is no folder"),
        ("", "x", "there is no memory of its run"),
        ("mine", "mine", "is there already; name a new one"),
    ],
)
def test_mistakes_are_one_sentence(tmp_path, refused, source, target, said):
    (tmp_path / "mine").mkdir()
    given = (tmp_path / source, tmp_path / target, "--to", "colmap")
    assert said in refused("export", *given)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
