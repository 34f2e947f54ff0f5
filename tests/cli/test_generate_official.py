"""The official checkpoints through the command, at toy size, on the official example scenes."""

import contextlib
import io
import json
import shutil
import typing
from pathlib import Path

import av
import jax.numpy as jnp
import numpy as np
import pytest

from tests import toy_official as toy
from worldstereo_jax.cli import device_room, generate_official
from worldstereo_jax.cli.main import main
from worldstereo_jax.cli.outputs import save_world
from worldstereo_jax.data import images, video_io
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.camera_io import read_camera_json, write_cameras_json
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.memory_slots import read_widths
from worldstereo_jax.memory.folder import load_memory
from worldstereo_jax.sampling.official_rollout import OfficialRollout
from worldstereo_jax.sampling.world import RolloutConfig, empty_memory

INTRINSICS = np.array([[100.0, 0, 60], [0, 100.0, 36], [0, 0, 1]], np.float32)
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


@pytest.fixture(scope="module")
def reads_warps(weights) -> Path:
    """The distilled checkpoint with modules that read warped views and entries."""
    config = toy.MODEL.replace(**read_widths())
    alone = {"latent_cond_mode": "first_frame_only", **read_widths()}
    folder = weights / "worldstereo-stereo"
    return toy.write_checkpoint(folder, toy.official_tensors(config), **toy.DMD, **alone)


class Photographed(typing.NamedTuple):
    """A clip of one device: how it was made, its scene, where it lies, and what was printed."""

    arguments: tuple
    scene: Path
    out: Path
    printed: str
    told: str


@pytest.fixture(scope="module")
def photographed(weights, reads_warps, shared_dir, tmp_path_factory) -> Photographed:
    """By the distilled checkpoint that reads warps and entries, as its config says."""
    scene = next(shared_dir.glob("data/single_view/photorealistic*"))
    folder = tmp_path_factory.mktemp("photographed")
    arguments = (
        scene, "--model", reads_warps, "--base", weights / "base",
        "--depth-model", weights / "depth", "--dtype", "float32", "--seed", 3,
        "--fps", 12, "--prompt", "a boat",
    )  # fmt: skip
    printed, told = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(told):
        generate(*arguments, "--text-cache", folder / "text", "--out", folder / "out")
    return Photographed(arguments, scene, folder / "out", printed.getvalue(), told.getvalue())


@pytest.mark.slow
@pytest.mark.row("S18")
def test_a_photograph_with_the_distilled_model(photographed):
    scene, out = photographed.scene, photographed.out
    assert {path.name for path in out.iterdir()} == _CLIP_FILES | _SCENE_FILES
    run = json.loads((out / "run.json").read_text())
    assert run["choices"]["guidance"] == "none"
    assert run["prompt"] == {"": "a boat"}
    with av.open(str(out / "video.mp4")) as container:
        assert container.streams.video[0].average_rate == 12
    assert run["choices"]["timesteps"] == [1000.0, 625.0]
    assert run["rollout"]["references"] == 1
    assert run["rollout"]["entry_tokens"] == 75
    assert run["model"]["config"]["warped_width"] == 17
    # 720 x 1080 is nearest to 48 x 80 of the checkpoint's sizes.
    video = video_io.read_video(out / "video.mp4")
    assert video.shape == (toy.FRAMES, 48, 80, 3)
    w2c, _, size = read_camera_json(out / "cameras.json")
    path, _, _ = read_camera_json(scene / "camera.json")
    np.testing.assert_allclose(w2c, path[::20], atol=1e-6)
    assert size == (48, 80)
    points, stereo = load_memory(out / "memory", model="worldstereo-stereo")
    assert int(stereo.count) == 1 + 4
    assert int(points.count) > 0
    picture = images.resize_image(images.read_image(scene / "image.png"), (48, 80))
    np.testing.assert_allclose(stereo.images[0], picture, atol=0.02)
    masks = video_io.read_mask_video(out / "render_mask.mp4")
    assert not masks[0].any()
    assert masks[-1].any()
    assert len(list((out.parent / "text").iterdir())) == 2
    assert "contact_sheet.png" in photographed.printed
    # Loading, which takes minutes, is seen to move.
    for network in ("transformer", "vae", "text encoder"):
        assert f"{network}:   0%" in photographed.told


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
    assert run["rollout"]["point_capacity"] == run["rollout"]["entry_capacity"] == 1
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
        ((picture, *left, "--prompt", "a boat"), "(--model); the small model reads no text"),
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
        ((picture, *left, *full, "--renders", "files"), "--renders files is for a scene's own"),
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


@pytest.fixture
def recording(monkeypatch):
    """A function that gives what a run with these arguments would tell its --clips folder."""
    told = []

    class Store:
        def __init__(self, folder, run):
            told.append(json.loads(json.dumps(run, default=str)))

        def check(self, names):
            raise InputError("recorded")

    monkeypatch.setattr(generate_official, "ClipStore", Store)

    def record(*arguments) -> dict:
        assert main(["generate", *map(str, arguments), "--clips", "x", "--out", "x"]) == 2
        return told.pop()

    return record


def differing(one: dict, other: dict) -> set[str]:
    assert one.keys() == other.keys()
    return {key for key in one if one[key] != other[key]}


def test_stored_clips_are_told_all_that_they_follow_from(weights, scene, tmp_path, recording):
    """Of one image: prompts, and the content of files, wherever these lie."""
    camera, depth = tmp_path / "path.json", tmp_path / "depth.npy"
    shutil.copyfile(scene / "camera.json", camera)
    np.save(depth, np.full((72, 120), 2.0, np.float32))
    given = (scene, "--model", weights / "worldstereo-memory", "--steps", 1, "--camera", camera,
             "--depth", depth)  # fmt: skip
    before = recording(*given)
    assert before["prompt"] == {"": "waves"}
    assert before["negative prompt"] == "blurry"
    assert differing(before, recording(*given)) == set()
    assert differing(before, recording(*given, "--prompt", "a boat")) == {"prompt"}
    assert differing(before, recording(*given, "--negative-prompt", "x")) == {"negative prompt"}
    assert differing(before, recording(*given, "--retrieval-model", weights / "dinov2")) == {
        "model"
    }
    write_cameras_json(camera, make_path("left", 5), np.stack([INTRINSICS] * 5))
    assert differing(before, recording(*given)) == {"camera path content"}
    shutil.copyfile(scene / "camera.json", camera)
    np.save(depth, np.full((72, 120), 3.0, np.float32))
    assert differing(before, recording(*given)) == {"depth map content"}
    np.save(depth, np.full((72, 120), 2.0, np.float32))
    image = images.read_image(scene / "image.png")
    images.write_image(scene / "image.png", -image)
    assert differing(before, recording(*given)) == {"scene content"}
    images.write_image(scene / "image.png", image)
    moved = shutil.copytree(scene, tmp_path / "moved/scene")
    assert differing(before, recording(moved, *given[1:])) == set()


def test_stored_clips_are_told_of_renders_and_of_the_memory(
    weights, panorama, picture, tmp_path, recording
):
    given = (panorama, "--model", weights / "worldstereo-memory", "--depth-model",
             weights / "depth", "--retrieval-model", weights / "dinov2")  # fmt: skip
    for path in panorama.glob("*/traj0"):
        write_cameras_json(
            path / "camera.json", make_path("left", 5), np.stack([INTRINSICS] * 5), (72, 120)
        )
        for name in ("render.mp4", "render_mask.mp4"):
            video_io.write_video(path / name, np.zeros((5, 72, 120, 3), np.float32))
    before = recording(*given)
    assert before["renders"] == "files"
    drawn = recording(*given, "--renders", "memory")
    assert differing(before, drawn) == {"renders", "renders content"}
    file = panorama / "view0/traj0/render.mp4"
    video_io.write_video(file, np.ones((5, 72, 120, 3), np.float32))
    assert differing(before, recording(*given)) == {"renders content"}
    assert differing(drawn, recording(*given, "--renders", "memory")) == set()

    config = RolloutConfig(height=48, width=80, bank_capacity=1, point_capacity=9)
    memory, records = empty_memory(config), []
    image = images.resize_image(images.read_image(picture), (48, 80))
    for depth in (2.0, 3.0):
        stereo = memory.stereo.replace(
            images=jnp.asarray(image)[None], depth=jnp.full((1, 48, 80), depth),
            valid=jnp.array([True]), count=jnp.int32(1),
        )  # fmt: skip
        save_world(tmp_path / f"{depth}", memory.replace(stereo=stereo), "worldstereo-memory")
        records.append(
            recording(picture, *given[1:], "--camera", "left", "--memory", tmp_path / f"{depth}")
        )
    assert differing(*records) == {"memory content"}


def test_several_paths_of_one_image_are_made_from_their_renders(weights, panorama, recording):
    """The official reconstruction layout: image.png and renders/traj_*/."""
    given = ("--model", weights / "worldstereo-memory", "--retrieval-model", weights / "dinov2",
             "--renders", "memory", "--depth-model", weights / "depth")  # fmt: skip
    folder = panorama.with_name("reconstruction") / "shop"
    for name in ("traj_left", "traj_eloop"):
        shutil.copytree(panorama / "view0/traj0", folder / "renders" / name)
    shutil.copy(panorama / "view0/start_frame.png", folder / "image.png")
    (folder / "prompt.json").write_text(json.dumps({"prompt": "a shop"}))
    told = recording(folder, *given)
    assert told["clips"] == ["renders/traj_eloop", "renders/traj_left"]
    assert set(told["prompt"].values()) == {"a shop"}
    assert recording(folder, *given, "--trajectory", "renders/traj_left")["clips"] == [
        "renders/traj_left"
    ]


def test_a_bare_image_is_given_a_prompt_or_said_to_have_none(
    weights, picture, tmp_path, monkeypatch, capsys
):
    given = []

    def stop(files, jobs, *_):
        given.append([job.prompt for job in jobs])
        raise InputError("stopped")

    monkeypatch.setattr(generate_official, "_prompts", stop)
    arguments = ("generate", picture, "--model", weights / "worldstereo-memory", "--camera",
                 "left", "--depth-model", weights / "depth", "--out", tmp_path / "out")  # fmt: skip
    for more, prompt in (((), ""), (("--prompt", "waves"), "waves")):
        assert main([str(argument) for argument in (*arguments, *more)]) == 2
        assert given.pop() == [prompt]
        said = "photo has no prompt, so the model is given an empty text; say what is to be seen"
        assert (said in capsys.readouterr().err) == (not prompt)


def test_a_device_without_room_is_told_before_anything_is_loaded(
    weights, picture, tmp_path, monkeypatch, refused
):
    given = ("generate", picture, "--model", weights / "worldstereo-memory", "--camera", "left",
             "--depth-model", weights / "depth", "--out", tmp_path / "out")  # fmt: skip
    monkeypatch.setattr(generate_official, "_prompts", None)
    for limit, said in (
        (1_000, "must hold 1.11e-06 GB before the first step (text encoder 1.11e-06)"),
        (100_000, "GB before the first step (transformer"),
    ):
        monkeypatch.setattr(device_room, "memory_limit", lambda _, limit=limit: limit)
        sentence = refused(*given)
        assert said in sentence
        assert "--devices, --weights int8 and --vae-tile make it smaller" in sentence
    assert "image encoder" in sentence
    assert "memory" in sentence
    monkeypatch.setattr(device_room, "memory_limit", lambda _: 10**9)
    with pytest.raises(TypeError, match="NoneType"):
        refused(*given)


def test_clips_of_every_frame_run_at_wans_rate_and_keyframes_slowly():
    assert [generate_official.frames_per_second(stride) for stride in (1, 4)] == [6, 16]


def test_a_trajectory_needs_the_one_it_goes_on_from(weights, panorama, tmp_path, refused):
    (panorama / "target1").rename(panorama / "reconstruct_1")
    shutil.copytree(panorama / "reconstruct_1/traj0", panorama / "reconstruct_1/traj1")
    sentence = refused(
        "generate", panorama, "--model", weights / "worldstereo-memory", "--retrieval-model",
        weights / "dinov2", "--trajectory", "reconstruct_1/traj1", "--out", tmp_path / "out",
    )  # fmt: skip
    assert "starts from the last frame of reconstruct_1/traj0" in sentence


@pytest.mark.slow
@pytest.mark.row("S18")
def test_a_model_split_over_devices_makes_the_same_clip(photographed, tmp_path):
    """Eight devices, heads that do not divide among them: queries are dealt out."""
    out = tmp_path / "8"
    generate(*photographed.arguments, "--devices", 8, "--out", out)
    one, eight = (
        load_memory(folder / "memory", model="worldstereo-stereo")[1]
        for folder in (photographed.out, out)
    )
    # A view and four frames that were generated; in [-1, 1], and apart by the order of sums.
    assert int(one.count) == int(eight.count) == 1 + 4
    one, eight = (np.asarray(stereo.images)[: 1 + 4] for stereo in (one, eight))
    assert one[1:].std() > 0.1
    np.testing.assert_allclose(eight, one, atol=1e-3)
