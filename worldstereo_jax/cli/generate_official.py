"""`worldstereo generate --model`: the official checkpoints from files to files."""

import argparse
import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from worldstereo_jax.array_types import Float
from worldstereo_jax.cli.arguments import parse_size
from worldstereo_jax.cli.camera_paths import CameraChoice, Job, plan_jobs, units_of
from worldstereo_jax.cli.clip_store import ClipStore
from worldstereo_jax.cli.console import Stages
from worldstereo_jax.cli.content import content_hash
from worldstereo_jax.cli.device_room import check_model_room, model_mesh
from worldstereo_jax.cli.memory_input import (
    read_memory,
    roomy,
    starting_views,
    views_before,
    with_room,
)
from worldstereo_jax.cli.official_clips import ClipMaker, begin_official_memory, placed
from worldstereo_jax.cli.official_options import load_chosen
from worldstereo_jax.cli.outputs import (
    KEYFRAMES_PER_SECOND,
    check_output_folder,
    memory_counts,
    results_folder,
    write_clip,
    write_memory,
    write_run,
)
from worldstereo_jax.cli.recorded_path import begun_by
from worldstereo_jax.cli.scene_input import AnyScene, image_size, read_scene_depth
from worldstereo_jax.data.scene_folders import (
    PanoramaScene,
    Trajectory,
    continues_a_clip,
    read_scene,
)
from worldstereo_jax.data.video_io import FRAMES_PER_SECOND
from worldstereo_jax.errors import InputError
from worldstereo_jax.geometry.splat import OFFICIAL_RADIUS_NDC
from worldstereo_jax.interop.identity import model_identity
from worldstereo_jax.interop.memory_slots import slot_widths
from worldstereo_jax.interop.official_pipeline import (
    OFFICIAL_SCALE,
    OfficialFiles,
    official_world,
    open_official,
    text_states,
)
from worldstereo_jax.sampling.official_rollout import (
    make_official_rollout,
)
from worldstereo_jax.sampling.official_world import (
    ENTRY_TOKENS,
    MENDED_QUIRKS,
    OFFICIAL_QUIRKS,
    TOKEN_SIDE,
    OfficialChoices,
    OfficialWorld,
    Prompt,
)
from worldstereo_jax.sampling.world import (
    RolloutConfig,
    WorldMemory,
    empty_memory,
)

REFERENCES, KEYFRAMES = 8, 8
"""Views that the official model attends to, and frames of a clip that enter the bank."""
# More surface entries would outweigh a scene's images; those without room are counted.
_MOST_ENTRIES = 1 << 20


def run_official(options: argparse.Namespace) -> None:
    """Read, generate and write; nothing appears under --out before everything is done."""
    started = time.perf_counter()
    check_output_folder(options.out, overwrite=options.overwrite)
    if options.depth is not None and options.memory is not None:
        raise InputError("--depth belongs to a new scene; the memory of --memory has its depth")
    if options.lora_scale is not None and options.lora is None:
        raise InputError("--lora-scale is for --lora")
    files = open_official(
        options.model,
        base=options.base,
        dinov2=options.retrieval_model,
        depth=options.depth_model,
    )
    own_size = image_size(read_scene(options.scene))
    size = parse_size(options.size) if options.size else files.settings.size_for(*own_size)
    scene = read_scene(options.scene, size)
    frames = _video_frames(files)
    choice = CameraChoice.of(options)
    jobs = plan_jobs(scene, own_size, frames, choice, options.trajectory)
    if options.prompt is not None:
        jobs = [dataclasses.replace(job, prompt=options.prompt) for job in jobs]
    scene = begun_by(scene, jobs[0].path)
    trajectories = _own_trajectories(scene, options)
    _check_predecessors(jobs, trajectories)
    depth = None
    if options.depth is not None:
        depth = read_scene_depth(options.depth, scene, own_size)
    choices = _choices(files, options)
    memory = None
    if options.memory is not None:
        memory = read_memory(options.memory, files.name, scene)
    sees_depth = files.depth is not None or depth is not None or memory is not None
    config = _rollout_config(size, frames, choices, scene, memory, len(jobs), sees_depth=sees_depth)
    mesh = model_mesh(options.devices)
    dtype = options.dtype or "bfloat16"
    world = official_world(files, config, choices, dtype=dtype, weights=options.weights, mesh=mesh)
    if world.weights is not None:
        # Says so at once when qwix is not there.
        _ = world.transformer
    _check_needs(
        world,
        options,
        memory,
        drawn=trajectories is None or options.renders == "memory",
        most=views_before(scene, memory) + (len(jobs) - 1) * config.keyframes,
    )
    if trajectories is not None and options.renders != "memory":
        for job in jobs:
            _check_length(trajectories[job.name], frames)
    negative = options.negative_prompt
    if negative is None:
        negative = files.settings.negative_prompt
    check_model_room(
        files,
        [*(job.prompt for job in jobs), negative],
        dtype=dtype,
        weights=options.weights,
        mesh=mesh,
        text_cache=options.text_cache,
        beside={"memory": _memory_bytes(config)},
    )

    run = {
        "scene": scene.name,
        "seed": options.seed,
        "model": {
            "checkpoint": str(files.model),
            "base": str(files.base),
            "depth": str(files.depth_source),
            "retrieval": str(files.dinov2_source),
            "lora": str(options.lora),
            "lora_scale": options.lora_scale,
            "weights": options.weights,
            "config": world.denoiser.to_dict(),
        },
        "size": size,
        "camera": dataclasses.astuple(choice),
        "choices": _recorded(choices),
        "clips": [job.name for job in jobs],
        "prompt": {job.name: job.prompt for job in jobs},
        "negative prompt": negative,
        "renders": "memory" if trajectories is None else options.renders or "files",
        **_contents(files, options, scene, jobs, trajectories, depth, memory),
    }
    store = None
    if options.clips is not None:
        store = ClipStore(options.clips, run)
        store.check(job.name for job in jobs)
    _tell_of_missing_prompts(scene, jobs)
    with (
        Stages(3 + 2 * len(jobs) + 1) as stages,
        results_folder(options.out, overwrite=options.overwrite) as folder,
    ):
        stages.seconds["reading"] = round(time.perf_counter() - started, 3)
        with stages.stage("encoding the prompts"):
            prompts = _prompts(files, jobs, negative, options, dtype, mesh)
        with stages.stage("loading the model"):
            params = load_chosen(files, options, dtype, mesh)

        def tell(step: int) -> None:
            stages.note(f" step {step + 1} of {choices.schedule.steps}")

        rollout = make_official_rollout(world, on_step=tell)
        with stages.stage("beginning the memory"):
            if memory is None:
                memory = begin_official_memory(rollout, params, scene, depth, jobs)
            memory = jax.block_until_ready(placed(with_room(memory, config), world))
        maker = ClipMaker(
            rollout=rollout,
            params=params,
            key=jax.random.key(options.seed),
            trajectories=trajectories or {},
            renders_from_files=options.renders != "memory",
            store=store,
        )
        for number, (job, prompt) in enumerate(zip(jobs, prompts, strict=True)):
            with stages.stage(f"making {job.name or 'the clip'}"):
                clip, memory = jax.block_until_ready(maker.make(number, job, prompt, memory))
            with stages.stage("writing the clip"):
                write_clip(
                    folder / job.name,
                    clip,
                    f"{scene.name}: {job.prompt or job.name}",
                    frames_per_second=options.fps or frames_per_second(world.frame_stride),
                )
        with stages.stage("writing the memory"):
            write_memory(folder, memory, world.name)
        write_run(
            folder,
            "generate",
            {
                "arguments": vars(options),
                **run,
                "rollout": dataclasses.asdict(config),
                "units of the recorded path": units_of(jobs, memory),
                "seconds": stages.seconds,
                "memory": memory_counts(memory),
            },
        )
    for job in jobs:
        print(options.out / job.name / "contact_sheet.png")


def _video_frames(files: OfficialFiles) -> int:
    """Frames of a video: as many as of the latent for keyframes, else four times as many."""
    control = files.denoiser.control
    stride = 1 if control is None else control.mask_downsample
    return (files.settings.frames - 1) * stride + 1


def frames_per_second(frame_stride: int) -> int:
    """Of a clip's video, from the frames per latent frame: Wan's own for clips of every frame."""
    return KEYFRAMES_PER_SECOND if frame_stride == 1 else FRAMES_PER_SECOND


def _own_trajectories(scene: AnyScene, options: argparse.Namespace) -> dict[str, Trajectory] | None:
    """A scene's own trajectories by the names of their jobs; None where others are made."""
    if options.camera is not None or not isinstance(scene, PanoramaScene):
        if options.renders == "files":
            raise InputError("--renders files is for a scene's own paths, which have render.mp4")
        return None
    return {f"{t.view}/{t.name}": t for t in scene.trajectories}


def _check_predecessors(jobs: Sequence[Job], trajectories: Mapping[str, Trajectory] | None) -> None:
    """Refuse a trajectory that goes on from one that is not made before it."""
    made = set()
    for job in jobs:
        trajectory = (trajectories or {}).get(job.name)
        made.add(job.name)
        if trajectory is None or not continues_a_clip(trajectory.view, trajectory.name):
            continue
        before = f"{trajectory.view}/traj0"
        if before not in made:
            raise InputError(
                f"--trajectory {job.name} starts from the last frame of {before}, which is not "
                "made before it; name both"
            )


def _choices(files: OfficialFiles, options: argparse.Namespace) -> OfficialChoices:
    schedule, solver = files.schedule(options.steps)
    guidance = options.cfg or "batched"
    if files.settings.dmd is not None:
        for name in ("cfg", "guidance_scale", "negative_prompt"):
            if getattr(options, name) is not None:
                raise InputError(
                    f"--{name.replace('_', '-')} has no use: {files.model} is a distilled model, "
                    "which takes no guidance"
                )
        guidance = "none"
    scale = options.guidance_scale
    return OfficialChoices(
        schedule=schedule,
        solver=solver,
        guidance=guidance,
        guidance_scale=OFFICIAL_SCALE if scale is None else scale,
        latent_condition=files.settings.latent_condition,
        retrieval=options.retrieval or "official",
        attention=options.attention or "dense",
        vae_tile=options.vae_tile,
        quirks=MENDED_QUIRKS if options.quirks == "mended" else OFFICIAL_QUIRKS,
    )


def _rollout_config(
    size: tuple[int, int],
    frames: int,
    choices: OfficialChoices,
    scene: AnyScene,
    memory: WorldMemory | None,
    clips: int,
    *,
    sees_depth: bool,
) -> RolloutConfig:
    height, width = size
    keyframes = min(KEYFRAMES, frames - 1)
    config = RolloutConfig(
        bank_capacity=1,
        point_capacity=1,
        entry_capacity=1,
        frames=frames,
        height=height,
        width=width,
        # No slot for a view that cannot be there: each costs a frame's tokens.
        references=min(REFERENCES, views_before(scene, memory) + (clips - 1) * keyframes),
        keyframes=keyframes,
        # The official radius; small images need a whole pixel, or no point covers any.
        point_radius=max(1.0, OFFICIAL_RADIUS_NDC * min(height, width) / 2),
        point_edges=choices.quirks.point_edges,
        entry_tokens=min(ENTRY_TOKENS, frames * height * width // TOKEN_SIDE**2),
        # One picture of full size shows nearly half of as many: looking at fewer saves little.
        entry_candidates=_MOST_ENTRIES,
    )
    config = roomy(config, scene, memory, clips)
    if not sees_depth:
        # No point and no entry will ever be known: room for them would cost gigabytes, and each
        # look into it seconds.
        return dataclasses.replace(config, point_capacity=1, entry_capacity=1)
    held = 1 if memory is None else memory.entries.capacity
    entries = max(held, min(config.entry_capacity, _MOST_ENTRIES))
    return dataclasses.replace(config, entry_capacity=entries)


def _check_needs(
    world: OfficialWorld,
    options: argparse.Namespace,
    memory: WorldMemory | None,
    *,
    drawn: bool,
    most: int,
) -> None:
    """Refuse what lacks a network that it needs, before any weight is read.

    `drawn`: points are rendered. `most`: views that are stored before the last clip.
    """
    knows_depth = world.depth is not None or options.depth is not None or memory is not None
    needing = [
        what
        for what, needed in (
            ("rendering the scene's points", drawn),
            ("--retrieval coverage", world.choices.retrieval == "coverage"),
            ("--attention correspondence", world.choices.attention == "correspondence"),
            (f"what {world.name} reads of the memory", bool(slot_widths(world.denoiser))),
            (
                f"{world.name}, whose references stand on the surface,",
                world.denoiser.reference_positions == "surface",
            ),
        )
        if needed
    ]
    if needing and not knows_depth:
        raise InputError(f"{needing[0]} needs depth: give --depth-model, or --depth for an image")
    chosen = world.has_references and world.choices.retrieval == "official"
    if chosen and most > world.rollout.references and world.dinov2 is None:
        raise InputError(
            f"the official retrieval chooses {world.rollout.references} of up to {most} views by "
            "their DINOv2 features: give --retrieval-model, or --retrieval coverage"
        )


def _memory_bytes(config: RolloutConfig) -> int:
    """Bytes of an empty memory, which is as large as a full one."""
    memory = jax.eval_shape(lambda: empty_memory(config))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(memory))


def _prompts(
    files: OfficialFiles,
    jobs: Sequence[Job],
    negative: str,
    options: argparse.Namespace,
    dtype: str,
    mesh: Mesh | None,
) -> list[Prompt]:
    texts = [*(job.prompt for job in jobs), negative]
    states = text_states(files, texts, dtype=dtype, cache=options.text_cache, mesh=mesh)
    return [Prompt(text=state, negative=states[-1]) for state in states[:-1]]


def _contents(
    files: OfficialFiles,
    options: argparse.Namespace,
    scene: AnyScene,
    jobs: Sequence[Job],
    trajectories: Mapping[str, Trajectory] | None,
    depth: Float[np.ndarray, "h w"] | None,
    memory: WorldMemory | None,
) -> dict[str, str | None]:
    """Hashes of all that clips are made from and that a name or path does not tell."""
    own = {} if trajectories is None else {job.name: trajectories[job.name] for job in jobs}
    drawn = options.renders == "memory"
    first = scene.bank if isinstance(scene, PanoramaScene) else starting_views(scene)
    return {
        "scene content": content_hash([first, *(path.start_frame for path in own.values())]),
        "camera path content": content_hash([job.path for job in jobs]),
        "renders content": content_hash([[p.render, p.mask] for p in own.values() if not drawn]),
        "depth map content": content_hash(depth),
        "memory content": content_hash(memory),
        "checkpoint content": model_identity(files.model),
        "adapter content": content_hash(options.lora),
    }


def _tell_of_missing_prompts(scene: AnyScene, jobs: Sequence[Job]) -> None:
    """Say in a sentence that the model gets no text, which its weights were not trained for."""
    without = [job.name or scene.name for job in jobs if not job.prompt.strip()]
    if without:
        print(
            f"worldstereo generate: {', '.join(without)} has no prompt, so the model is given an "
            "empty text; say what is to be seen with --prompt",
            file=sys.stderr,
        )


def _check_length(trajectory: Trajectory, frames: int) -> None:
    """Refuse renders of fewer frames than a clip has, between which nothing can be told."""
    if len(trajectory.w2c) < frames:
        raise InputError(
            f"{trajectory.render} holds {len(trajectory.w2c)} frames, but a clip has {frames}; "
            "draw them anew with --renders memory"
        )


def _recorded(choices: OfficialChoices) -> dict[str, object]:
    """The choices as plain json values."""
    fields = {
        field.name: getattr(choices, field.name)
        for field in dataclasses.fields(choices)
        if field.name not in ("schedule", "quirks")
    }
    return {
        **fields,
        "timesteps": choices.schedule.timesteps.tolist(),
        "quirks": dataclasses.asdict(choices.quirks),
    }
