"""Train the small image VAE: it must beat the principal components of 8x8 patches.

    python experiments/cache_frames.py --out runs/frames.npz --scenes 600
    python experiments/train_vae.py --out runs/vae --frames runs/frames.npz --steps 2600

The shipped weights: 2026-11-22, one core of a two-core Xeon shared with other work. The first
1,500 steps ran under --steps 4000 (21 min, 0.2 s a step when the core is free), the rest was
resumed with --steps 2600, which shortens the learning rate's decay (9 min). PSNR in dB, held-out
photographs at native size and at half of it, and 64 frames of 16 held-out scenes:

                                 coffee      flower      camera    scenes
    principal components       27.5 26.8   31.6 29.2   29.6 27.9    26.1
    lapped start (step 0)      27.8 27.2   32.2 29.7   30.0 28.4    26.7
    trained, rounded to bf16   28.0 27.6   32.3 29.9   30.9 29.6    27.3

bf16 compute was no faster than float32 in XLA's convolutions on this processor (0.9 to 1.0 of
its speed, AMX notwithstanding), and a second thread gained nothing; both are therefore off.
Still rising when it ended: a longer run should pay.
"""

import argparse
import dataclasses
import json
import time
import typing
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from PIL import Image

from worldstereo_jax.data.images import from_uint8
from worldstereo_jax.data.textures import (
    HELD_OUT_PHOTOGRAPHS,
    TRAIN_PHOTOGRAPHS,
    load_photograph,
)
from worldstereo_jax.evaluation.image_metrics import psnr
from worldstereo_jax.files import atomic_write
from worldstereo_jax.interop.weights import count_parameters, load_weights, save_weights
from worldstereo_jax.models.vae_tiny import TinyVae, TinyVaeConfig
from worldstereo_jax.training.batches import SeededBatches
from worldstereo_jax.training.curves import draw_curves
from worldstereo_jax.training.loop import train
from worldstereo_jax.training.losses import charbonnier, gradient_loss
from worldstereo_jax.training.patch_pca import fit_patch_pca, reconstruct_pca, start_from_pca
from worldstereo_jax.training.state import init_train_state, make_train_step

CROP = 64
BATCH = 16
NOISE = 0.05
"""Standard deviation of the latent noise in training, in units of image patches' coefficients."""


class Crops:
    """Random crops of photographs at random scales, and of rendered frames when there are any."""

    def __init__(self, frames: np.ndarray | None) -> None:
        self.frames = frames
        self.pyramids = [_pyramid(load_photograph(name)) for name in TRAIN_PHOTOGRAPHS]

    def __call__(self, rng: np.random.Generator) -> np.ndarray:
        """Draw a batch [BATCH, CROP, CROP, 3] in [-1, 1]."""
        return np.stack([self._one(rng) for _ in range(BATCH)])

    def _one(self, rng: np.random.Generator) -> np.ndarray:
        if self.frames is not None and rng.random() < 0.6:
            source = self.frames[rng.integers(len(self.frames))]
        else:
            levels = self.pyramids[rng.integers(len(self.pyramids))]
            source = levels[rng.integers(len(levels))]
        top = rng.integers(source.shape[0] - CROP + 1)
        left = rng.integers(source.shape[1] - CROP + 1)
        crop = from_uint8(source[top : top + CROP, left : left + CROP])
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
        if rng.random() < 0.25:
            crop = crop.transpose(1, 0, 2)
        if rng.random() < 0.5:
            gain = rng.uniform(0.6, 1.15) * rng.uniform(0.85, 1.15, 3)
            crop = crop * gain + rng.uniform(-0.25, 0.25)
        return np.clip(crop, -1.0, 1.0).astype(np.float32)


def _pyramid(image: np.ndarray) -> list[np.ndarray]:
    """Shrink an 8-bit image in steps of 0.75 while a crop still fits well."""
    levels, scale = [], 1.0
    while min(image.shape[:2]) * scale >= 1.5 * CROP:
        size = (round(image.shape[1] * scale), round(image.shape[0] * scale))
        levels.append(np.asarray(Image.fromarray(image).resize(size, Image.Resampling.LANCZOS)))
        scale *= 0.75
    return levels


def held_out_photographs() -> dict[str, np.ndarray]:
    """Each held-out photograph whole and at a quarter of its area, cut to multiples of 8."""
    images = {}
    for name in HELD_OUT_PHOTOGRAPHS:
        full = load_photograph(name)
        for label, scale in (("", 1.0), ("_half", 0.5)):
            size = (int(full.shape[1] * scale) // 8 * 8, int(full.shape[0] * scale) // 8 * 8)
            image = np.asarray(Image.fromarray(full).resize(size, Image.Resampling.LANCZOS))
            images[name + label] = from_uint8(image[None])
    return images


def load_frames(path: str | None) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Rendered frames (uint8 [n, h, w, 3]) for training and for evaluation, from an .npz file."""
    if path is None:
        return None, None
    with np.load(path, allow_pickle=False) as data:
        return data["train"], data["held_out"]


def apply(
    vae: TinyVae, params: typing.Any, x: jax.Array, method: typing.Callable[..., jax.Array]
) -> jax.Array:
    """Call one of the VAE's methods."""
    return typing.cast(jax.Array, vae.apply({"params": params}, x, method=method))


def mean_psnr(predicted: np.ndarray | jax.Array, target: np.ndarray) -> float:
    """Mean PSNR over images, dB; what is predicted beyond the range is clipped."""
    return float(jnp.mean(psnr(jnp.clip(jnp.asarray(predicted), -1.0, 1.0), target)))


def make_loss(
    vae: TinyVae, noise_std: np.ndarray
) -> typing.Callable[[typing.Any, jax.Array, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]:
    """Charbonnier plus gradients, with a little noise of random strength on the latent."""

    def loss_fn(
        params: typing.Any, batch: jax.Array, key: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        code = apply(vae, params, batch, TinyVae.encode_raw)
        strength_key, noise_key = jax.random.split(key)
        strength = jax.random.uniform(strength_key, (code.shape[0], 1, 1, 1))
        noise = jax.random.normal(noise_key, code.shape) * noise_std[None, None, None, :]
        output = apply(vae, params, code + strength * noise, TinyVae.decode_raw)
        loss = charbonnier(output, batch, 0.1) + 0.5 * gradient_loss(output, batch, 0.1)
        return loss, {"psnr": psnr(jnp.clip(output, -1.0, 1.0), batch).mean()}

    return loss_fn


def main() -> None:
    """Run the training."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=2500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=1.5e-3)
    parser.add_argument("--frames", help="npz with uint8 frames 'train' and 'held_out'")
    parser.add_argument("--init", type=Path, help="weights to start from instead of the components")
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--weights", type=Path, help="where to write the final weights")
    args = parser.parse_args()

    train_frames, held_out_frames = load_frames(args.frames)
    crops = Crops(train_frames)
    sample = np.concatenate([crops(np.random.default_rng((7, i))) for i in range(100)])
    pca = fit_patch_pca(sample)
    config = TinyVaeConfig()
    vae = TinyVae(config)
    key = jax.random.key(args.seed)
    params = vae.init(key, jnp.zeros((1, CROP, CROP, 3)))["params"]
    if args.init is None:
        params = start_from_pca(dict(params), pca, sample)
    else:
        params, _ = load_weights(args.init)
    print(f"{count_parameters(params):,} parameters", flush=True)

    tests = held_out_photographs()
    if held_out_frames is not None:
        tests["frames"] = from_uint8(held_out_frames)
    baseline = {n: mean_psnr(reconstruct_pca(pca, x), x) for n, x in tests.items()}
    print("PCA    ", _row(baseline), flush=True)
    reconstruct = jax.jit(
        lambda p, x: apply(vae, p, apply(vae, p, x, TinyVae.encode_raw), TinyVae.decode_raw)
    )

    def evaluate(state: typing.Any) -> dict[str, float]:
        figures = {f"psnr_{n}": mean_psnr(reconstruct(state.ema, x), x) for n, x in tests.items()}
        print(f"\nstep {int(state.step)}", _row(figures), flush=True)
        return figures

    schedule = optax.warmup_cosine_decay_schedule(
        0.0, args.learning_rate, min(100, args.steps // 4), args.steps, 1e-5
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99))
    noise_std = np.minimum(NOISE / pca.std, 0.3)
    step = make_train_step(make_loss(vae, noise_std), optimizer, ema_decay=0.998)
    state = init_train_state(params, optimizer, key)
    evaluate(state)
    start = time.perf_counter()
    state = train(
        state,
        step,
        SeededBatches(crops, args.seed),
        steps=args.steps,
        out=args.out,
        resume=args.resume,
        evaluate=evaluate,
        evaluate_every=250,
        save_every=250,
    )
    print(f"{time.perf_counter() - start:.0f} s of training", flush=True)
    draw_curves(args.out / "log.jsonl", args.out / "curves.png")

    # What ships is rounded, so the record is of the rounded weights.
    shipped = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(x.dtype), state.ema)
    codes = jax.jit(lambda p, x: apply(vae, p, x, TinyVae.encode_raw))(shipped, sample)
    config = dataclasses.replace(
        config,
        latents_mean=tuple(np.mean(codes, axis=(0, 1, 2)).tolist()),
        latents_std=tuple(np.std(codes, axis=(0, 1, 2)).tolist()),
    )
    final = evaluate(state.replace(ema=shipped))
    record = {"psnr": final, "psnr_pca": baseline, "steps": args.steps, "seed": args.seed}
    weights = args.weights or args.out / "tiny_vae.safetensors"
    save_weights(
        weights,
        shipped,
        {"model": "tiny_vae", "config": dataclasses.asdict(config), "record": record},
        dtype=jnp.bfloat16,
    )
    with atomic_write(weights.with_suffix(".json")) as temporary:
        text = json.dumps({"config": dataclasses.asdict(config), "record": record}, indent=2)
        temporary.write_text(text + "\n")


def _row(figures: dict[str, float]) -> str:
    return "  ".join(f"{name.removeprefix('psnr_')} {value:.2f}" for name, value in figures.items())


if __name__ == "__main__":
    main()
