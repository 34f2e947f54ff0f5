"""`worldstereo generate`: an image or scene and a camera path in, a clip with its memory out."""

import argparse
import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from worldstereo_jax.cli.console import Stages
from worldstereo_jax.cli.outputs import (
    params_hash,
    require_empty,
    write_clip,
    write_memory,
    write_run,
)
from worldstereo_jax.data.depth_io import read_depth
from worldstereo_jax.data.scene_folders import (
    PanoramaScene,
    SingleViewScene,
    default_intrinsics,
    read_scene,
)
from worldstereo_jax.errors import InputError
from worldstereo_jax.files import atomic_folder
from worldstereo_jax.geometry.camera_io import read_camera_json, select_cameras
from worldstereo_jax.geometry.cameras import resize_intrinsics
from worldstereo_jax.geometry.trajectories import make_path, path_names, spline_path
from worldstereo_jax.interop.shipped import load_world
from worldstereo_jax.memory.folder import load_memory
from worldstereo_jax.sampling.rollout import make_rollout
from worldstereo_jax.sampling.world import (
    Cameras,
    RolloutConfig,
    World,
    WorldMemory,
    WorldParams,
    empty_memory,
    remember,
)


@dataclasses.dataclass(frozen=True)
class Job:
    """One clip to make: `name` is the folder below --out ("" for --out itself)."""

    name: str
    prompt: str
    cameras: Cameras


def parser() -> argparse.ArgumentParser:
    """The command's arguments."""
    parser = argparse.ArgumentParser(prog="worldstereo generate", description=__doc__)
    parser.add_argument(
        "scene",
        type=Path,
        metavar="SCENE_OR_IMAGE",
        help="an image, a folder with image.png, prompt.json and camera.json, or a folder with "
        "pano_bank/",
    )
    parser.add_argument(
        "--camera",
        metavar="FILE|PRESET",
        help=f"camera.json, or one of {', '.join(path_names())}; default: the scene's own path",
    )
    parser.add_argument(
        "--amplitude", type=float, default=1.0, help="how far a PRESET path goes (default 1)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results go here")
    parser.add_argument("--preset", default="tiny", help="model preset (default tiny)")
    parser.add_argument("--depth", type=Path, metavar="FILE", help=".npy, .npz or 16-bit PNG")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="denoising steps (default: the preset's)")
    parser.add_argument(
        "--memory", type=Path, metavar="DIR", help="continue in the world of an earlier memory/"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what --out holds")
    return parser


def run(options: argparse.Namespace) -> None:
    """Read, generate and write; nothing appears under --out before everything is done."""
    require_empty(options.out, options.overwrite)
    if options.steps is not None and options.steps < 1:
        raise InputError(f"--steps must be at least 1, not {options.steps}")
    scene = read_scene(options.scene)
    own_size, size = image_size(scene), nearest_size(scene)
    # A depth map belongs to the image as it is in its file.
    depth = None if options.depth is None else read_depth(options.depth, own_size)
    scene = read_scene(options.scene, size)
    config = dataclasses.replace(RolloutConfig(), height=size[0], width=size[1])
    if options.steps is not None:
        config = dataclasses.replace(config, steps=options.steps)

    world, params = load_world(options.preset, rollout=config)
    if options.memory is not None:
        memory = read_memory(options.memory, world)
        capacity = memory.stereo.images.shape[0]
    elif isinstance(scene, PanoramaScene):
        memory, capacity = None, config.bank_capacity + len(scene.bank.names)
    else:
        memory, capacity = None, config.bank_capacity
    world = dataclasses.replace(
        world, rollout=dataclasses.replace(world.rollout, bank_capacity=capacity)
    )
    if memory is None:
        memory = begin_memory(world, params, scene, depth)
    jobs = plan_jobs(options, world, scene, memory)

    stages = Stages(2 * len(jobs) + 1)
    rollout = make_rollout(
        world, on_step=lambda step: stages.note(f"step {step + 1}/{world.rollout.steps}")
    )
    key = jax.random.key(options.seed)
    with atomic_folder(options.out) as folder:
        for number, job in enumerate(jobs):
            target = folder / job.name
            target.mkdir(parents=True, exist_ok=True)
            with stages.stage(f"clip {job.name or number + 1}"):
                clip, memory = rollout(
                    params, memory, job.cameras, jax.random.fold_in(key, number)
                )
                jax.block_until_ready(clip)
            with stages.stage("writing the clip"):
                write_clip(target, clip, f"{scene.name} {job.name}: {job.prompt}")
        with stages.stage("writing the memory"):
            write_memory(folder, memory, world.name)
        write_run(
            folder,
            {
                "arguments": {k: str(v) for k, v in vars(options).items() if v is not None},
                "seed": options.seed,
                "model": {"preset": world.name, "sha256": params_hash(params)},
                "rollout": dataclasses.asdict(world.rollout),
                "seconds": stages.seconds,
                "overflow": {
                    "points": int(memory.points.overflow),
                    "keyframes": int(memory.stereo.overflow),
                },
            },
        )
    stages.close()
    print(f"{options.out}: {len(jobs)} clip(s); open {options.out / 'contact_sheet.png'}"
          if jobs[0].name == "" else f"{options.out}: {len(jobs)} clips")


# Sizes (height, width) the small model runs at: 60 tokens or a few more, as it was trained with.
SIZES = ((96, 160), (112, 144), (128, 128), (144, 112), (160, 96))


def image_size(scene: SingleViewScene | PanoramaScene) -> tuple[int, int]:
    """Height and width of the scene's images."""
    image = scene.image if isinstance(scene, SingleViewScene) else scene.bank.images[0]
    return image.shape[0], image.shape[1]


def nearest_size(scene: SingleViewScene | PanoramaScene) -> tuple[int, int]:
    """The working size whose proportions are nearest to the scene's images."""
    height, width = image_size(scene)
    ratio = np.log(height / width)
    return min(SIZES, key=lambda size: abs(np.log(size[0] / size[1]) - ratio))


def estimate_depth(world: World, params: WorldParams, images: np.ndarray) -> jax.Array:
    """Depth of images [v, h, w, 3] by the preset's depth network, in metres."""
    return jax.jit(lambda p, x: world.depth.apply({"params": p}, x))(params.depth, images)


def read_memory(folder: Path, world: World) -> WorldMemory:
    """A saved memory made by this preset at this size.

    Raises:
        InputError: naming what does not fit.
    """
    points, stereo = load_memory(folder, model=world.name)
    size = (world.rollout.height, world.rollout.width)
    found = tuple(stereo.images.shape[1:3])
    if found != size:
        raise InputError(
            f"--memory {folder} holds keyframes of {found[0]}x{found[1]} pixels (height x width), "
            f"but the scene's are {size[0]}x{size[1]}"
        )
    if not bool(stereo.valid.any()):
        raise InputError(f"--memory {folder} holds no keyframe")
    return WorldMemory(points=points, stereo=stereo)


def begin_memory(
    world: World,
    params: WorldParams,
    scene: SingleViewScene | PanoramaScene,
    known_depth: np.ndarray | None,
) -> WorldMemory:
    """The memory that a scene starts with: its image, or the panorama's views."""
    if isinstance(scene, PanoramaScene):
        if known_depth is not None:
            raise InputError("--depth is for a single image; a panorama's views are estimated")
        images, w2c, intrinsics = scene.bank.images, scene.bank.w2c, scene.bank.intrinsics
        depth = estimate_depth(world, params, images)
    else:
        height, width = scene.image.shape[:2]
        images = scene.image[None]
        w2c = np.eye(4, dtype=np.float32)[None] if scene.w2c is None else scene.w2c[:1]
        intrinsics = (
            default_intrinsics(height, width)[None]
            if scene.intrinsics is None
            else scene.intrinsics[:1]
        )
        if known_depth is None:
            depth = estimate_depth(world, params, images)
        else:
            # Nearest pixels: a mean over a depth edge would hang between the surfaces.
            depth = jax.image.resize(jnp.asarray(known_depth), (height, width), "nearest")[None]
    cameras = Cameras(w2c=jnp.asarray(w2c), intrinsics=jnp.asarray(intrinsics))
    return remember(
        world.rollout, empty_memory(world.rollout), jnp.asarray(images), depth, cameras, source=0
    )


def plan_jobs(
    options: argparse.Namespace,
    world: World,
    scene: SingleViewScene | PanoramaScene,
    memory: WorldMemory,
) -> list[Job]:
    """Which clips to make: one along --camera, or the scene's own paths in their order."""
    frames = world.rollout.frames
    if options.camera is not None:
        w2c, intrinsics = camera_path(options, frames, memory)
        prompt = scene.prompt if isinstance(scene, SingleViewScene) else ""
        return [Job("", prompt, Cameras(w2c=jnp.asarray(w2c), intrinsics=jnp.asarray(intrinsics)))]
    if isinstance(scene, SingleViewScene):
        if scene.w2c is None or scene.intrinsics is None:
            raise InputError(
                f"{options.scene} is a bare image: --camera FILE or one of "
                f"{', '.join(path_names())} is needed"
            )
        return [Job("", scene.prompt, spread(scene.w2c, scene.intrinsics, frames))]
    return [
        Job(f"{t.view}/{t.name}", t.prompt, spread(t.w2c, t.intrinsics, frames))
        for t in scene.trajectories
    ]


def spread(w2c: np.ndarray, intrinsics: np.ndarray, frames: int) -> Cameras:
    """`frames` cameras of a path: evenly chosen ones, or a spline through a shorter path."""
    if len(w2c) >= frames:
        w2c, intrinsics = select_cameras(w2c, intrinsics, frames)
    else:
        # The spline is seen from its first camera; put it back where that camera stands.
        w2c = np.asarray(spline_path(w2c, frames)) @ w2c[0]
        intrinsics = np.broadcast_to(intrinsics[:1], (frames, 3, 3))
    return Cameras(w2c=jnp.asarray(w2c), intrinsics=jnp.asarray(intrinsics))


def camera_path(
    options: argparse.Namespace, frames: int, memory: WorldMemory
) -> tuple[np.ndarray, np.ndarray]:
    """The path that --camera asks for.

    A preset starts at the memory's first view and turns about the middle of what it sees. The
    cameras of a file stand in the world of the memory; their intrinsics belong to images of the
    file's size, or to the working size when the file names none.
    """
    stereo = memory.stereo
    height, width = stereo.images.shape[1:3]
    path = Path(options.camera)
    if path.suffix == ".json" or path.exists():
        w2c, intrinsics, size = read_camera_json(path)
        if size is not None:
            intrinsics = np.asarray(resize_intrinsics(intrinsics, size, (height, width)))
        cameras = spread(w2c, intrinsics, frames)
        return np.asarray(cameras.w2c), np.asarray(cameras.intrinsics)
    depth = np.asarray(stereo.depth[0])
    middle = depth[height // 4 : -(height // 4), width // 4 : -(width // 4)]
    known = middle[middle > 0] if (middle > 0).any() else depth[depth > 0]
    w2c = make_path(
        options.camera, frames, amplitude=options.amplitude, pivot_depth=float(np.median(known))
    )
    intrinsics = np.broadcast_to(np.asarray(stereo.intrinsics[0]), (frames, 3, 3))
    return np.asarray(w2c) @ np.asarray(stereo.w2c[0]), intrinsics
