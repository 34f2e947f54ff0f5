"""Distillation from end to end where the answer is known: tokens of two kinds, at toy size.

    python experiments/distill_toy.py --out runs/distill_toy

Each token of a made-up clip is a u or -a u, as a coin falls, and a little noise: u is one pattern
for all clips, and the amplitude a is the clip's own, which the model reads from its render latent.
A sampler of few steps that was not distilled stops between the two. The commands of the project do
the rest, in the official layout: `train_official.py` makes the teacher, `distill_official.py` the
students, `distill_gain.py` compares what they make.

Record, 2026-11-27, on one shared core of an AMD EPYC, jax 0.10.2 (the table is in RESULTS.md): a
teacher of 431,674 parameters, 0.05 s a step; students of 4 and of 2 steps, 1000 updates each at
0.25 s behind 80 s of compiling. Against the teacher's 40 steps, the energy coefficient of a token
fell from 0.007 (the teacher in the same 4 steps) to 0.001, and in 2 steps from 0.076 to 0.001;
another 64 samples of the teacher itself stand at -0.001. The error of the deviations fell from
0.056 to 0.029 and from 0.268 to 0.034, where other samples have 0.022. The means, right by symmetry
from the start, show no gain. The teacher's guidance was off, since these clips have no text; what
distillation gains with it, and at full size, this does not show.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments import distill_gain, distill_official, train_official
from worldstereo_jax.config import ControlConfig, ModelConfig
from worldstereo_jax.geometry.trajectories import make_path
from worldstereo_jax.interop.official_export import export_official
from worldstereo_jax.models.worldstereo import init_params
from worldstereo_jax.sampling.official_conditions import OfficialConditions
from worldstereo_jax.sampling.world import Cameras
from worldstereo_jax.training.clip_cache import ClipCacheWriter
from worldstereo_jax.training.official_fields import clip_recipe, to_fields, write_texts
from worldstereo_jax.training.official_objective import TrainingClip

FRAMES, HEIGHT, WIDTH = 2, 32, 48
LATENT = (FRAMES, HEIGHT // 8, WIDTH // 8)
AMPLITUDES = (0.4, 1.2)
SPREAD = 0.1
"""Deviation of the noise on each number."""
TEXT, IMAGE = (3, 6), (2, 10)

# No tensor's shape shows the heads of the backbone: below 128 channels it has one.
MODEL = ModelConfig(
    width=96, num_layers=2, num_heads=1, ffn_width=192, text_dim=TEXT[1], freq_dim=32,
    image_width=IMAGE[1],
    control=ControlConfig(
        width=32, ffn_width=64, num_heads=2, num_layers=1, embed_width=96, mid_channels=8
    ),
)  # fmt: skip
CONFIG = {
    "controlnet_cfg": {
        "conv_out_dim": 96, "dim": 32, "ffn_dim": 64, "num_heads": 2, "num_layers": 1,
        "time_embed_dim": 96, "add_channels": 7, "mid_channels": 8, "mask_downsample": 1,
        "update_ref": True, "main_camera_embedding": True, "camera_embedding_dim": 7,
    },
    "nframe": FRAMES, "scale_map": [[HEIGHT, WIDTH]], "negative_prompt": "",
    "latent_cond_mode": "full_vae", "freeze_backbone": False,
}  # fmt: skip
SCHEDULER = {
    "_class_name": "UniPCMultistepScheduler", "prediction_type": "flow_prediction",
    "use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 2,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    """Make clips and teacher, distil, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add = parser.add_argument
    add("--out", type=Path, required=True)
    add("--clips", type=int, default=512)
    add("--teacher-steps", type=int, default=4000)
    add("--steps", type=int, default=1000, help="updates of the student")
    add("--fake-updates", type=int, default=5)
    add("--dmd-steps", type=int, nargs="+", default=[4, 2], help="of each student")
    add("--guidance", type=float, default=1.0, help="these clips have no text to speak of")
    add("--batch", type=int, default=32)
    add("--learning-rate", type=float, default=2e-4, help="of student and fake score")
    add("--results", type=Path, default=distill_gain.RESULTS)
    options = parser.parse_args(arguments)
    out: Path = options.out
    write_toy(out, options.clips)
    exact = ("--dtype", "float32", "--export-dtype", "float32", "--remat", "none")
    given = ("--cache", out / "clips", "--base", out / "base", "--batch", options.batch, *exact)
    _go_on(
        train_official, out / "teacher", *given, "--model", out / "start", "--stage", "memory",
        "--steps", options.teacher_steps, "--learning-rate", 2e-3,
    )  # fmt: skip
    teacher = out / "teacher" / train_official.EXPORT
    students = []
    for steps in options.dmd_steps:
        folder = out / f"student_{steps}"
        _go_on(
            distill_official, folder, *given, "--model", teacher, "--steps", options.steps,
            "--fake-updates", options.fake_updates, "--dmd-steps", steps,
            "--guidance", options.guidance, "--learning-rate", options.learning_rate,
        )  # fmt: skip
        students.append(folder / distill_official.EXPORT)
    _run(
        distill_gain, "--cache", out / "clips", "--base", out / "base", "--teacher", teacher,
        "--students", *students, "--guidance", options.guidance, "--dtype", "float32",
        "--at-once", 64, "--results", options.results, "--command",
        f"python experiments/distill_toy.py --out {out}",
        "--about",
        f"Clips of {np.prod(LATENT) // 4} tokens of two kinds at random; a model of 2 layers of 96 "
        f"channels, trained in {options.teacher_steps} steps and distilled in {options.steps}.",
    )  # fmt: skip


def make_clip(rng: np.random.Generator) -> TrainingClip:
    """One clip, without a batch axis."""
    f, lh, lw = LATENT
    amplitude = rng.uniform(*AMPLITUDES)
    coins = np.repeat(np.repeat(rng.choice([-1.0, 1.0], (f, lh // 2, lw // 2)), 2, 1), 2, 2)
    pattern = np.where(np.arange(16) % 3 == 0, 1.0, -1.0)
    target = amplitude * coins[..., None] * pattern + rng.normal(0, SPREAD, (*LATENT, 16))

    def zeros(*shape: int) -> jax.Array:
        return jnp.zeros(shape)

    conditions = OfficialConditions(
        condition=zeros(*LATENT, 20),
        render_latent=jnp.full((*LATENT, 16), amplitude),
        render_mask=zeros(FRAMES, HEIGHT, WIDTH),
        plucker=zeros(FRAMES, HEIGHT, WIDTH, 6),
        camera=zeros(FRAMES, 7),
        reference=zeros(1, lh, lw, 36),
        reference_index=jnp.zeros(1, jnp.int32),
        reference_camera=zeros(1, 7),
        reference_valid=jnp.ones(1, bool),
        target_geometry=None,
        reference_geometry=None,
    )
    return TrainingClip(
        conditions=conditions,
        text=zeros(*TEXT),
        image=zeros(*IMAGE),
        target=jnp.asarray(target, jnp.float32),
    )


def write_toy(out: Path, clips: int) -> None:
    """Write prepared clips, an untrained model and what is needed of its base."""
    path = jnp.asarray(make_path("right", FRAMES, amplitude=0.5))
    intrinsics = jnp.array([[40.0, 0, WIDTH / 2], [0, 40.0, HEIGHT / 2], [0, 0, 1]])
    cameras = Cameras(w2c=path, intrinsics=jnp.broadcast_to(intrinsics, (FRAMES, 3, 3)))
    rng = np.random.default_rng(0)
    fields = [to_fields(make_clip(rng), cameras) for _ in range(clips)]
    recipe = clip_recipe(MODEL, height=HEIGHT, width=WIDTH, frames=FRAMES, ray_x_offset=-0.5)
    writer = ClipCacheWriter(out / "clips", clips, fields[0], recipe)
    for each in fields[writer.written :]:
        writer.append(each)
    write_texts(out / "clips", jnp.zeros(TEXT), jnp.zeros(TEXT))
    params = init_params(MODEL, jax.random.key(0))
    export_official(out / "start", params, MODEL, CONFIG, dtype="float32")
    (out / "base/scheduler").mkdir(parents=True, exist_ok=True)
    (out / "base/scheduler/scheduler_config.json").write_text(json.dumps(SCHEDULER))


def _go_on(module, folder: Path, *arguments: object) -> None:
    """Run a command that trains, from its last checkpoint if there is one."""
    resume = ["--resume"] if (folder / "checkpoints").is_dir() else []
    _run(module, "--out", folder, *arguments, *resume)


def _run(module, *arguments: object) -> None:
    module.main([str(argument) for argument in arguments])


if __name__ == "__main__":
    main()
