"""Train the detail mixer of the small model on clips that the model made.

    python experiments/build_detail_cache.py --out runs/detail_clips --scenes 300 --first 4000
    python experiments/train_detail.py --cache runs/detail_clips --out runs/detail --steps 3000

Seeded and resumable (`--resume`; SIGTERM saves first); the same command on CPU and GPU. Writes the
averaged weights as `tiny_detail.safetensors` and the curves as `curves.png` into `--out`.

The loss is the absolute error plus a share of 1 - SSIM, on windows of single frames: errors of
position cost an absolute error twice, and it alone would blur what SSIM asks to be kept.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from worldstereo_jax.array_types import Array, PyTree
from worldstereo_jax.evaluation.image_metrics import psnr, ssim
from worldstereo_jax.interop.shipped import init_mixer
from worldstereo_jax.interop.weights import count_parameters, save_weights
from worldstereo_jax.models.detail_mixer import DetailMixer
from worldstereo_jax.sampling.detail import agreement
from worldstereo_jax.training.clip_cache import ClipCache, cached_batches
from worldstereo_jax.training.curves import draw_curves
from worldstereo_jax.training.loop import train
from worldstereo_jax.training.losses import charbonnier
from worldstereo_jax.training.state import TrainState, init_train_state, make_train_step

# Windows taken from each clip of a batch, and their size.
WINDOWS = 4
WINDOW_SIZE = (64, 96)
SSIM_SHARE = 0.15
HELD_BACK = 24  # clips at the end of the cache that are only looked at


def windows_of(batch: dict[str, Array], key: Array) -> dict[str, Array]:
    """Random windows of random frames, half of them mirrored; values in [-1, 1], holes 0 or 1."""
    clips, frames, height, width = batch["hole"].shape
    count = clips * WINDOWS
    keys = jax.random.split(key, 4)
    clip = jnp.repeat(jnp.arange(clips), WINDOWS)
    frame = jax.random.randint(keys[0], (count,), 0, frames)
    top = jax.random.randint(keys[1], (count,), 0, (height - WINDOW_SIZE[0]) // 8 + 1) * 8
    left = jax.random.randint(keys[2], (count,), 0, (width - WINDOW_SIZE[1]) // 8 + 1) * 8
    mirrored = jax.random.bernoulli(keys[3], 0.5, (count,))

    def cut(field: Array) -> Array:
        def one(clip: Array, frame: Array, top: Array, left: Array, mirrored: Array) -> Array:
            start = (clip, frame, top, left, *[0] * (field.ndim - 4))
            size = (1, 1, *WINDOW_SIZE, *field.shape[4:])
            window = jax.lax.dynamic_slice(field, start, size)[0, 0].astype(jnp.float32)
            return jnp.where(mirrored, window[:, ::-1], window) / 127.5 - 1.0

        return jax.vmap(one)(clip, frame, top, left, mirrored)

    windows = {name: cut(jnp.asarray(field)) for name, field in batch.items()}
    return windows | {"hole": (windows["hole"] + 1.0) / 2.0}


def mix(mixer: DetailMixer, params: PyTree, frames: dict[str, Array]) -> Array:
    """The mixer's frames."""
    layers = (frames["video"], frames["warp"], frames["coded_warp"], frames["hole"])
    weight = agreement(frames["video"], frames["coded_warp"], frames["hole"])
    return jnp.asarray(mixer.apply({"params": params}, *layers, weight))


def make_loss(mixer: DetailMixer) -> Callable:
    """Absolute error and structural dissimilarity over windows."""

    def loss_fn(
        params: PyTree, batch: dict[str, Array], key: Array
    ) -> tuple[Array, dict[str, Array]]:
        windows = windows_of(batch, key)
        mixed = mix(mixer, params, windows)
        error = charbonnier(mixed, windows["truth"], 0.05)
        likeness = ssim(mixed, windows["truth"]).mean()
        return error + SSIM_SHARE * (1.0 - likeness), {"absolute": error, "ssim": likeness}

    return loss_fn


def make_evaluate(
    mixer: DetailMixer, clips: list[dict[str, np.ndarray]]
) -> Callable[[TrainState], dict[str, float]]:
    """PSNR and SSIM over whole frames of held-back clips, with and without stereo memory."""

    @jax.jit
    def measure(params: PyTree, clip: dict[str, Array]) -> Array:
        frames = {name: field.astype(jnp.float32) / 127.5 - 1.0 for name, field in clip.items()}
        frames["hole"] = (frames["hole"] + 1.0) / 2.0
        mixed = mix(mixer, params, frames).clip(-1, 1)
        return jnp.stack([psnr(mixed, frames["truth"]).mean(), ssim(mixed, frames["truth"]).mean()])

    def evaluate(state: TrainState) -> dict[str, float]:
        values = np.stack([np.asarray(measure(state.ema, clip)) for clip in clips])
        found = {}
        for name, part in (("first", 0), ("without", 1), ("revisit", 2)):
            found[f"{name}_psnr"], found[f"{name}_ssim"] = map(float, values[part::3].mean(0))
        print(f"\nstep {int(state.step)}", {k: round(v, 3) for k, v in found.items()}, flush=True)
        return found

    return evaluate


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--cache", type=Path, required=True, help="clips of build_detail_cache.py")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=3000)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--resume", action="store_true")
    options = parser.parse_args()

    source = ClipCache(options.cache)
    source.clips -= source.clips % 3  # of an interrupted run's last scene
    held_back = [source[i] for i in range(len(source) - HELD_BACK, len(source))]
    source.clips -= HELD_BACK
    mixer = DetailMixer()
    init_key, train_key = jax.random.split(jax.random.key(options.seed))
    params = init_mixer(mixer, init_key, *WINDOW_SIZE)
    print(f"{count_parameters(params):,} parameters")
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, options.learning_rate, min(100, options.steps // 10), options.steps, 1e-6
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.99, weight_decay=0.01)
    )
    evaluate = make_evaluate(mixer, held_back)
    state = init_train_state(params, optimizer, train_key)
    evaluate(state)
    state = train(
        state,
        make_train_step(make_loss(mixer), optimizer, ema_decay=0.998),
        cached_batches([source], options.batch, options.seed),
        steps=options.steps,
        out=options.out,
        resume=options.resume,
        evaluate=evaluate,
        evaluate_every=500,
        save_every=500,
    )
    record = {"steps": options.steps, "batch": options.batch, "seed": options.seed}
    save_weights(
        options.out / "tiny_detail.safetensors",
        state.ema,
        {
            "model": "tiny_detail",
            "config": dataclasses.asdict(mixer.config),
            "record": record | {"held_back": evaluate(state)},
        },
        dtype=jnp.bfloat16,
    )
    draw_curves(options.out / "log.jsonl", options.out / "curves.png")


if __name__ == "__main__":
    main()
