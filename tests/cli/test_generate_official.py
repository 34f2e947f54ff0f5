"""The official checkpoints through the command, at toy size, on the official example scenes."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests import toy_official as toy
from tests.posed_cameras import random_cameras
from worldstereo_jax.cli.main import main
from worldstereo_jax.data import images, video_io
from worldstereo_jax.geometry.camera_formats import write_cameras
from worldstereo_jax.geometry.camera_io import read_camera_json
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.memory_slots import read_widths
from worldstereo_jax.memory.folder import load_memory
from worldstereo_jax.sampling.official_rollout import OfficialRollout

_SCENE_FILES = {"points.ply", "surface.ply", "memory", "run.json"}
_CLIP_FILES = {"video.mp4", "contact_sheet.png", "render.mp4", "render_mask.mp4", "cameras.json"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A base model, a checkpoint over it, a distilled one that needs none, and two encoders."""
    folder = tmp_path_factory.mktemp("weights")
    tensors = toy.official_tensors()
    toy.write_base(folder / "base")
    toy.write_backbone(folder / "base", tensors)
    own = {k: v for k, v in tensors.items() if k.startswith(("controlnet", "camera"))}
    alone = {"latent_cond_mode": "first_frame_only"}
    base = {"base_model": str(folder / "base")}
    toy.write_checkpoint(folder / "worldstereo-memory", own, **base, **alone)
    toy.write_checkpoint(folder / "worldstereo-memory-dmd", tensors, **toy.DMD, **alone)
    toy.write_depth(folder / "depth")
    toy.write_dinov2(folder / "dinov2")
    return folder


def generate(*arguments: object) -> None:
    assert main(["generate", *(str(argument) for argument in arguments)]) == 0


def shrunken_panorama(source: Path, target: Path, views: int) -> Path:
    """The first views of a panorama and two of its trajectories, images an eighth as large."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    for path in target.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    file = target / "pano_bank/cameras.json"
    cameras = json.loads(file.read_text())
    kept = dict(sorted(cameras.items())[:views])
    for camera in kept.values():
        camera["intrinsic"] = (np.diag([0.125, 0.125, 1]) @ np.array(camera["intrinsic"])).tolist()
    file.write_text(json.dumps(kept))
    for path in target.glob("pano_bank/images/*.png"):
        if path.stem not in kept:
            path.unlink()
            continue
        images.write_image(path, images.resize_image(images.read_image(path), (60, 104)))
    return target


@pytest.mark.slow
def test_a_photograph_with_the_distilled_model(weights, shared_dir, tmp_path, capsys):
    scene = next(shared_dir.glob("data/single_view/photorealistic*"))
    out = tmp_path / "out"
    given = (
        scene, "--model", weights / "worldstereo-memory-dmd", "--base", weights / "base",
        "--depth-model", weights / "depth", "--dtype", "float32", "--seed", 3,
        "--text-cache", tmp_path / "text",
    )  # fmt: skip
    generate(*given, "--out", out)
    assert {path.name for path in out.iterdir()} == _CLIP_FILES | _SCENE_FILES
    run = json.loads((out / "run.json").read_text())
    assert run["choices"]["guidance"] == "none"
    assert run["choices"]["timesteps"] == [1000.0, 625.0]
    assert run["rollout"]["references"] == 1
    # 720 x 1080 is nearest to 48 x 80 of the checkpoint's sizes.
    video = video_io.read_video(out / "video.mp4")
    assert video.shape == (toy.FRAMES, 48, 80, 3)
    w2c, _, size = read_camera_json(out / "cameras.json")
    path, _, _ = read_camera_json(scene / "camera.json")
    np.testing.assert_allclose(w2c, path[::20], atol=1e-6)
    assert size == (48, 80)
    points, stereo = load_memory(out / "memory", model="worldstereo-memory-dmd")
    assert int(stereo.count) == 1 + 4
    assert int(points.count) > 0
    picture = images.resize_image(images.read_image(scene / "image.png"), (48, 80))
    np.testing.assert_allclose(stereo.images[0], picture, atol=0.02)
    masks = video_io.read_mask_video(out / "render_mask.mp4")
    assert not masks[0].any()
    assert masks[-1].any()
    assert len(list((tmp_path / "text").iterdir())) == 2
    assert "contact_sheet.png" in capsys.readouterr().out


@pytest.mark.slow
def test_a_panorama_with_guidance_and_official_retrieval(
    weights, shared_dir, tmp_path, monkeypatch
):
    """Each clip in the official order reads the bank and writes to it; renders come from files.

    Finished clips are not made again, and enter the bank as they did.
    """
    source = shared_dir / "data/panorama/scene0"
    scene = shrunken_panorama(source, tmp_path / "scene", views=3)
    out = tmp_path / "out"
    arguments = (
        scene, "--model", weights / "worldstereo-memory", "--retrieval-model", weights / "dinov2",
        "--dtype", "float32", "--steps", 2, "--cfg", "two-pass", "--clips", tmp_path / "clips",
    )  # fmt: skip
    generate(*arguments, "--out", out)
    run = json.loads((out / "run.json").read_text())
    assert run["clips"] == ["view0/traj2", "view0/traj0", "reconstruct_0/traj0"]
    assert run["choices"]["guidance"] == "two-pass"
    assert run["rollout"]["references"] == 8
    for name in run["clips"]:
        assert {path.name for path in (out / name).iterdir()} == _CLIP_FILES
        given = video_io.read_mask_video(source / name / "render_mask.mp4")[::5]
        found = video_io.read_mask_video(out / name / "render_mask.mp4")
        assert found.shape == (toy.FRAMES, 48, 80, 1)
        # The files' own masks, shrunken.
        assert abs(found[1:].mean() - given[1:].mean()) < 0.05
        sheet = images.read_image(out / name / "contact_sheet.png")
        assert sheet.std() > 0.1
    _, stereo = load_memory(out / "memory", model="worldstereo-memory")
    assert int(stereo.count) == 3 + 3 * 4
    # Nothing here knows depth, and nothing pretends to.
    assert not np.asarray(stereo.depth).any()
    monkeypatch.delattr(OfficialRollout, "clip")
    generate(*arguments, "--out", tmp_path / "again")
    _, again = load_memory(tmp_path / "again/memory", model="worldstereo-memory")
    np.testing.assert_array_equal(again.images, stereo.images)


def test_what_does_not_fit_is_refused_before_anything_is_loaded(
    weights, reads_warps, picture, panorama, tmp_path, refused
):
    out = ("--out", tmp_path / "out")
    dmd = ("--model", weights / "worldstereo-memory-dmd", "--base", weights / "base")
    full = ("--model", weights / "worldstereo-memory")
    shutil.copytree(panorama / "target1/traj0", panorama / "target1/traj1")
    left = ("--camera", "left")
    for arguments, said in (
        ((picture, *left, "--cfg", "batched"), "--cfg is for an official model"),
        ((picture, *left, *dmd), "needs depth: give --depth-model"),
        ((picture, *left, *dmd, "--cfg", "batched"), "--cfg has no use"),
        ((picture, *left, *dmd, "--size", "48"), "--size is '48'"),
        ((picture, *left, *dmd, "--lora-scale", 0.5), "--lora-scale is for --lora"),
        ((picture, *left, *dmd, "--size", "40x64", "--depth-model", weights / "depth"),
         "40 x 64 pixels, expected multiples of 16"),
        ((picture, *left, *dmd, "--devices", 99, "--depth-model", weights / "depth"),
         "--devices is 99"),
        ((picture, *left, "--model", weights / "base"), "is a plain Wan 2.1 model"),
        ((picture, *left, "--model", weights / "depth"), "unknown key"),
        ((picture, *left, *full, "--renders", "files"), "--renders files is for a panorama"),
        ((panorama, *full, "--retrieval-model", weights / "dinov2"), "holds 4 frames, but a clip"),
        ((panorama, *full, "--renders", "memory", "--depth-model", weights / "depth"),
         "give --retrieval-model, or --retrieval coverage"),
        ((panorama, *full, "--retrieval", "coverage"), "--retrieval coverage needs depth"),
        ((panorama, "--model", reads_warps, "--base", weights / "base"),
         "what worldstereo-stereo reads of the memory needs depth"),
        ((panorama, *full, "--attention", "correspondence"), "correspondence needs depth"),
        ((panorama, *full, "--renders", "memory"), "points needs depth"),
    ):  # fmt: skip
        assert said in refused("generate", *arguments, *out)
    assert not (tmp_path / "out").exists()


def test_a_trajectory_needs_the_one_it_goes_on_from(weights, panorama, tmp_path, refused):
    (panorama / "target1").rename(panorama / "reconstruct_1")
    shutil.copytree(panorama / "reconstruct_1/traj0", panorama / "reconstruct_1/traj1")
    sentence = refused(
        "generate", panorama, "--model", weights / "worldstereo-memory", "--retrieval-model",
        weights / "dinov2", "--trajectory", "reconstruct_1/traj1", "--out", tmp_path / "out",
    )  # fmt: skip
    assert "starts from the last frame of reconstruct_1/traj0" in sentence


@pytest.fixture(scope="module")
def reads_warps(weights) -> Path:
    """The distilled checkpoint with modules that read warped views and entries."""
    config = toy.MODEL.replace(**read_widths())
    alone = {"latent_cond_mode": "first_frame_only", **read_widths()}
    folder = weights / "worldstereo-stereo"
    return toy.write_checkpoint(folder, toy.official_tensors(config), **toy.DMD, **alone)


@pytest.mark.slow
@pytest.mark.row("S18")
def test_a_model_split_over_devices_makes_the_same_clip(weights, reads_warps, picture, tmp_path):
    """Eight devices, heads that do not divide among them: queries are dealt out.

    Of a checkpoint that reads warps and entries, as its config says; along a path in metres.
    """
    recorded = random_cameras(5)
    recorded.w2c[:] = make_path("left", 5, pivot_depth=2.0)
    write_cameras(tmp_path / "path.txt", recorded, "tum")
    given = (
        picture, "--model", reads_warps, "--base", weights / "base",
        "--depth-model", weights / "depth", "--dtype", "float32", "--camera",
        tmp_path / "path.txt", "--size", "48x64", "--steps", 1,
    )  # fmt: skip
    banks = []
    for count in (1, 8):
        out = tmp_path / str(count)
        generate(*given, "--devices", count, "--out", out)
        _, stereo = load_memory(out / "memory", model="worldstereo-stereo")
        banks.append(np.asarray(stereo.images)[: int(stereo.count)])
    one, eight = banks
    record = json.loads((tmp_path / "8/run.json").read_text())
    assert record["model"]["config"]["warped_width"] == 17
    assert record["rollout"]["entry_tokens"] == 60
    # A view and four frames that were generated; in [-1, 1], and apart by the order of sums.
    assert len(one) == 1 + 4
    assert one[1:].std() > 0.1
    np.testing.assert_allclose(eight, one, atol=1e-3)
